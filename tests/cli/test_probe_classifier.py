"""A run whose classifier begins as the linear probe's: before any training it answers as the probe does."""

from __future__ import annotations

import contextlib
import io
import json
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
from tests.command_line import TINY, effnetv2, killed_at
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
from efficientnetv2.inference import linear_probe as room
from efficientnetv2.inference.linear_probe import ProbeOptions, linear_probe, to_linear_layer
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
# Nothing learns (the rate is as good as 0) and nothing is averaged: the model file is what the run began with.
STILL = (*TINY[2:], "--set", "optimizer.lr=1e-12", "--set", "optimizer.weight_decay=0", "--recipe", "finetune")


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_layer_is_scikit_learns_answer(classes):
    draw = np.random.default_rng(0)
    labels = np.arange(90) % classes
    vectors = (draw.normal(size=(90, 5)) * np.arange(1, 6) + labels[:, None]).astype(np.float32)
    learnt = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(vectors, labels)
    weight, bias = to_linear_layer(learnt, classes)
    ours = torch.softmax(torch.from_numpy(vectors) @ weight.T + bias, dim=1)
    np.testing.assert_allclose(ours, learnt.predict_proba(vectors), atol=1e-5)


def test_a_class_that_the_probe_has_not_seen_is_no_likelier_than_any():
    draw = np.random.default_rng(0)
    labels = np.array([0, 2, 3])[np.arange(90) % 3]
    vectors = (draw.normal(size=(90, 5)) + labels[:, None]).astype(np.float32)
    learnt = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(vectors, labels)
    weight, bias = to_linear_layer(learnt, 4)
    assert weight.shape == (4, 5)
    asked = torch.from_numpy(vectors * 100)  # far from the mean too
    logits = asked @ weight.T + bias
    assert (logits[:, 1] <= logits[:, [0, 2, 3]].max(dim=1).values).all()
    least = [0, 2, 3][int(bias[[0, 2, 3]].argmin())]
    torch.testing.assert_close(logits[:, 1], logits[:, least])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three classes of 16 images, and weights of a small network."""
    place = tmp_path_factory.mktemp("probe")
    for name, color in COLORS.items():
        for number in range(16):
            paint(place / "pictures" / name / f"{name}_{number:02d}.jpg", color, number)
    torch.manual_seed(0)
    network = create(SMALL, num_classes=0)
    model_file.save(place / "trunk.safetensors", network, preprocessing=Preprocessing(image_size=32), class_names=())
    return place


def words(place, out):
    return ("train", "pictures", *STILL, "--verbose", "--weights", "trunk.safetensors", "--output", out)


def test_untrained_it_answers_as_the_probe_does(place):
    done = effnetv2(*words(place, "probe"), "--set", "head_init=linear_probe", cwd=place)
    assert done.returncode == 0, done.stderr
    report = json.loads((place / "probe/report.json").read_text())
    assert report["top1"] == report["linear_probe_top1"]
    assert mentions(done.stdout, "trunk.safetensors", "3", "classifier")
    assert "Linear probe on the initial weights" in done.stdout
    assert load_file(place / "probe/model.safetensors")["classifier.weight"].abs().max() > 0
    fresh = effnetv2(*words(place, "fresh"), "--set", "head_init=random", cwd=place)
    assert fresh.returncode == 0, fresh.stderr
    assert mentions(fresh.stdout, "trunk.safetensors", "3", "classifier")
    assert "Linear probe on the initial weights" in fresh.stdout
    assert "linear probe." not in fresh.stdout
    assert load_file(place / "fresh/model.safetensors")["classifier.weight"].abs().max() < 1e-6


def test_killed_before_any_checkpoint_it_begins_with_the_probe_again(place):
    line = (*words(place, "killed"), "--set", "head_init=linear_probe")
    killed_at("efficientnetv2.training.trainer:Trainer._train", *line, cwd=place)
    again = effnetv2("train", "pictures", "--output", "killed", "--resume", "--device", "cpu", cwd=place)
    assert again.returncode == 0, again.stderr
    whole = effnetv2(*words(place, "whole"), "--set", "head_init=linear_probe", cwd=place)
    assert whole.returncode == 0, whole.stderr
    killed, never = (load_file(place / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(killed[name], never[name]) for name in never)


def test_from_scratch_there_is_none(place):
    done = effnetv2(
        "train", "pictures", *TINY, "--weights", "none", "--recipe", "finetune", "--set", "head_init=linear_probe",
        "--set",
        "optimizer.gradual_unfreeze=0.5", "--output", "none", cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "head_init: random" in (place / "none/recipe.yaml").read_text()
    assert "unfreeze: null" in (place / "none/recipe.yaml").read_text()


def test_finetune_begins_so_unasked_and_keeps_the_statistics(place):
    done = effnetv2(*words(place, "unasked"), cwd=place)
    assert done.returncode == 0, done.stderr
    recipe = yaml.safe_load((place / "unasked/recipe.yaml").read_text())
    assert (recipe["head_init"], recipe["freeze_bn"]) == ("linear_probe", True)
    assert mentions(done.stdout, "freeze_bn")
    report = json.loads((place / "unasked/report.json").read_text())
    assert report["top1"] == report["linear_probe_top1"]
    given, kept = (load_file(place / name) for name in ("trunk.safetensors", "unasked/model.safetensors"))
    same = [name for name in given if name.endswith(("running_mean", "running_var"))]
    assert same
    assert all(torch.equal(given[name], kept[name]) for name in same)


@pytest.fixture(scope="module")
def many(place):
    """Three classes of 340 images: enough that some are set aside unasked."""
    for name, color in COLORS.items():
        for number in range(340):
            paint(place / "many" / name / f"{name}_{number:03d}.jpg", color, number, px=32)
    return place


def test_training_that_ruins_the_weights_leaves_the_probe(many):
    """The rate is far too high. The file has the probe, its temperature was fitted, and report and screen say so."""
    line = (*words(many, "ruined"), "--set", "optimizer.lr=3", "--set", "ema_decay=null")
    done = effnetv2(line[0], "many", *line[2:], cwd=many)
    assert done.returncode == 0, done.stderr
    report = json.loads((many / "ruined/report.json").read_text())
    assert report["kept_model"] == "start"
    assert report["top1"] == report["linear_probe_top1"]
    assert report["start_metric"] > report["trained_metric"]
    assert f"{report['start_metric']:.1%}" in report["kept_reason"]
    assert report["kept_reason"] in " ".join(done.stdout.split())
    assert "Which model was kept?" in (many / "ruined/report.html").read_text()
    assert report["calibration"]["fitted_on"] == "minival"
    assert report["calibration"]["ece_before"] is not None
    given, kept = (load_file(many / name) for name in ("trunk.safetensors", "ruined/model.safetensors"))
    assert all(torch.equal(given[name], kept[name]) for name in given if name in kept)


def test_of_few_pictures_nothing_chooses_and_the_report_says_so(place):
    done = effnetv2(*words(place, "few"), cwd=place)
    assert done.returncode == 0, done.stderr
    report = json.loads((place / "few/report.json").read_text())
    assert (report["kept_model"], report["selected_on"]) == (None, None)
    assert mentions(report["kept_reason"], "last step")
    assert "minival: null" in (place / "few/recipe.yaml").read_text()
    assert any("too few" in note for note in report["notes"])


def test_a_picture_that_cannot_be_read_makes_no_sample_of_the_others(tmp_path):
    """The 59 that the probe learnt from are all there are: the curve ends there, and nothing is carried on to 60."""
    for name, color in COLORS.items():
        for number in range(21):
            paint(tmp_path / ("train" if number < 20 else "asked") / name / f"{number}.jpg", color, number)
    train, val = load_dataset(tmp_path / "train"), load_dataset(tmp_path / "asked")
    torch.manual_seed(0)
    network = create(SMALL, num_classes=0)
    Path(train.file(7)).write_bytes(b"no picture")
    found = linear_probe(network, train, val, Preprocessing(image_size=32), ProbeOptions(Key.of(0)))
    recipe = get_recipe("finetune").model_copy(update={"class_sampling": None, "seed": 0})
    curve = save_probe(found, SimpleNamespace(train=train), recipe, tmp_path)["data_scaling_curve"]
    assert curve["points"][-1]["num_images"] == 59
    assert curve["carried"] is None
    assert curve["forecast"]["num_images"] == 118


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A run whose probe looked at 48 of 72 training images: its folder, and what it said."""
    place = tmp_path_factory.mktemp("sampled")
    for name, color in COLORS.items():
        for number in range(30):
            paint(place / "pictures" / name / f"{number}.jpg", color, number, px=32)
    torch.manual_seed(0)
    network = create(SMALL, num_classes=0)
    model_file.save(place / "trunk.safetensors", network, preprocessing=Preprocessing(image_size=32))
    words = TrainOverrides(
        recipe="finetune", weights=str(place / "trunk.safetensors"), epochs=1, batch_size=8, image_size=32,
        settings=("progressive.stages=1",),
    )  # fmt: skip
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(room, "_MAX_IMAGES", 48)
        with Screen(verbose=True) as screen:
            train_and_report(
                words,
                DataConfig(str(place / "pictures")),
                RunOptions(out=place / "run", device="cpu", workers=0),
                on_result=ResultPrinter(screen, as_json=False),
            )
    return place / "run", " ".join(said.getvalue().split())


def test_more_labels_are_more_than_there_are_though_the_probe_learnt_from_a_sample(sampled):
    run, _ = sampled
    report = json.loads((run / "report.json").read_text())
    curve = report["data_scaling_curve"]
    assert report["num_train_images"] == 72
    assert curve["points"][-1]["num_images"] == 48
    assert (curve["carried"]["num_images"], curve["forecast"]["num_images"]) == (72, 144)
    page = (run / "report.html").read_text()
    assert page.count("a sample of the 72 training images") == 2  # in the answers, and above the drawing


def test_from_how_few_pictures_the_probe_learnt_is_said_wherever_its_figures_are(sampled):
    run, said = sampled
    report = json.loads((run / "report.json").read_text())
    assert (report["linear_probe_num_images"], report["linear_probe_num_available"]) == (48, 72)
    assert mentions(said, "Linear probe", "48", "72"), "before training"
    assert "trained on 48 of 72 training images" in said, "with the metrics in the end"
    page = (run / "report.html").read_text()
    assert "It was trained on 48 of 72 training images, the model on all." in page
    assert "; trained on 48 of 72 training images</small>" in page


def test_the_first_next_steps_are_lines_of_the_screen(class_folders):
    """Three steps are in the report, two on the screen; the use of the model has a line of its own."""
    dataset = load_dataset(class_folders)
    right = Predictions(np.arange(48), dataset.labels, 9 * torch.eye(3)[dataset.labels.tolist()])
    recipe = {"model": "efficientnetv2_b0", "weights": "none", "eval_image_size": 64}
    limited = ReportMetadata("x", "val", num_train_images=48, epochs=2.0, recipe=recipe, stored_size=256.0)
    found = EvaluationResult(right, dataset, dataset.class_names, limited)
    assert len(found.to_json()["next_steps"]) == 3
    assert [line.startswith("Next: ") and "effnetv2 train x" in line for line in found.next_lines] == [True] * 2
    assert EvaluationResult(right, dataset, dataset.class_names, ReportMetadata("x", "test")).next_lines == []


def test_of_how_few_pictures_the_probes_figures_are_stands_on_the_screen(class_folders, capsys):
    dataset = load_dataset(class_folders)
    right = Predictions(np.arange(48), dataset.labels, 9 * torch.eye(3)[dataset.labels.tolist()])
    facts = ReportMetadata("pictures", "val", linear_probe_top1=0.5, linear_probe_macro_f1=0.5)
    for answered in (12, 48):
        probe = pd.DataFrame({"predicted_label": "red", "true_label": dataset.table["label"]}).set_index(
            pd.Index(dataset.paths)
        )
        inputs = ReportInputs(probe=probe.iloc[:answered])
        print_outcome(EvaluationResult(right, dataset, dataset.class_names, facts, inputs=inputs), Screen())
        said = " ".join(capsys.readouterr().out.split())
        assert ("initial weights, on 12 of these images: top-1 50.0%" in said) is (answered == 12)
        assert ("initial weights: top-1 50.0%" in said) is (answered == 48)
