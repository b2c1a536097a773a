"""Engines predict like PyTorch, and the log names the engine."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from tests.exporters.conftest import small_model
from tests.messages import mentioning, mentions

import efficientnetv2 as ev2
from efficientnetv2.exporters import engines, formats
from efficientnetv2.models.ensemble import write_members
from efficientnetv2.models.unknown import UnknownDetector
from efficientnetv2.preprocessing import Preprocessing

ENGINES = ["onnxruntime", "openvino"]
CPU = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A calibrated model, and an ensemble of multi-label models with TTA."""
    folder = tmp_path_factory.mktemp("models")
    ev2.save(folder / "one.safetensors", small_model(temperature=1.7))
    own = Preprocessing(image_size=32, tta="d4")
    (folder / "ensemble").mkdir()
    for seed in (1, 2):
        member = small_model(seed, activation="sigmoid", preprocessing=own, temperature=1.5)
        ev2.save(folder / "ensemble" / f"{seed}.safetensors", member)
    write_members(folder / "ensemble", ["1.safetensors", "2.safetensors"])
    return {"one": folder / "one.safetensors", "ensemble": folder / "ensemble"}


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "efficientnetv2")
    return caplog


@pytest.fixture
def timings(monkeypatch):
    """Set the seconds that `auto` measures: for the engines in their order, then for PyTorch."""

    def set_timings(*seconds):
        remaining = iter(seconds)
        monkeypatch.setattr(engines, "_seconds", lambda run: next(remaining))
        monkeypatch.setattr(engines, "_MIN_IMAGES", 1)

    return set_timings


def _predicted(*arguments, **options):
    table = ev2.predict(*arguments, **CPU, **options)
    return table["predicted_label"], table.select_dtypes("number").to_numpy()


@pytest.mark.parametrize("name", ["one", "ensemble"])
@pytest.mark.parametrize("engine", ENGINES)
def test_predict_gives_equal_results_with_each_engine(engine, name, models, photos, log):
    pytest.importorskip(engine)
    labels, expected = _predicted(models[name], photos, engine="torch")
    assert not log.messages or not mentions(log.messages, "Engine")
    found_labels, found = _predicted(models[name], photos, engine=engine)
    pd.testing.assert_series_equal(found_labels, labels)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert sum(message.startswith("Engine:") for message in log.messages) == 1
    assert mentions(log.messages, "Engine", engine)


def test_evaluate_gives_equal_metrics_with_each_engine(models, photos, tmp_path):
    files = sorted(photos.iterdir())
    rows = [{"path": file, "label": ("forest", "maize")[number % 2]} for number, file in enumerate(files)]
    table = tmp_path / "table.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    results = [ev2.evaluate(models["one"], table, engine=engine, **CPU) for engine in ("torch", "onnxruntime")]
    assert results[0].metrics == pytest.approx(results[1].metrics, abs=1e-4)


def test_predictor_exports_once(models, photos, monkeypatch):
    files, written = sorted(photos.iterdir()), []
    write = engines.write_onnx
    monkeypatch.setattr(engines, "write_onnx", lambda *args: written.append(1) or write(*args))
    predict, plain = (ev2.Predictor(models["one"], device="cpu", engine=engine) for engine in ("onnxruntime", "torch"))
    for part in (files[:5], files[5:]):
        for found, expected in zip(predict(part), plain(part), strict=True):
            assert found.label == expected.label
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert len(written) == 1


def test_threads_that_share_a_predictor_export_once(models, photos, monkeypatch):
    files, written = sorted(photos.iterdir())[:4], []
    write = engines.write_onnx

    def slow(*args):
        written.append(1)
        time.sleep(0.2)
        return write(*args)

    monkeypatch.setattr(engines, "write_onnx", slow)
    predict, plain = (ev2.Predictor(models["one"], device="cpu", engine=engine) for engine in ("onnxruntime", "torch"))
    with ThreadPoolExecutor(4) as pool:
        found = [one.probabilities for (one,) in pool.map(predict, files)]
    assert found == [pytest.approx(one.probabilities, abs=1e-4) for one in plain(files)]
    assert len(written) == 1


def test_decoded_images_are_predicted_by_the_engine_of_the_predictor(models, photos, monkeypatch):
    batches, compute = [], torch.zeros(1, small_model().num_classes)
    predict = ev2.Predictor(models["one"], device="cpu", engine="onnxruntime")
    engine = ("onnxruntime", lambda images: batches.append(images) or compute)
    monkeypatch.setattr(engines, "choose_engine", lambda *_: engine)
    predict.predict_decoded([predict.decode(next(photos.iterdir()))])
    assert len(batches) == 1


@pytest.mark.parametrize(
    ("seconds", "chosen"), [((1, 2, 5), "openvino"), ((3, 1, 5), "onnxruntime"), ((3, 3, 3), "torch")]
)
def test_auto_selects_the_fastest_engine(seconds, chosen, models, photos, timings, log):
    pytest.importorskip("openvino")
    timings(*seconds)
    labels, expected = _predicted(models["one"], photos, engine="torch")
    found_labels, found = _predicted(models["one"], photos, engine="auto")
    assert list(found_labels) == list(labels)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert mentions(log.messages, "Engine", chosen)


def test_auto_keeps_pytorch_for_few_images(models, photos, monkeypatch):
    monkeypatch.setattr(engines, "write_onnx", None)
    assert len(_predicted(models["one"], photos)[0]) == 12


def _wrong(change):
    def wrong(path, _):
        session = formats.open_onnx(path)
        return formats.Session("wrong", lambda images: tuple(x + change * x**2 for x in session.run(images)), {})

    return wrong


@pytest.mark.parametrize("change", [1e-2, float("nan")])
def test_engine_that_disagrees_with_pytorch_is_not_used(change, models, photos, monkeypatch, timings, log):
    for name in ENGINES:
        monkeypatch.setitem(engines._OPEN, name, _wrong(change))
    with pytest.raises(ev2.InputError, match=mentioning("onnxruntime", "differs", "engine=torch")):
        _predicted(models["one"], photos, engine="onnxruntime")
    timings(1)
    np.testing.assert_array_equal(
        _predicted(models["one"], photos, engine="auto")[1], _predicted(models["one"], photos, engine="torch")[1]
    )
    assert mentions(log.messages, "Engine", "torch", "differs")


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_engine_keeps_the_training_mode_of_the_model(engine, photos):
    model = small_model().train()
    model.blocks[0].eval()
    predict = ev2.Predictor(model, engine=engine, device="cpu")
    before = [module.training for module in model.modules()]
    predict(sorted(photos.rglob("*.jpg"))[:2])
    assert [module.training for module in model.modules()] == before
    assert model.training


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_batches_of_any_size_are_equal_with_each_engine(count, photos):
    """Batches of the first size have their own graph."""
    model = small_model()
    files = sorted(photos.rglob("*.jpg"))
    expected = ev2.Predictor(model, device="cpu")
    predict = ev2.Predictor(model, device="cpu", batch_size=3, engine="openvino")
    predict(files[:3])
    for own, its in zip(expected(files[:count]), predict(files[:count]), strict=True):
        assert own.label == its.label
        assert own.probabilities == pytest.approx(its.probabilities, abs=1e-5)


def test_bfloat16_differs_from_pytorch_only_in_the_last_digits(photos, monkeypatch):
    """OpenVINO computes in float32 if the processor lacks bfloat16."""
    monkeypatch.setattr(engines, "lower_precision", lambda _: "bf16")
    model = small_model()
    files = sorted(photos.rglob("*.jpg"))
    expected = ev2.Predictor(model, device="cpu")(files)
    for own, its in zip(expected, ev2.Predictor(model, device="cpu", engine="openvino-bf16")(files), strict=True):
        assert own.probabilities == pytest.approx(its.probabilities, abs=0.05)


@pytest.mark.parametrize("engine", ["torch", "openvino-bf16"])
def test_bfloat16_requires_a_processor_that_supports_it(engine, monkeypatch):
    monkeypatch.setattr(engines, "lower_precision", lambda _: None)
    if engine == "torch":
        ev2.Predictor(small_model(), device="cpu", engine=engine)
    else:
        with pytest.raises(ev2.InputError, match=mentioning("openvino-bf16", "AVX512_BF16", "engine=openvino")):
            ev2.Predictor(small_model(), device="cpu", engine=engine)


def test_engine_with_other_scores_of_unknown_images_is_refused(photos, tmp_path, monkeypatch):
    model = small_model()
    model.unknown = UnknownDetector.fit(torch.randn(60, model.embed_dim), "val")
    ev2.save(tmp_path / "model.safetensors", model)

    def wrong(path, _):
        outputs = torch.tensor([[0.0, 0.0, 0.0, 0.01]]).numpy()
        session = formats.open_onnx(path)
        return formats.Session("wrong", lambda images: (session.run(images)[0] + outputs,), {})

    assert len(ev2.predict(tmp_path / "model.safetensors", photos, engine="onnxruntime", **CPU)) == 12
    monkeypatch.setitem(engines._OPEN, "onnxruntime", wrong)
    with pytest.raises(ev2.InputError, match=mentioning("onnxruntime", "differs", "engine=torch")):
        ev2.predict(tmp_path / "model.safetensors", photos, engine="onnxruntime", **CPU)


def test_auto_uses_pytorch_if_a_model_cannot_be_exported(models, photos, monkeypatch, timings, log):
    def failing(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(engines, "write_onnx", failing)
    timings()
    assert len(_predicted(models["one"], photos, engine="auto")[0]) == 12
    assert mentions(log.messages, "Engine", "torch", "no such operator")
    with pytest.raises(ev2.InputError, match=mentioning("onnxruntime", "no such operator", "engine=torch")):
        _predicted(models["one"], photos, engine="onnxruntime")


def test_unknown_engines_are_refused(models, photos):
    with pytest.raises(ev2.InputError, match=mentioning("engine", "tensorrt", "onnxruntime")):
        ev2.predict(models["one"], photos, engine="tensorrt")
    with pytest.raises(ev2.InputError, match=mentioning("engine", "tensorrt", "onnxruntime")):
        ev2.Predictor(models["one"], engine="tensorrt")
    with pytest.raises(ev2.InputError, match=mentioning("openvino", "cuda", "device=cpu")):
        engines.engine_picker("openvino", torch.device("cuda"))
    assert engines.engine_picker("auto", torch.device("cuda")) is None
