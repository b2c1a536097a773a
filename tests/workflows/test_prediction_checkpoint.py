"""Checkpoints of a long ``predict``: saved predictions are used only by the same command."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.command_line import effnetv2
from tests.conftest import paint
from tests.file_server import serving
from tests.log_lines import logged_lines
from tests.messages import mentioning
from tests.workflows.test_batch_predict import SMALL

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.shards.reader import ShardDamage
from efficientnetv2.data.shards.storage import RemoteStore
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.inference.predict import Predictions, Runtime
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import batch_predict
from efficientnetv2.workflows import predict as predict_job
from efficientnetv2.workflows.batch_predict import InferenceOptions, PredictionCheckpoint, PredictionJob, run_prediction

MODEL = "model.safetensors"
CLASSES = ("blue", "green", "red")


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    made = EfficientNet(SMALL, num_classes=3).eval()
    made.preprocessing = replace(made.preprocessing, image_size=32, crop_pct=1.0)
    model_file.save(tmp_path / MODEL, made, class_names=CLASSES)
    return model_file.load(tmp_path / MODEL)


@pytest.fixture
def new_checkpoint(network, class_folders, tmp_path):
    """A function that creates a checkpoint, as each start of the program does. Arguments replace fields of the job."""
    messages = logged_lines()

    def made(**words):
        every_s = words.pop("every_s", 300)
        dataset = load_dataset(class_folders, require_labels=False)
        return PredictionCheckpoint(tmp_path / "labels.csv", replace(_job(network, dataset), **words), every_s=every_s)

    made.said = messages
    return made


def _job(network, dataset):
    return PredictionJob(network, dataset, ShardDamage({}, ()), network.preprocessing)


def _logits(rows):
    return np.array(rows), torch.tensor(rows, dtype=torch.float32)[:, None] + torch.arange(3)


def test_predictions_are_found_by_an_equal_job_only(new_checkpoint, network, class_folders):
    one = new_checkpoint(every_s=0)
    one.add(*_logits([4, 1]))
    one.add(*_logits([1, 7]))  # from another process at the same time
    rows, logits = new_checkpoint().load()
    assert rows.tolist() == [1, 4, 7]
    assert logits.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    others = load_dataset(class_folders, require_labels=False).select(np.arange(20))
    assert not len(new_checkpoint(dataset=others).load()[0])
    assert not len(new_checkpoint(preprocessing=replace(network.preprocessing, tta="d4")).load()[0])
    network.calibration = Calibration(2.0, 100, "minival")
    assert not len(new_checkpoint().load()[0])
    network.calibration = None
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1
    assert not len(new_checkpoint().load()[0])


@pytest.mark.parametrize("changed", [{"padding": "symmetric"}, {"batch_norm_epsilon": 1e-5}])
def test_equal_weights_in_another_architecture_are_predicted_again(changed, new_checkpoint, network):
    new_checkpoint(every_s=0).add(*_logits([4, 1]))
    other = EfficientNet(replace(network.architecture, **changed), num_classes=3).eval()
    other.load_state_dict(network.state_dict())
    other.activation, other.preprocessing = network.activation, network.preprocessing
    assert not len(new_checkpoint(network=other).load()[0])
    same = EfficientNet(network.architecture, num_classes=3).eval()
    same.load_state_dict(network.state_dict())
    same.activation, same.preprocessing = network.activation, network.preprocessing
    assert len(new_checkpoint(network=same).load()[0]) == 2


def test_models_of_other_libraries_differ_by_their_source(new_checkpoint):
    one, other = (create("torchvision:resnet18", num_classes=3).eval() for _ in range(2))
    other.load_state_dict(one.state_dict())
    new_checkpoint(network=one, every_s=0).add(*_logits([4, 1]))
    assert len(new_checkpoint(network=other).load()[0]) == 2
    other.source = "timm:resnet18"
    assert not len(new_checkpoint(network=other).load()[0])


def test_changed_image_is_predicted_again(new_checkpoint, class_folders):
    one = new_checkpoint(every_s=0)
    one.add(*_logits([0, 1, 2, 3]))
    paths = load_dataset(class_folders, require_labels=False).paths
    paint(class_folders / paths[1], (1, 2, 3))
    os.utime(class_folders / paths[2], ns=(1, 1))
    (class_folders / paths[3]).unlink()
    assert new_checkpoint(dataset=load_dataset(class_folders, require_labels=False)).load()[0].tolist() == []
    paint(class_folders / paths[3], (1, 2, 3))
    assert new_checkpoint().load()[0].tolist() == [0]


def test_images_in_shards_depend_on_their_tar(new_checkpoint, class_folders, tmp_path):
    write_shards(load_dataset(class_folders), tmp_path / "packed", PackOptions(shard_bytes=10**9, shard_images=10))
    dataset = load_dataset(tmp_path / "packed", require_labels=False)
    new_checkpoint(dataset=dataset, every_s=0).add(*_logits(list(range(11))))
    os.utime(tmp_path / "packed/images-000001.tar", ns=(1, 1))
    others = [row for row in range(11) if not dataset.paths[row].startswith("images-000001.tar#")]
    assert 0 < len(others) < 11
    assert new_checkpoint(dataset=dataset).load()[0].tolist() == others


def test_images_of_another_folder_are_predicted_again_at_equal_size_and_time(new_checkpoint, tmp_path):
    """For example uncompressed tiles with the modification time of their archive."""
    for number, folder in enumerate(("one", "other")):
        for name in "abc":
            file = tmp_path / folder / f"{name}.bmp"
            file.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (100 * number, 0, 0)).save(file)
            os.utime(file, ns=(1, 1))
    one, other = (load_dataset(tmp_path / folder, require_labels=False) for folder in ("one", "other"))
    new_checkpoint(dataset=one, every_s=0).add(*_logits([0, 1, 2]))
    assert new_checkpoint(dataset=one).load()[0].tolist() == [0, 1, 2]
    assert not len(new_checkpoint(dataset=other).load()[0])


def test_images_of_a_url_depend_on_the_url_and_the_state_of_their_shards(
    new_checkpoint, class_folders, tmp_path, monkeypatch
):
    """Shards of another URL have other images. So does a shard that was uploaded again with equal size."""
    days = ("monday", "tuesday")
    for day in days:
        write_shards(load_dataset(class_folders), tmp_path / day, PackOptions(shard_bytes=10**9, shard_images=10))
    requests, stats, rows = [], RemoteStore.stats, list(range(11))
    monkeypatch.setattr(RemoteStore, "stats", lambda store, names: requests.extend(names) or stats(store, names))
    with serving(tmp_path) as server:
        monday, tuesday = (load_dataset(f"{server.url}/{day}", require_labels=False) for day in days)
        requests.clear()
        one = new_checkpoint(dataset=monday)
        for row in rows:
            one.add(*_logits([row]))
        assert len(requests) == len(set(requests)) > 1, "each shard is asked for once"
        server.head_fails = 503
        assert one.write(), "a store that has gone costs no answer"
        server.head_fails = None
        assert new_checkpoint(dataset=monday).load()[0].tolist() == rows
        assert not len(new_checkpoint(dataset=tuesday).load()[0])
        tar = tmp_path / "monday/images-000001.tar"
        content = tar.read_bytes()
        tar.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        others = [row for row in rows if not monday.paths[row].startswith("images-000001.tar#")]
        assert 0 < len(others) < len(rows)
        assert new_checkpoint(dataset=monday).load()[0].tolist() == others


def test_checkpoint_is_written_at_intervals_and_ignores_a_damaged_part(new_checkpoint, tmp_path):
    one = new_checkpoint(every_s=3600)
    one.add(*_logits([1]))
    assert not (tmp_path / ".labels.csv.partial").exists()
    assert one.write()
    first = set((tmp_path / ".labels.csv.partial").iterdir())
    one.add(*_logits([2, 3]))
    one.write()
    (second,) = set((tmp_path / ".labels.csv.partial").iterdir()) - first
    second.write_bytes(second.read_bytes()[:200])
    assert new_checkpoint().load()[0].tolist() == [1]
    one.remove()
    assert not (tmp_path / ".labels.csv.partial").exists()
    assert not one.write(), "nothing has come since"


def test_finished_job_keeps_the_saved_predictions_of_others(new_checkpoint, network, tmp_path, class_folders):
    """Of the same table, as the default name is. They are deleted after a month."""
    one = new_checkpoint()
    one.add(*_logits([1]))
    one.write()
    few = load_dataset(class_folders, require_labels=False).select([0, 1, 2])
    other = PredictionCheckpoint(tmp_path / "labels.csv", _job(network, few))
    other.add(*_logits([2]))
    other.write()
    other.remove()
    assert not len(other.load()[0])
    assert new_checkpoint().load()[0].tolist() == [1]
    (file,) = (tmp_path / ".labels.csv.partial").iterdir()
    os.utime(file, (0, 0))
    other.remove()
    assert not file.parent.exists()


def test_full_disk_gives_one_warning_and_loses_no_prediction(new_checkpoint, tmp_path):
    (tmp_path / ".labels.csv.partial").write_text("in the way")
    one = new_checkpoint(every_s=0)
    one.add(*_logits([1]))
    one.add(*_logits([2]))
    assert not one.write()
    assert len(new_checkpoint.said) == 1
    assert "cannot be saved" in new_checkpoint.said[0]
    (tmp_path / ".labels.csv.partial").unlink()  # there is room again
    assert one.write()
    assert new_checkpoint().load()[0].tolist() == [1, 2]
    assert len(new_checkpoint.said) == 1


def test_failed_save_after_a_saved_part_is_not_called_saved(new_checkpoint, monkeypatch):
    one = new_checkpoint(every_s=0)
    one.add(*_logits([1]))
    monkeypatch.setattr(batch_predict, "write_atomically", _full)
    one.add(*_logits([2]))
    assert not one.write()


def _full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("the store is gone")])
def test_interrupted_prediction_keeps_its_results(stop, new_checkpoint, network, monkeypatch, class_folders):
    def stopped(network, dataset, *, on_batch, **words):
        on_batch(*_logits([0, 2]))
        raise stop

    monkeypatch.setattr(batch_predict, "predict_dataset", stopped)
    dataset = load_dataset(class_folders, require_labels=False)
    before = signal.getsignal(signal.SIGTERM)
    checkpoint = new_checkpoint()
    with pytest.raises(stop if isinstance(stop, type) else type(stop)) as ended:
        run_prediction(_job(network, dataset), Runtime(), "predicting", checkpoint)
    assert ("the same command resumes" in str(ended.value)) == (stop is KeyboardInterrupt)
    assert new_checkpoint().load()[0].tolist() == [0, 2]
    assert signal.getsignal(signal.SIGTERM) is before


def test_logits_are_not_copied_without_a_checkpoint(new_checkpoint, network, class_folders, monkeypatch):
    """The logits of a million images and a thousand classes are 4 GB."""
    dataset = load_dataset(class_folders, require_labels=False)
    given = Predictions(np.arange(48), dataset.targets, torch.randn(48, 3))
    monkeypatch.setattr(batch_predict, "predict_dataset", lambda *_, **__: given)
    found, _ = run_prediction(_job(network, dataset), Runtime(), "predicting", new_checkpoint())
    assert found.logits.data_ptr() == given.logits.data_ptr()


def test_only_the_first_process_adds_the_saved_logits(new_checkpoint, network, class_folders, monkeypatch):
    """For a million images they are gigabytes, which other processes do not need."""
    new_checkpoint(every_s=0).add(*_logits([0, 2]))
    dataset = load_dataset(class_folders, require_labels=False)
    messages, requests = [], []

    def by_first(world, make):
        messages.extend([make()] if world.is_main_process else [])
        return messages[0]

    def shared(network, dataset, **words):
        requests.append(len(dataset))
        return Predictions(np.arange(len(dataset)), dataset.targets, torch.randn(len(dataset), 3))

    monkeypatch.setattr(batch_predict, "broadcast_from_main", by_first)
    monkeypatch.setattr(batch_predict, "predict_dataset", shared)
    results = []
    for rank in (0, 1):
        found, _ = run_prediction(
            _job(network, dataset), Runtime(world=World(rank=rank, size=2)), "predicting", new_checkpoint()
        )
        results.append(found)
    assert [one.tolist() for one in messages] == [[0, 2]]
    assert requests == [46, 46], "neither asks for what is there"
    assert results[0].logits[[0, 2]].tolist() == _logits([0, 2])[1].tolist()
    assert len(results[1].samples) == 46


def test_predictions_of_another_engine_are_not_used(new_checkpoint):
    one, same = new_checkpoint(every_s=0), new_checkpoint()
    assert one.saved_engine() is None
    one.engine = same.engine = "openvino"
    one.add(*_logits([4, 1]))
    assert not len(new_checkpoint().load()[0])
    assert new_checkpoint().saved_engine() == "openvino"
    assert same.load()[0].tolist() == [1, 4]
    rounded = new_checkpoint(every_s=0)
    rounded.engine = "openvino-bf16"
    rounded.add(*_logits([7]))
    assert same.load()[0].tolist() == [1, 4], "bfloat16 is another engine"
    file = max(same._folder.glob("*bf16-*.npz"))
    os.utime(file, ns=(0, time.time_ns() + 10**9))
    assert new_checkpoint().saved_engine() == "openvino", "auto never takes bfloat16"
    one.engine = "torch"  # as an error recommends if the other engine is missing
    one.add(*_logits([2]))
    file = max(same._folder.glob("*-torch-*.npz"))
    os.utime(file, ns=(0, time.time_ns() + 10**9))
    assert new_checkpoint().saved_engine() == "torch"


def test_resumed_prediction_without_its_engine_names_the_install_command(
    new_checkpoint, network, class_folders, monkeypatch
):
    pytest.importorskip("onnxscript")
    saved, dataset = new_checkpoint(every_s=0), load_dataset(class_folders, require_labels=False)
    saved.engine = "openvino"
    saved.add(*_logits([4, 1]))
    monkeypatch.setitem(sys.modules, "openvino", None)  # the import then fails as if the package were missing
    with pytest.raises(InputError, match=mentioning("openvino", "extra", "pip install", "engine=torch", "saved")):
        run_prediction(_job(network, dataset), Runtime(engine="auto"), "predicting", new_checkpoint())
    predictions, _ = run_prediction(_job(network, dataset), Runtime(engine="torch"), "predicting", new_checkpoint())
    assert len(predictions.samples) == len(dataset)
    assert predictions.logits[1].tolist() != _logits([1])[1][0].tolist()


def test_main_process_chooses_the_engine_outside_the_measured_time(new_checkpoint, network, class_folders, monkeypatch):
    dataset = load_dataset(class_folders, require_labels=False)
    choices, sent, computes, seconds = [], [], [], []

    def choose(engine, network, preprocessing, read, num_images):
        time.sleep(1)
        choices.append((engine, tuple(read().shape), num_images))
        return "openvino", "of the main process"

    def broadcast(world, make):
        if world.is_main_process:
            sent.append(make())
            return sent[-1]
        return sent.pop(0)

    def predicted(network, dataset, *, runtime, **words):
        computes.append(runtime.compute)
        return Predictions(np.arange(len(dataset)), dataset.targets, torch.randn(len(dataset), 3))

    monkeypatch.setattr(batch_predict, "choose_engine", choose)
    monkeypatch.setattr(batch_predict, "open_engine", lambda engine, *_: f"{engine} opened")
    monkeypatch.setattr(batch_predict, "broadcast_from_main", broadcast)
    monkeypatch.setattr(batch_predict, "predict_dataset", predicted)
    for rank in (0, 1):
        runtime = Runtime(world=World(rank=rank, size=2), engine="auto")
        seconds.append(run_prediction(_job(network, dataset), runtime, "predicting", new_checkpoint())[1])
    assert choices == [("auto", (48, 3, 32, 32), 48)]
    assert computes == ["of the main process", "openvino opened"]
    assert max(seconds) < 1
    saved = new_checkpoint(every_s=0)
    saved.engine = "onnxruntime"
    saved.add(*_logits([4, 1]))
    run_prediction(_job(network, dataset), Runtime(engine="auto"), "predicting", new_checkpoint())
    assert choices[1:] == [("onnxruntime", (48, 3, 32, 32), 48)], "a resumed prediction keeps its engine"


@pytest.mark.parametrize("stop", [InputError("the store is gone"), signal.SIGTERM])
def test_checkpoint_is_kept_until_the_ranking_is_written(stop, new_checkpoint, class_folders, tmp_path, monkeypatch):
    """The ranking reads all images again, hours after the first prediction."""

    def stopped(*words, **more):
        if stop == signal.SIGTERM:
            signal.raise_signal(stop)
        raise stop

    monkeypatch.setattr(predict_job, "write_ranking", stopped)
    with pytest.raises((InputError, KeyboardInterrupt)) as ended:
        predict_job.predict_and_write(
            str(tmp_path / MODEL),
            DataConfig(str(class_folders)),
            predict_job.PredictOptions(out=tmp_path / "labels.csv", rank=tmp_path / "next.csv"),
            InferenceOptions("cpu", 0),
        )
    assert ("the same command resumes" in str(ended.value)) == (stop == signal.SIGTERM)
    assert (tmp_path / "labels.csv").exists()
    assert len(new_checkpoint().load()[0]) == 48


def test_same_command_resumes_from_the_checkpoint(new_checkpoint, class_folders, tmp_path):
    """Artificial predictions in the checkpoint are in the table. The other predictions are unchanged."""
    args = ("predict", MODEL, class_folders, "--device", "cpu", "--workers", "0", "--output", "labels.csv")
    done = effnetv2(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".labels.csv.partial").exists()
    alone = pd.read_csv(tmp_path / "labels.csv")
    planted = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    checkpoint = new_checkpoint()
    checkpoint.add(np.array([30, 3]), planted)
    checkpoint.write()
    done = effnetv2(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Resuming with 2 predictions that an earlier run has saved." in done.stdout
    table = pd.read_csv(tmp_path / "labels.csv")
    assert table["path"].tolist() == alone["path"].tolist()
    assert table["predicted_label"][[30, 3]].tolist() == ["blue", "green"]
    np.testing.assert_allclose(table[[*CLASSES]].to_numpy()[[30, 3]], planted.softmax(1), atol=1e-4)
    others = [row for row in range(len(table)) if row not in (3, 30)]
    np.testing.assert_allclose(table[[*CLASSES]].to_numpy()[others], alone[[*CLASSES]].to_numpy()[others], atol=1e-4)
    assert not (tmp_path / ".labels.csv.partial").exists()


def test_complete_checkpoint_is_written_to_the_table(new_checkpoint, class_folders, tmp_path):
    """The process was killed between the last prediction and the table."""
    checkpoint = new_checkpoint()
    rows = np.arange(len(load_dataset(class_folders, require_labels=False)))
    checkpoint.add(rows, torch.eye(3)[torch.from_numpy(rows % 3)])
    checkpoint.write()
    done = effnetv2(
        "predict", MODEL, class_folders, "--device", "cpu", "--workers", "0", "--output", "labels.csv", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path / "labels.csv")["predicted_label"].tolist() == [CLASSES[row % 3] for row in rows]
