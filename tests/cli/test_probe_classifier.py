"""Runs whose classifier starts as the linear probe: without training, the model predicts like the probe."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.command_line import TINY, killed_at, run_ok
from tests.conftest import COLORS, paint
from tests.messages import mentions

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.result_tables import ResultPrinter, print_outcome
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.evaluation.report_sections import ReportInputs
from efficientnetv2.inference import linear_probe as linear_probe_module
from efficientnetv2.inference.linear_probe import linear_probe, to_linear_layer
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows.run_report import save_probe
from efficientnetv2.workflows.train import train_and_report

SMALL = Architecture(stem_channels=8, stages=(Stage(fused_mbconv(expand=2, kernel=3), 2, 8, 1),), head_channels=16)
# The learning rate is practically 0, and no EMA is used: the model file has the initial weights.
STILL = (*TINY[2:], "--set", "optimizer.lr=1e-12", "--set", "optimizer.weight_decay=0", "--recipe", "finetune")


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_layer_equals_scikit_learn(classes):
    generator = np.random.default_rng(0)
    labels = np.arange(90) % classes
    vectors = (generator.normal(size=(90, 5)) * np.arange(1, 6) + labels[:, None]).astype(np.float32)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(vectors, labels)
    weight, bias = to_linear_layer(classifier, classes)
    probabilities = torch.softmax(torch.from_numpy(vectors) @ weight.T + bias, dim=1)
    np.testing.assert_allclose(probabilities, classifier.predict_proba(vectors), atol=1e-5)


def test_class_unknown_to_the_probe_is_never_the_most_likely():
    generator = np.random.default_rng(0)
    labels = np.array([0, 2, 3])[np.arange(90) % 3]
    vectors = (generator.normal(size=(90, 5)) + labels[:, None]).astype(np.float32)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(vectors, labels)
    weight, bias = to_linear_layer(classifier, 4)
    assert weight.shape == (4, 5)
    distant = torch.from_numpy(vectors * 100)  # far from the mean
    logits = distant @ weight.T + bias
    assert (logits[:, 1] <= logits[:, [0, 2, 3]].max(dim=1).values).all()
    least = [0, 2, 3][int(bias[[0, 2, 3]].argmin())]
    torch.testing.assert_close(logits[:, 1], logits[:, least])


@pytest.fixture(scope="module")
def weights_folder(painted_folders, tmp_path_factory):
    """Three classes of 16 images, and weights of a small model."""
    weights_folder = tmp_path_factory.mktemp("probe")
    shutil.copytree(painted_folders, weights_folder / "pictures")
    torch.manual_seed(0)
    model = create(SMALL, num_classes=0)
    model_file.save(
        weights_folder / "trunk.safetensors", model, preprocessing=Preprocessing(image_size=32), class_names=()
    )
    return weights_folder


def train_args(weights_folder, out):
    return ("train", "pictures", *STILL, "--verbose", "--weights", "trunk.safetensors", "--output", out)


def test_untrained_model_predicts_like_the_probe(weights_folder):
    done = run_ok(*train_args(weights_folder, "probe"), "--set", "head_init=linear_probe", cwd=weights_folder)
    report = json.loads((weights_folder / "probe/report.json").read_text())
    assert report["top1"] == report["linear_probe_top1"]
    assert mentions(done.stdout, "trunk.safetensors", "3", "classifier")
    assert "Classifier: starts as the linear probe." in done.stdout
    assert "Linear probe on the initial weights" in done.stdout
    assert load_file(weights_folder / "probe/model.safetensors")["classifier.weight"].abs().max() > 0
    fresh = run_ok(*train_args(weights_folder, "fresh"), "--set", "head_init=random", cwd=weights_folder)
    assert mentions(fresh.stdout, "trunk.safetensors", "3", "classifier")
    assert "Linear probe on the initial weights" in fresh.stdout
    assert "linear probe." not in fresh.stdout
    assert load_file(weights_folder / "fresh/model.safetensors")["classifier.weight"].abs().max() < 1e-6


def test_run_killed_before_a_checkpoint_starts_with_the_probe_again(weights_folder):
    args = (*train_args(weights_folder, "killed"), "--set", "head_init=linear_probe")
    killed_at("efficientnetv2.training.trainer:Trainer._train", *args, cwd=weights_folder)
    run_ok("train", "pictures", "--output", "killed", "--resume", "--device", "cpu", cwd=weights_folder)
    run_ok(*train_args(weights_folder, "uninterrupted"), "--set", "head_init=linear_probe", cwd=weights_folder)
    killed, uninterrupted = (
        load_file(weights_folder / name / "model.safetensors") for name in ("killed", "uninterrupted")
    )
    assert all(torch.equal(killed[name], uninterrupted[name]) for name in uninterrupted)


def test_training_from_scratch_has_no_probe(weights_folder):
    run_ok(
        "train", "pictures", *TINY, "--weights", "none", "--recipe", "finetune", "--set", "head_init=linear_probe",
        "--set",
        "optimizer.gradual_unfreeze=0.5", "--output", "none", cwd=weights_folder,
    )  # fmt: skip
    assert "head_init: random" in (weights_folder / "none/recipe.yaml").read_text()
    assert "unfreeze: null" in (weights_folder / "none/recipe.yaml").read_text()


def test_finetune_starts_with_the_probe_and_frozen_batch_norm(weights_folder):
    done = run_ok(*train_args(weights_folder, "default"), cwd=weights_folder)
    recipe = yaml.safe_load((weights_folder / "default/recipe.yaml").read_text())
    assert (recipe["head_init"], recipe["freeze_bn"]) == ("linear_probe", True)
    assert mentions(done.stdout, "freeze_bn")
    report = json.loads((weights_folder / "default/report.json").read_text())
    assert report["top1"] == report["linear_probe_top1"]
    initial, trained = (load_file(weights_folder / name) for name in ("trunk.safetensors", "default/model.safetensors"))
    statistics = [name for name in initial if name.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(initial[name], trained[name]) for name in statistics)


@pytest.fixture(scope="module")
def many(weights_folder):
    """Three classes of 340 images: enough for a minival by default."""
    for name, color in COLORS.items():
        for number in range(340):
            paint(weights_folder / "many" / name / f"{name}_{number:03d}.jpg", color, number, px=32)
    return weights_folder


def test_probe_is_saved_when_training_diverges(many):
    """The learning rate is far too high. The model file has the probe with a fitted temperature, as reported."""
    args = (*train_args(many, "ruined"), "--set", "optimizer.lr=3", "--set", "ema_decay=null")
    done = run_ok(args[0], "many", *args[2:], cwd=many)
    report = json.loads((many / "ruined/report.json").read_text())
    assert report["kept_model"] == "start"
    assert report["top1"] == report["linear_probe_top1"]
    assert report["start_metric"] > report["trained_metric"]
    assert f"{report['start_metric']:.1%}" in report["kept_reason"]
    assert report["kept_reason"] in " ".join(done.stdout.split())
    assert "Which model was kept?" in (many / "ruined/report.html").read_text()
    assert report["calibration"]["fitted_on"] == "minival"
    assert report["calibration"]["ece_before"] is not None
    initial, saved = (load_file(many / name) for name in ("trunk.safetensors", "ruined/model.safetensors"))
    assert all(torch.equal(initial[name], saved[name]) for name in initial if name in saved)


def test_few_images_select_nothing_as_reported(weights_folder):
    run_ok(*train_args(weights_folder, "few"), cwd=weights_folder)
    report = json.loads((weights_folder / "few/report.json").read_text())
    assert (report["kept_model"], report["selected_on"]) == (None, None)
    assert mentions(report["kept_reason"], "last step")
    assert "minival: null" in (weights_folder / "few/recipe.yaml").read_text()
    assert any("fewer than 800" in note for note in report["notes"])


def test_unreadable_image_is_not_counted_as_sampling(tmp_path):
    """The probe trains on all 59 readable images: the curve ends there, without an extrapolated point at 60."""
    for name, color in COLORS.items():
        for number in range(21):
            paint(tmp_path / ("train" if number < 20 else "new") / name / f"{number}.jpg", color, number)
    train, val = load_dataset(tmp_path / "train"), load_dataset(tmp_path / "new")
    torch.manual_seed(0)
    model = create(SMALL, num_classes=0)
    Path(train.file(7)).write_bytes(b"no image")
    found = linear_probe(model, train, val, Preprocessing(image_size=32), key=Key.of(0))
    recipe = get_recipe("finetune").model_copy(update={"class_sampling": None, "seed": 0})
    curve = save_probe(found, SimpleNamespace(train=train), recipe, tmp_path)["data_scaling_curve"]
    assert curve["points"][-1]["num_images"] == 59
    assert curve["carried"] is None
    assert curve["forecast"]["num_images"] == 118


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A run whose probe used 48 of 72 training images: its folder, with stdout.txt."""
    folder = tmp_path_factory.mktemp("sampled")
    for name, color in COLORS.items():
        for number in range(30):
            paint(folder / "pictures" / name / f"{number}.jpg", color, number, px=32)
    torch.manual_seed(0)
    model = create(SMALL, num_classes=0)
    model_file.save(folder / "trunk.safetensors", model, preprocessing=Preprocessing(image_size=32))
    overrides = TrainOverrides(
        recipe="finetune", weights=str(folder / "trunk.safetensors"), epochs=1, batch_size=8, image_size=32,
        settings=("progressive.stages=1",),
    )  # fmt: skip
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(linear_probe_module, "MAX_IMAGES", 48)
        with Screen(verbose=True) as screen:
            train_and_report(
                overrides,
                DataConfig(str(folder / "pictures")),
                RunOptions(out=folder / "run", device="cpu", workers=0),
                on_result=ResultPrinter(screen, as_json=False),
            )
    (folder / "run/stdout.txt").write_text(output.getvalue())
    return folder / "run"


def test_data_scaling_curve_is_extrapolated_to_all_images(sampled):
    report = json.loads((sampled / "report.json").read_text())
    curve = report["data_scaling_curve"]
    assert report["num_train_images"] == 72
    assert curve["points"][-1]["num_images"] == 48
    assert (curve["carried"]["num_images"], curve["forecast"]["num_images"]) == (72, 144)
    page = (sampled / "report.html").read_text()
    assert page.count("a sample of the 72 training images") == 2  # in the summary, and above the plot


def test_size_of_the_probe_sample_is_reported_with_its_metrics(sampled):
    report = json.loads((sampled / "report.json").read_text())
    output = " ".join((sampled / "stdout.txt").read_text().split())
    assert (report["linear_probe_num_images"], report["linear_probe_num_available"]) == (48, 72)
    assert mentions(output, "Linear probe", "48", "72"), "before training"
    assert "trained on 48 of 72 training images" in output, "with the metrics in the end"
    page = (sampled / "report.html").read_text()
    assert "It was trained on 48 of 72 training images, the model on all." in page
    assert "; trained on 48 of 72 training images</small>" in page


def test_next_steps_are_printed(class_folders):
    """Three next steps are in the report, two are printed."""
    dataset = load_dataset(class_folders)
    right = Predictions(np.arange(48), dataset.labels, 9 * torch.eye(3)[dataset.labels.tolist()])
    recipe = {"model": "efficientnetv2_b0", "weights": "none", "eval_image_size": 64}
    limited = ReportMetadata("x", "val", num_train_images=48, epochs=2.0, recipe=recipe, stored_size=256.0)
    found = EvaluationResult(right, dataset, dataset.class_names, limited)
    assert len(found.to_json()["next_steps"]) == 3
    assert [line.startswith("Next: ") and "effnetv2 train x" in line for line in found.next_lines] == [True] * 2
    assert EvaluationResult(right, dataset, dataset.class_names, ReportMetadata("x", "test")).next_lines == []


def test_number_of_probed_images_is_printed(class_folders, capsys):
    dataset = load_dataset(class_folders)
    right = Predictions(np.arange(48), dataset.labels, 9 * torch.eye(3)[dataset.labels.tolist()])
    facts = ReportMetadata("pictures", "val", linear_probe_top1=0.5, linear_probe_macro_f1=0.5)
    for num_probed in (12, 48):
        probe = pd.DataFrame({"predicted_label": "red", "true_label": dataset.table["label"]}).set_index(
            pd.Index(dataset.paths)
        )
        inputs = ReportInputs(probe=probe.iloc[:num_probed])
        print_outcome(EvaluationResult(right, dataset, dataset.class_names, facts, inputs=inputs), Screen())
        output = " ".join(capsys.readouterr().out.split())
        assert ("initial weights, on 12 of these images: top-1 50.0%" in output) is (num_probed == 12)
        assert ("initial weights: top-1 50.0%" in output) is (num_probed == 48)
