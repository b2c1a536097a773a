"""The command line as its users meet it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pandas as pd
import pytest
import torch
import torchvision
import typer
from PIL import Image
from tests.command_line import TINY, effnetv2, effnetv2_fresh, killed_at
from tests.conftest import COLORS, paint
from tests.messages import mentions
from typer.testing import CliRunner

from efficientnetv2 import create, load
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.main import app
from efficientnetv2.cli.models import recipes
from efficientnetv2.models import model_file
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_summary import preprocessing_note
from efficientnetv2.utils.errors import InputError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the smallest network way on three colors, and its images."""
    place = tmp_path_factory.mktemp("trained")
    for name, color in COLORS.items():
        for number in range(16):
            paint(place / "pictures" / name / f"{name}_{number:02d}.jpg", color, number)
    words = ("train", place / "pictures", *TINY, "--epochs", "40", "--output", place / "run")
    done = effnetv2(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def test_models_lists_every_network_with_its_counts(tmp_path):
    listed = json.loads(effnetv2_fresh("models", "--json", cwd=tmp_path).stdout)
    assert len(listed) == 18
    b0 = next(row for row in listed if row["name"] == "efficientnetv2_b0")
    # google/automl's released B0, at 224 px
    assert b0 == {
        "name": "efficientnetv2_b0",
        "parameters": 7139704,
        "multiply_adds": 718086176,
        "eval_image_size": 224,
    }


def test_a_reader_who_has_enough_is_no_error(tmp_path):
    """As ``effnetv2 models --json | head -1``: nothing is said of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "efficientnetv2", "models", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert said == b""


def test_the_version_is_said(tmp_path):
    done = effnetv2("--version", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"effnetv2 {metadata.version('efficientnetv2')} (Python ")


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (("train", "--data_dir", "photos"), "effnetv2 train photos"),
        (("train", "--data-dir=photos"), "effnetv2 train photos"),
        (("predict", "model", "--source", "photos"), "effnetv2 predict MODEL photos"),
        (("predict", "photos", "--model", "runs/x"), "effnetv2 predict runs/x DATA"),
        (("train", "photos", "--gpus", "2"), "--device"),
        (("train", "photos", "--early-stopping"), "--set patience="),
        (("train", "photos", "--num-classes", "3"), "read from DATA"),
        (("train", "photos", "--batch", "--epochs", "3"), "--batch-size VALUE"),
        (("train", "photos", "imgsz=64"), "--image-size 64"),
    ],
)
def test_an_unknown_word_is_answered_with_ours(words, instead, tmp_path):
    done = effnetv2(*words, cwd=tmp_path)
    told = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2
    assert instead in told


def test_several_images_are_asked_for_as_a_folder_or_a_table(class_folders, tmp_path):
    """As the shell makes them of red/*.jpg, and as a pattern in quotes."""
    files = sorted((class_folders / "red").iterdir())[:3]
    model_file.save(tmp_path / "m.safetensors", create("efficientnetv2_b0", num_classes=2), class_names=("a", "b"))
    for data in (files, ["pictures/red/*.jpg"]):
        done = effnetv2("predict", "m.safetensors", *data, cwd=tmp_path)
        told = " ".join(done.stderr.replace("│", " ").split())
        assert done.returncode == 2
        assert "folder" in told
        assert "CSV" in told
        assert "did you mean" not in told


def test_nothing_is_promised_of_an_option_that_nobody_knows(tmp_path):
    """Nor of a recipe's field, where a command has no recipe."""
    for words in (("train", "photos", "--frobnicate", "1"), ("predict", "model", "photos", "--lr", "0.1")):
        told = effnetv2(*words, cwd=tmp_path).stderr
        assert f"{words[-2]}: no such option" in told
        assert "--set" not in told
        assert "--field" not in told


def test_what_a_notebook_hands_down_and_what_libraries_warn_of_stays_off_the_screen(class_folders, tmp_path):
    """In a fresh interpreter, for PyTorch reads once what it says. CUDA_HOME without a GPU makes it warn."""
    code = (
        "import sys, types; from efficientnetv2.cli import main as cli\n"
        "def talking(*_, **__):\n"
        "    import logging, warnings, torch.utils.cpp_extension, matplotlib.pyplot\n"
        "    matplotlib.pyplot.figure()\n"
        "    logging.getLogger('some_library').warning('a library warns')\n"
        "    warnings.warn('a library is deprecated', FutureWarning)\n"
        "    logging.getLogger('some_library').error('a library fails')\n"
        "fake = types.SimpleNamespace(run_check=talking, CheckOptions=lambda *_: None)\n"
        "sys.modules['efficientnetv2.workflows.check'] = fake\n"
        "sys.argv = ['effnetv2', 'check', 'pictures']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            "MPLBACKEND": "module://no_such_module",
            "CUDA_HOME": str(tmp_path),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "a library fails\n"


RAMP = "progressive.image_size={start: 64, end: 96}"


@pytest.mark.parametrize(
    ("words", "apart"),
    [
        (("--set", *RAMP.split()), "progressive.image_size={start:"),
        (
            ("--set", "progressive.image_size=start:64", "progressive.image_size=end:96"),
            "progressive.image_size=start:64",
        ),
        (("--set=progressive.stage_fractions=[3,", "2]"), "progressive.stage_fractions=[3,"),
        (("--set", RAMP, "more_photos"), None),
        (("--set", "epochs=2", "--set", "epochs=3", "more_photos"), None),
    ],
)  # fmt: skip
def test_a_value_that_the_shell_took_apart_is_to_be_quoted(words, apart, tmp_path):
    """Of {start: 64, end: 96} without quotes a shell makes several words, of {start:64,end:96} two."""
    done = effnetv2("train", "photos", *words, cwd=tmp_path)
    told = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2
    assert "unexpected extra argument" in told
    assert (f"The shell has split --set {apart}." in told) == (apart is not None)
    assert ('--set "progressive.image_size={start: 64, end: 128}"' in told) == (apart is not None)


def test_recipes_shows_the_stages_of_the_paper(tmp_path):
    shown = json.loads(effnetv2("recipes", "efficientnetv2_s_paper", "--json", cwd=tmp_path).stdout)
    assert [stage["image_size"] for stage in shown["stages"]] == [128, 185, 243, 300]
    assert set(shown["stages"][0]) == {
        "image_size", "dropout", "drop_path", "randaugment", "mixup_alpha", "cutmix_alpha", "cutout", "label_smoothing",
        "epochs",
    }  # fmt: skip
    assert shown["stages"][0]["epochs"] == 87.5
    people = effnetv2("recipes", "quick", cwd=tmp_path).stdout
    assert mentions(people, "effnetv2 train DATA --recipe quick")


@pytest.mark.parametrize(
    ("name", "shown", "hidden"),
    [
        ("quick", {"label smoothing": "0.1", "epochs": "auto", "randaugment": "off"}, {"cutout"}),
        ("transfer_paper", {"cutout": "0.5", "label smoothing": "0.1"}, set()),
        ("efficientnetv2_s_paper", {"epochs": "87.5"}, {"cutout"}),
    ],
)
def test_the_stages_list_what_the_recipe_uses_and_what_is_open(name, shown, hidden, monkeypatch):
    tables = []
    monkeypatch.setattr(Screen, "table", lambda self, title, headings, rows: tables.append((headings, rows)))
    recipes(name)
    ((headings, rows),) = tables
    first = dict(zip(headings, rows[0], strict=True))
    assert {heading: first.get(heading) for heading in shown} == shown
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(rows) + 1)], "as plan counts"
    assert not hidden & set(headings)


def test_recipes_shows_the_recipe_of_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(get_recipe("quick").to_yaml())
    shown = effnetv2("recipes", "run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("quick, as in run.")
    plain = [
        json.loads(effnetv2("recipes", one, "--json", cwd=tmp_path).stdout) for one in ("quick", "run/recipe.yaml")
    ]
    assert plain[0] == plain[1]


def test_recipes_says_what_the_fields_mean_and_what_a_recipe_makes_of_them(tmp_path):
    told = effnetv2("recipes", "finetune", "--field", "optimizer", cwd=tmp_path).stdout.splitlines()
    (row,) = [line for line in told if line.startswith("optimizer.head_lr_mult ")]
    assert mentions(row.split("  ")[-1], "learning rate", "classifier", "backbone")
    assert {"number above 0", "1", "5"} <= {cell.strip() for cell in row.split("  ")}
    (one,) = json.loads(effnetv2("recipes", "quick", "--field", "schedule.name", "--json", cwd=tmp_path).stdout)
    assert one | {"meaning": "..."} == {
        "name": "schedule.name",
        "values": "cosine, staircase or constant",
        "required": True,
        "default": None,
        "meaning": "...",
        "value": "cosine",
    }
    every = json.loads(effnetv2("recipes", "--fields", "--json", cwd=tmp_path).stdout)
    assert {"epochs", "optimizer.lr", "progressive.image_size", "augment.flip"} <= {one["name"] for one in every}
    assert "value" not in every[0]


def test_an_unknown_field_names_the_nearest(tmp_path):
    done = effnetv2("recipes", "--field", "optimizr", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "optimizr")
    assert mentions(done.stderr, "did you mean", "optimizer")


def verbs(command, words=()):
    """The words of each command that does something itself."""
    parts = getattr(command, "commands", {})
    yield from ([words] if not parts else (leaf for name in parts for leaf in verbs(parts[name], (*words, name))))


def test_help_teaches_by_example_and_fits_on_a_screen():
    """Of 80 x 50 characters; every option is in the help of all."""
    program = typer.main.get_command(app)
    for words in verbs(program):
        page = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output
        assert len(page.splitlines()) <= 50, words
        assert f"effnetv2 {' '.join(words)}" in page.partition("Examples:")[2].partition("╭")[0]
    everything = CliRunner().invoke(app, ["train", "--help-all"]).output
    assert "--min-images-per-class" in everything
    assert "--min-images-per-class" not in CliRunner().invoke(app, ["train", "--help"]).output


def test_a_run_leaves_what_the_design_says(trained):
    left = {path.name for path in (trained / "run").iterdir()}
    assert {
        "recipe.yaml", "dataset.csv", "metrics.jsonl", "log.txt", "tensorboard", "checkpoints",
        "model.safetensors", "report.json", "report.html",
    } <= left  # fmt: skip
    report = json.loads((trained / "run/report.json").read_text())
    assert {
        "top1", "macro_f1", "per_class", "majority_top1", "linear_probe_top1", "intervals", "evaluated_on",
        "selected_on", "wall_s", "images_per_s", "epochs", "seed", "versions",
    } <= set(report)  # fmt: skip
    assert report["evaluated_on"] == "val"
    assert 0 < report["data_wait_fraction"] < 1
    assert report["top1"] == 1.0, "three plain colors can be told apart"
    dataset = pd.read_csv(trained / "run/dataset.csv")
    assert len(dataset) == 48
    assert set(dataset["split"]) == {"train", "val"}
    assert any((trained / "run/tensorboard").iterdir())
    log = (trained / "run/log.txt").read_text(encoding="utf-8")
    assert mentions(log.splitlines()[-1], trained / "run", "effnetv2 predict", "IMAGES")


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_a_colleague_may_read_all_that_a_run_leaves(trained):
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in (trained / "run").rglob("*") if path.is_file()]
    assert {"model.safetensors", "report.json", "dataset.csv"} <= {path.name for path in files}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {oct(0o666 & ~umask)}


def test_evaluate_gives_the_runs_own_figures_back(trained, tmp_path):
    """The dataset of the run is a data set itself; its val part is what the report was of."""
    words = ("evaluate", trained / "run", trained / "run/dataset.csv", "--json", "--output", tmp_path / "evaluation")
    done = effnetv2(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told, report = json.loads(done.stdout), json.loads((trained / "run/report.json").read_text())
    assert (told["top1"], told["num_images"], told["confusion"]) == (
        report["top1"], report["num_images"], report["confusion"],
    )  # fmt: skip
    assert (tmp_path / "evaluation/report.html").exists()


def test_evaluate_refuses_labels_that_the_model_does_not_know(trained, tmp_path):
    shutil.copytree(trained / "pictures", tmp_path / "pictures")
    (tmp_path / "pictures/red").rename(tmp_path / "pictures/rot")
    done = effnetv2("evaluate", trained / "run", tmp_path / "pictures", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "rot", "class")
    assert mentions(done.stderr, "16", "label")
    assert "'red'" in done.stderr


def test_predict_writes_path_label_and_probabilities(trained, tmp_path):
    paint(tmp_path / "new/deep/one.png", COLORS["blue"], 77)
    paint(tmp_path / "new/two.jpg", COLORS["green"], 78)
    (tmp_path / "new/broken.jpg").write_bytes(b"")
    done = effnetv2("predict", trained / "run/model.safetensors", tmp_path / "new", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "broken.jpg" in done.stdout
    table = pd.read_csv(tmp_path / "predictions.csv").set_index("path")
    assert list(table.columns) == ["predicted_label", "probability", "blue", "green", "red"]
    assert table["predicted_label"].to_dict() == {"deep/one.png": "blue", "two.jpg": "green"}
    assert (table["probability"] == table[["blue", "green", "red"]].max(axis=1)).all()
    assert table[["blue", "green", "red"]].sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_predict_takes_a_single_picture_and_answers_programs(trained, tmp_path):
    file = paint(tmp_path / "one.jpg", COLORS["red"], 5)
    done = effnetv2("predict", trained / "run", file, "--json", cwd=tmp_path)
    (answer,) = json.loads(done.stdout)
    assert answer["predicted_label"] == "red"


@pytest.mark.parametrize("verb", ["predict", "evaluate", "train"])
def test_a_thousand_workers_are_lowered_and_told_why(verb, trained, tmp_path):
    """What trains is refused before anything runs, but after the workers have been counted."""
    answers = verb in ("predict", "evaluate")
    words = (trained / "run", trained / "pictures") if answers else (tmp_path,)
    done = effnetv2(verb, *words, "--workers", "1000", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == (0 if answers else 2), done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "instead of 1000" in line)
    assert re.match(r"Workers: \d+ instead of 1000 \(.*(core|free memory)", line)


def test_a_trained_model_is_a_start_for_another_run(trained, tmp_path):
    words = ("train", trained / "pictures", *TINY, "--weights", trained / "run", "--output", tmp_path / "run")
    done = effnetv2(*words, "--verbose", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Recipe: finetune" in done.stdout
    assert mentions(done.stdout, "classifier")
    told = json.loads((tmp_path / "run/report.json").read_text())
    assert mentions(done.stdout, f"{told['linear_probe_top1']:.1%}", "top-1", "weight")
    assert 0 <= told["linear_probe_macro_f1"] <= 1
    log = (tmp_path / "run/log.txt").read_text()
    assert log.index("Linear probe") < log.index("Training a custom architecture (4 stages)")


@pytest.fixture
def endless(trained, tmp_path):
    """A model file of finite weights that together go beyond float32."""
    network = load(trained / "run")
    for norm in (network.stem.norm, network.head.norm):
        torch.nn.init.constant_(norm.weight, 3e38)
    model_file.save(tmp_path / "endless.safetensors", network)
    return tmp_path / "endless.safetensors"


@pytest.mark.parametrize("verb", ["predict", "evaluate", "train"])
def test_weights_that_give_no_answers_are_refused_and_leave_nothing(verb, endless, trained, tmp_path):
    out = tmp_path / ("out.csv" if verb == "predict" else "out")
    words = {
        "predict": (endless, trained / "pictures"),
        "evaluate": (endless, trained / "pictures"),
        "train": (trained / "pictures", *TINY, "--weights", endless),
    }[verb]
    done = effnetv2(verb, *words, "--output", out, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert mentions(done.stderr, "NaN")
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_learning_rate_that_is_named_stays_and_one_that_is_not_follows_the_batch(trained, tmp_path):
    """finetune has 2e-4 for 32 images; AdamW's follows with the square root: 2e-4 / 2 for 8."""
    words = ("train", trained / "pictures", *TINY, "--weights", trained / "run", "--verbose", "--output")
    named = effnetv2(*words, tmp_path / "named", "--set", "optimizer.lr=3e-4", cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    assert "Learning rate" not in named.stdout
    assert "lr: 0.0003\n" in (tmp_path / "named/recipe.yaml").read_text()
    follows = effnetv2(*words, tmp_path / "follows", cwd=tmp_path)
    assert mentions(follows.stdout, "0.0002", "0.0001")
    assert "lr: 0.0001\n" in (tmp_path / "follows/recipe.yaml").read_text()


def test_a_size_at_evaluation_that_training_does_not_end_at_is_not_called_so():
    here = Preprocessing(image_size=96, crop_mode="squash")
    said = preprocessing_note(here, here, trained_px=128, eval_image_size=96)
    assert mentions(said, "96", "128")


def test_which_of_the_preprocessing_is_the_weights_is_said(trained, tmp_path):
    network = load(trained / "run")
    network.preprocessing = replace(
        network.preprocessing, crop_mode="center", crop_pct=0.875, image_size=64, mean=(0.1, 0.2, 0.3)
    )
    model_file.save(tmp_path / "cropped.safetensors", network)
    words = ("train", trained / "pictures", *TINY, "--weights", tmp_path / "cropped.safetensors", "--output")
    done = effnetv2(*words, tmp_path / "run", "--verbose", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "64", "interpolation")
    advice = "--crop-mode center --set crop_pct=0.875 --image-size 64"
    assert advice in done.stdout
    there = load(tmp_path / "run").preprocessing
    assert (there.crop_mode, there.image_size, there.mean) == ("squash", 64, (0.1, 0.2, 0.3))
    fixed = effnetv2(*words, tmp_path / "fixed", "--verbose", "--set", "eval_image_size=48", cwd=tmp_path)
    assert mentions(fixed.stdout, advice, "--set", "eval_image_size=64"), (
        "a size that the recipe names stays where it is"
    )
    followed = effnetv2(*words, tmp_path / "followed", "--verbose", *shlex.split(advice), cwd=tmp_path)
    assert followed.returncode == 0, followed.stderr
    assert "The weights had" not in followed.stdout
    assert load(tmp_path / "followed").preprocessing == network.preprocessing


def test_a_run_goes_on_without_the_weights_it_began_with(trained, tmp_path):
    """torchvision's file: its padding is in the run's recipe, its weights in the checkpoint."""
    torch.manual_seed(0)
    torch.save(torchvision.models.efficientnet_b0(num_classes=3).state_dict(), tmp_path / "theirs.pth")
    assert TINY[-2:] == ("--weights", "none")
    words = ("train", trained / "pictures", *TINY[2:-2], "--output", tmp_path / "run")
    killed_at(
        "efficientnetv2.evaluation.report:Report.write", *words, "--weights", tmp_path / "theirs.pth", cwd=tmp_path
    )
    begun = (tmp_path / "run/log.txt").read_text()
    assert mentions(begun, "efficientnet_b0", "1e-05")
    expected = load(tmp_path / "run").state_dict()
    (tmp_path / "theirs.pth").unlink()
    (tmp_path / "run/model.safetensors").unlink()
    last = max((tmp_path / "run/checkpoints").iterdir())
    last.unlink()
    resumed = effnetv2(*words, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert mentions(resumed.stdout, "from step")
    network = load(tmp_path / "run")
    assert network.architecture.padding == "symmetric"
    assert all(torch.equal(expected[name], tensor) for name, tensor in network.state_dict().items())


def test_a_run_stopped_before_its_first_checkpoint_begins_again_from_its_weights(trained, tmp_path):
    words = ("train", trained / "pictures", *TINY, "--weights", trained / "run", "--output", tmp_path / "run")
    assert effnetv2(*words, cwd=tmp_path).returncode == 0
    expected = load(tmp_path / "run").state_dict()
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run/model.safetensors").unlink()
    resumed = effnetv2(*words, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert mentions(resumed.stdout, "step 0")
    assert all(torch.equal(expected[name], tensor) for name, tensor in load(tmp_path / "run").state_dict().items())


def test_a_network_of_another_library_goes_the_whole_way(trained, tmp_path):
    words = ("train", trained / "pictures", "--model", "torchvision:resnet18", *TINY[2:], "--weights", "auto")
    done = effnetv2(*words, "--output", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "torchvision:resnet18", "weight", "training")
    evaluated = effnetv2("evaluate", tmp_path / "run", trained / "pictures", "--json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["num_images"] == 48


def test_without_weights_the_way_to_get_some_is_said(trained, tmp_path):
    words = (*TINY, "--model", "efficientnetv2_b1", "--weights", "auto")  # of which none come with the repository
    done = effnetv2("train", trained / "pictures", *words, "--verbose", "--output", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "weights", "from scratch")
    assert "efficientnetv2_b1.in1k" in done.stdout
    assert mentions(done.stdout, "quick", "from scratch")
    assert "Weights: none" in (tmp_path / "run/log.txt").read_text()


def test_minutes_decide_the_steps_and_a_resumed_run_takes_the_same(trained, tmp_path):
    """The plan of the steps is in the folder; without its checkpoints the run takes them again from the first."""
    words = [word for word in TINY if word not in ("--epochs", "1")]
    done = effnetv2(
        "train",
        trained / "pictures",
        *words,
        "--minutes",
        "0.5",
        "--verbose",
        "--output",
        tmp_path / "run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    epochs = json.loads((tmp_path / "run/report.json").read_text())["epochs"]
    log = (tmp_path / "run/log.txt").read_text()
    assert re.search(r"Epochs: \S+, what fits into 0.5 minutes", log)
    assert mentions(log, f"{epochs:g}", "epochs")
    beginning = json.loads((tmp_path / "run/run.json").read_text())
    assert beginning["time_limit"]["seconds"] == pytest.approx(30)
    *_, (_, _, steps) = beginning["revisions"]
    assert epochs == pytest.approx(8 * steps / 39, abs=0.01), "39 of 48 images train, 8 in each step"
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == steps
    shutil.rmtree(tmp_path / "run/checkpoints", ignore_errors=True)
    for name in ("report.json", "model.safetensors"):  # as a run that was stopped
        (tmp_path / "run" / name).unlink()
    words = ("train", trained / "pictures", "--output", tmp_path / "run", "--resume", "--minutes", "5")
    done = effnetv2(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "--minutes", "0.5")
    assert json.loads((tmp_path / "run/report.json").read_text())["epochs"] == epochs


def test_json_keeps_stdout_for_the_answer(trained, tmp_path):
    done = effnetv2("train", trained / "pictures", *TINY, "--output", tmp_path / "run", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["evaluated_on"] == "val"
    assert "held out" in done.stderr


def test_evaluating_on_training_pictures_is_called_optimistic(trained, tmp_path):
    done = effnetv2("evaluate", trained / "run", trained / "pictures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "39", "48")
    assert mentions(done.stdout, "39", "trained")


def test_evaluate_takes_pictures_of_one_class_and_merges_spellings_on_request(trained, tmp_path):
    paint(tmp_path / "some/RED/one.jpg", COLORS["red"], 91)
    refused = effnetv2("evaluate", trained / "run", tmp_path / "some", cwd=tmp_path)
    assert refused.returncode == 2
    merged = effnetv2("evaluate", trained / "run", tmp_path / "some", "--labels", "casefold", "--json", cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr
    assert json.loads(merged.stdout)["top1"] == 1.0


def test_weights_decide_the_network_and_refuse_another(trained, tmp_path):
    network = create("efficientnetv2_b0", num_classes=3)
    model_file.save(tmp_path / "b0.safetensors", network, class_names=("blue", "green", "red"))
    words = ("train", trained / "pictures", *TINY[2:], "--weights", "b0.safetensors", "--output", tmp_path / "run")
    done = effnetv2(*words, "--verbose", cwd=tmp_path)
    assert mentions(done.stdout, "efficientnetv2_b0", "weight")
    other = effnetv2(*words[:-1], tmp_path / "other", "--model", "efficientnetv2_b1", cwd=tmp_path)
    assert other.returncode == 2
    assert mentions(other.stderr, "efficientnetv2_b0", "efficientnetv2_b1")
    assert not (tmp_path / "other").exists(), "what is refused leaves nothing behind"


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_model_for_other_channels_is_refused_by_its_name(verb, trained, tmp_path):
    network = create("efficientnetv2_b0", num_classes=3, in_channels=4)
    model_file.save(tmp_path / "four.safetensors", network, class_names=("blue", "green", "red"))
    done = effnetv2(verb, "four.safetensors", trained / "pictures", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "four.safetensors", "4", "channel")


def test_gray_pictures_are_counted_before_training(trained, tmp_path):
    shutil.copytree(trained / "pictures", tmp_path / "pictures")
    for file in (tmp_path / "pictures/red").iterdir():
        Image.open(file).convert("L").save(file)
    done = effnetv2("train", tmp_path / "pictures", *TINY, "--output", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "RGB", "16", "channel")


def test_odd_class_names_go_the_whole_way(tmp_path):
    names = ["[/red]", "path", "ärgerlich, sehr", ":car:"]
    colors = [*COLORS.values(), (220, 220, 60)]
    rows = []
    for name, color in zip(names, colors, strict=True):
        for number in range(10):
            rows.append({"path": f"p/{len(rows)}.jpg", "label": name})
            paint(tmp_path / rows[-1]["path"], color, number)
    pd.DataFrame(rows).to_csv(tmp_path / "odd.csv", index=False)
    done = effnetv2("train", tmp_path / "odd.csv", *TINY, "--output", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in names)
    done = effnetv2("predict", tmp_path / "run", tmp_path / "odd.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert list(table.columns) == [
        "path",
        "predicted_label",
        "probability",
        ":car:",
        "[/red]",
        "probability of path",
        "ärgerlich, sehr",
    ]


def test_a_batch_larger_than_the_data_set_trains(trained, tmp_path):
    words = ("train", trained / "pictures", *TINY, "--epochs", "4", "--set", "batch_size=64")
    done = effnetv2(*words, "--output", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_each_long_phase_says_a_line_before_it_begins(class_folders, tmp_path, monkeypatch):
    """Where nobody sees a bar, as under nohup, it would look like hanging."""

    def ended(*_, **__):
        raise InputError("as far as the measurement")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("efficientnetv2.training.length_by_time.measure_timings", ended)
    length = TINY.index("--epochs")
    words = ["train", class_folders, *TINY[:length], *TINY[length + 2 :], "--minutes", "2", "--output", "run"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, done.output
    said = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in said] == ["Data", "Split", "Weights", "Model"]
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--verbose")])
    said = done.stdout.splitlines()
    phases = ["Checking 48 images", "Split: ", "Measuring: some steps of 2 image sizes, "]
    places = [next(at for at, line in enumerate(said) if line.startswith(phase)) for phase in phases]
    assert places == sorted(places)


def test_five_lines_come_before_the_first_step_and_the_log_has_the_rest(class_folders, tmp_path):
    words = ("train", class_folders, *TINY, "--output")
    brief = effnetv2(*words, "run", cwd=tmp_path)
    assert brief.returncode == 0, brief.stderr
    said, log = brief.stdout.splitlines(), (tmp_path / "run/log.txt").read_text()
    first = next(at for at, line in enumerate(said) if line.startswith(("epoch ", "Evaluating on ")))
    topics = [line.partition(":")[0] for line in said[:first]]
    assert topics == ["Data", "Split", "Weights", "Model", "Length"]
    assert mentions(said[0], "48", "3", "image", "class")
    assert "32 to 64 px" in said[3]
    assert "1 epoch" in said[4]
    whole = effnetv2(*words, "whole", "--verbose", cwd=tmp_path).stdout.splitlines()
    first = next(at for at, line in enumerate(whole) if line.startswith(("epoch ", "Evaluating on ")))
    assert set(topics) < {line.partition(":")[0] for line in whole[:first]}
    for line in whole[:first]:
        line = line.replace("whole/log.txt", "run/log.txt")
        assert line.partition("--set")[0] in log.replace("`", "")
