"""Commands from a user's view: what they print, write and refuse."""

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
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torchvision
import typer
from PIL import Image
from tests.command_line import TINY, effnetv2, effnetv2_fresh, killed_at, run_json, run_ok, run_refused
from tests.conftest import COLORS, paint
from tests.messages import mentions
from tests.recipes import with_overrides
from typer.core import TyperGroup
from typer.testing import CliRunner

from efficientnetv2 import create, load
from efficientnetv2.architectures.registry import NAMES
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.main import app
from efficientnetv2.cli.models import recipes
from efficientnetv2.models import model_file
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.startup_notes import preprocessing_note
from efficientnetv2.utils.errors import InputError


@pytest.fixture(scope="module")
def trained(painted_folders, tmp_path_factory):
    """A well-trained run of the smallest model on three colors, and its images."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(painted_folders, folder / "pictures")
    run_ok("train", folder / "pictures", *TINY, "--epochs", "40", "--output", folder / "run", cwd=folder)
    return folder


def test_models_lists_all_architectures_with_their_counts(tmp_path):
    rows = json.loads(effnetv2_fresh("models", "--json", cwd=tmp_path).stdout)
    assert len(rows) == len(NAMES)
    b0 = next(row for row in rows if row["name"] == "efficientnetv2_b0")
    # google/automl's released B0, at 224 px
    assert b0 == {
        "name": "efficientnetv2_b0",
        "parameters": 7139704,
        "multiply_adds": 718086176,
        "eval_image_size": 224,
    }


def test_closed_stdout_is_not_an_error(tmp_path):
    """As in ``effnetv2 models --json | head -1``: nothing is printed to stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "efficientnetv2", "models", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert stderr == b""


def test_work_goes_on_after_the_reader_of_the_output_has_ended(class_folders, tmp_path):
    """As in ``effnetv2 check photos | head -1``: the report is written nevertheless."""
    process = subprocess.Popen(
        [sys.executable, "-m", "efficientnetv2", "check", class_folders, "--output", "report"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    process.stdout.close()
    stderr = process.communicate()[1]
    assert (process.returncode, stderr) == (0, b"")
    assert list((tmp_path / "report").glob("*.html"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_work_goes_on_with_a_full_disk_under_the_output(class_folders, tmp_path, options):
    """As in ``effnetv2 check photos > log``, where the disk of the log is full."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "efficientnetv2", "check", class_folders, "--output", "report", *options],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert mentions(done.stderr, "stdout", "No space left on device")
    assert list((tmp_path / "report").glob("*.html"))


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes streams")
def test_work_goes_on_without_an_output_for_the_json(class_folders, tmp_path):
    words = [sys.executable, "-m", "efficientnetv2", "check", str(class_folders), "--output", "report", "--json"]
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(words)} >&-"], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "report").glob("*.html"))


def test_windows_does_not_expand_patterns_of_shards(monkeypatch):
    """Its shells do not, typer does, and a quoted pattern would be several arguments."""
    given = {}
    monkeypatch.setattr(TyperGroup, "main", lambda self, *words, **more: given.update(more))
    with pytest.raises(SystemExit):
        typer.main.get_command(app).main(["train", "train-*.tar"])
    assert given["windows_expand_args"] is False


def test_compare_expands_a_pattern_of_runs(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert "one" in run_refused("compare", "runs/*", cwd=tmp_path).stderr


def test_flag_with_a_value_is_refused_with_the_flag_alone(tmp_path):
    done = run_refused("train", "photos", "--resume=True", cwd=tmp_path)
    assert mentions(done.stderr, "--resume: it takes no value", "Write it alone: --resume")


def test_version_is_printed(tmp_path):
    done = run_ok("--version", cwd=tmp_path)
    assert done.stdout.startswith(f"effnetv2 {metadata.version('efficientnetv2')} (Python ")


@pytest.mark.parametrize(
    ("args", "instead"),
    [
        (("train", "--data_dir", "photos"), "effnetv2 train photos"),
        (("train", "--data-dir=photos"), "effnetv2 train photos"),
        (("predict", "photos", "--model", "runs/x"), "effnetv2 predict runs/x DATA"),
        (("train", "photos", "--batch", "--epochs", "3"), "--batch-size VALUE"),
    ],
)
def test_argument_of_another_tool_names_ours(args, instead, tmp_path):
    done = effnetv2(*args, cwd=tmp_path)
    output = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2
    assert instead in output


def test_several_images_need_a_folder_or_a_table(class_folders, tmp_path):
    """Both as expanded by a shell from red/*.jpg, and as a quoted pattern."""
    files = sorted((class_folders / "red").iterdir())[:3]
    model_file.save(tmp_path / "m.safetensors", create("efficientnetv2_b0", num_classes=2), class_names=("a", "b"))
    for data in (files, ["pictures/red/*.jpg"]):
        done = effnetv2("predict", "m.safetensors", *data, cwd=tmp_path)
        output = " ".join(done.stderr.replace("│", " ").split())
        assert done.returncode == 2
        assert "folder" in output
        assert "CSV" in output
        assert "did you mean" not in output


def test_unknown_option_suggests_no_field(tmp_path):
    """Nor does a command without a recipe suggest a recipe field."""
    for args in (("train", "photos", "--frobnicate", "1"), ("predict", "model", "photos", "--lr", "0.1")):
        output = effnetv2(*args, cwd=tmp_path).stderr
        assert f"{args[-2]}: no such option" in output
        assert "--set" not in output
        assert "--field" not in output


def test_warnings_of_libraries_and_notebook_backends_are_hidden(class_folders, tmp_path):
    """In a fresh interpreter, because PyTorch reads its log level once. CUDA_HOME without a GPU causes a warning."""
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
        env=os.environ
        | {"MPLBACKEND": "module://no_such_module", "CUDA_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "a library fails\n"


RAMP = "progressive.image_size={start: 64, end: 96}"


@pytest.mark.parametrize(
    ("args", "split_part"),
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
def test_value_split_by_the_shell_must_be_quoted(args, split_part, tmp_path):
    """Without quotes a shell splits {start: 64, end: 96} at its spaces, and {start:64,end:96} by brace expansion."""
    done = effnetv2("train", "photos", *args, cwd=tmp_path)
    output = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2
    assert "unexpected extra argument" in output
    assert (f"The shell has split --set {split_part}." in output) == (split_part is not None)
    assert ('--set "progressive.image_size={start: 64, end: 128}"' in output) == (split_part is not None)


def test_shards_listed_by_the_shell_must_be_quoted(tmp_path):
    done = effnetv2("train", "set/train-0.tar", "set/train-1.tar", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "shards", "quotes")


def test_recipes_prints_the_stages_of_the_paper(tmp_path):
    shown = json.loads(effnetv2("recipes", "efficientnetv2_s_paper", "--json", cwd=tmp_path).stdout)
    assert [stage["image_size"] for stage in shown["stages"]] == [128, 185, 243, 300]
    assert set(shown["stages"][0]) == {
        "image_size", "dropout", "drop_path", "randaugment", "mixup_alpha", "cutmix_alpha", "cutout", "label_smoothing",
        "epochs",
    }  # fmt: skip
    assert shown["stages"][0]["epochs"] == 87.5
    text = effnetv2("recipes", "quick", cwd=tmp_path).stdout
    assert mentions(text, "effnetv2 train DATA --recipe quick")


@pytest.mark.parametrize(
    ("name", "shown", "hidden"),
    [
        ("quick", {"label smoothing": "0.1", "epochs": "auto", "randaugment": "off"}, {"cutout"}),
        ("transfer_paper", {"cutout": "0.5", "label smoothing": "0.1"}, set()),
        ("efficientnetv2_s_paper", {"epochs": "87.5"}, {"cutout"}),
    ],
)
def test_stage_table_has_only_columns_that_the_recipe_uses(name, shown, hidden, monkeypatch):
    tables = []
    monkeypatch.setattr(Screen, "table", lambda self, title, headings, rows: tables.append((headings, rows)))
    recipes(name)
    ((headings, rows),) = tables
    first = dict(zip(headings, rows[0], strict=True))
    assert {heading: first.get(heading) for heading in shown} == shown
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(rows) + 1)], (
        "stages count from 1, as in a dry run"
    )
    assert not hidden & set(headings)


def test_recipes_prints_the_recipe_of_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(get_recipe("quick").to_yaml())
    shown = run_ok("recipes", "run", cwd=tmp_path)
    assert shown.stdout.startswith("quick, as in run.")
    plain = [
        json.loads(effnetv2("recipes", one, "--json", cwd=tmp_path).stdout) for one in ("quick", "run/recipe.yaml")
    ]
    assert plain[0] == plain[1]


def test_recipes_names_the_last_size_of_a_ramp_that_grows_at_every_step(tmp_path):
    """The last of four stages begins before it."""
    recipe = with_overrides(get_recipe("quick"), ["progressive.image_size={start: 32, end: 96, continuous: true}"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    text = effnetv2("recipes", "recipe.yaml", cwd=tmp_path).stdout
    assert mentions(text.partition("\nname:")[0], "96 px")


def test_recipes_explains_fields_and_their_values(tmp_path):
    lines = effnetv2("recipes", "finetune", "--field", "optimizer", cwd=tmp_path).stdout.splitlines()
    (row,) = [line for line in lines if line.startswith("optimizer.head_lr_mult ")]
    assert mentions(row.split("  ")[-1], "learning rate", "classifier", "backbone")
    assert {"number above 0", "1", "5"} <= {cell.strip() for cell in row.split("  ")}
    (field,) = json.loads(effnetv2("recipes", "quick", "--field", "schedule.name", "--json", cwd=tmp_path).stdout)
    assert field | {"meaning": "..."} == {
        "name": "schedule.name",
        "values": "cosine, staircase or constant",
        "required": True,
        "default": None,
        "meaning": "...",
        "value": "cosine",
    }
    every = json.loads(effnetv2("recipes", "--fields", "--json", cwd=tmp_path).stdout)
    assert {"epochs", "optimizer.lr", "progressive.image_size", "augment.flip"} <= {field["name"] for field in every}
    assert "value" not in every[0]


def leaf_commands(command, names=()):
    """The names of each command that is not a group, with its groups first."""
    parts = getattr(command, "commands", {})
    yield from ([names] if not parts else (n for name in parts for n in leaf_commands(parts[name], (*names, name))))


def test_help_has_examples_and_fits_on_a_screen():
    """The screen has 80 x 50 characters; ``--help-all`` has every option."""
    program = typer.main.get_command(app)
    for args in leaf_commands(program):
        page = CliRunner().invoke(app, [*args, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output
        assert len(page.splitlines()) <= 50, args
        assert f"effnetv2 {' '.join(args)}" in page.partition("Examples:")[2].partition("╭")[0]
    everything = CliRunner().invoke(app, ["train", "--help-all"]).output
    assert "--min-images-per-class" in everything
    assert "--min-images-per-class" not in CliRunner().invoke(app, ["train", "--help"]).output


def test_run_folder_has_the_documented_files(trained):
    files = {path.name for path in (trained / "run").iterdir()}
    assert {
        "recipe.yaml", "dataset.csv", "metrics.jsonl", "log.txt", "tensorboard", "checkpoints",
        "model.safetensors", "report.json", "report.html",
    } <= files  # fmt: skip
    report = json.loads((trained / "run/report.json").read_text())
    assert {
        "top1", "macro_f1", "per_class", "majority_top1", "linear_probe_top1", "intervals", "evaluated_on",
        "selected_on", "wall_s", "images_per_s", "epochs", "seed", "versions",
    } <= set(report)  # fmt: skip
    assert report["evaluated_on"] == "val"
    assert 0 < report["data_wait_fraction"] < 1
    assert report["top1"] == 1.0, "three plain colors are separable"
    dataset = pd.read_csv(trained / "run/dataset.csv")
    assert len(dataset) == 48
    assert set(dataset["split"]) == {"train", "val"}
    assert any((trained / "run/tensorboard").iterdir())
    log = (trained / "run/log.txt").read_text(encoding="utf-8")
    assert mentions(log.splitlines()[-1], trained / "run", "effnetv2 predict", "IMAGES")


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_run_files_follow_the_umask(trained):
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in (trained / "run").rglob("*") if path.is_file()]
    assert {"model.safetensors", "report.json", "dataset.csv"} <= {path.name for path in files}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {oct(0o666 & ~umask)}


def test_evaluate_reproduces_the_metrics_of_a_run(trained, tmp_path):
    """dataset.csv of the run is a dataset; the report was computed on its val split."""
    args = ("evaluate", trained / "run", trained / "run/dataset.csv", "--json", "--output", tmp_path / "evaluation")
    done = run_ok(*args, cwd=tmp_path)
    result, report = json.loads(done.stdout), json.loads((trained / "run/report.json").read_text())
    assert (result["top1"], result["num_images"], result["confusion"]) == (
        report["top1"], report["num_images"], report["confusion"],
    )  # fmt: skip
    assert (tmp_path / "evaluation/report.html").exists()


def test_evaluate_refuses_unknown_labels(trained, tmp_path):
    shutil.copytree(trained / "pictures", tmp_path / "pictures")
    (tmp_path / "pictures/red").rename(tmp_path / "pictures/rot")
    done = run_refused("evaluate", trained / "run", tmp_path / "pictures", cwd=tmp_path)
    assert mentions(done.stderr, "rot", "class")
    assert mentions(done.stderr, "16", "label")
    assert "'red'" in done.stderr


def test_evaluate_names_the_folder_of_the_classes(trained, tmp_path):
    shutil.copytree(trained / "pictures", tmp_path / "outer/inner/pictures")
    done = run_refused("evaluate", trained / "run", "outer", cwd=tmp_path)
    assert "give outer/inner/pictures" in done.stderr


def test_predict_writes_path_label_and_probabilities(trained, tmp_path):
    paint(tmp_path / "new/deep/one.png", COLORS["blue"], 77)
    paint(tmp_path / "new/two.jpg", COLORS["green"], 78)
    (tmp_path / "new/broken.jpg").write_bytes(b"")
    done = run_ok("predict", trained / "run/model.safetensors", tmp_path / "new", cwd=tmp_path)
    assert "broken.jpg" in done.stdout
    table = pd.read_csv(tmp_path / "predictions.csv").set_index("path")
    assert list(table.columns) == ["predicted_label", "probability", "blue", "green", "red"]
    assert table["predicted_label"].to_dict() == {"deep/one.png": "blue", "two.jpg": "green"}
    assert (table["probability"] == table[["blue", "green", "red"]].max(axis=1)).all()
    assert table[["blue", "green", "red"]].sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_predict_accepts_a_single_image_and_prints_json(trained, tmp_path):
    file = paint(tmp_path / "one.jpg", COLORS["red"], 5)
    (prediction,) = run_json("predict", trained / "run", file, cwd=tmp_path)
    assert prediction["predicted_label"] == "red"


@pytest.mark.parametrize("command", ["predict", "evaluate", "train"])
def test_excessive_workers_are_lowered_with_a_reason(command, trained, tmp_path):
    """``train`` refuses its empty data, but only after it has counted the workers."""
    succeeds = command in ("predict", "evaluate")
    args = (trained / "run", trained / "pictures") if succeeds else (tmp_path,)
    done = effnetv2(command, *args, "--workers", "1000", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == (0 if succeeds else 2), done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "instead of 1000" in line)
    assert re.match(r"Workers: \d+ instead of 1000 \(.*(core|free memory)", line)


def test_trained_model_initializes_another_run(trained, tmp_path):
    args = ("train", trained / "pictures", *TINY, "--weights", trained / "run", "--output", tmp_path / "run")
    done = run_ok(*args, "--verbose", cwd=tmp_path)
    assert "Recipe: finetune" in done.stdout
    assert mentions(done.stdout, "classifier")
    result = json.loads((tmp_path / "run/report.json").read_text())
    assert mentions(done.stdout, f"{result['linear_probe_top1']:.1%}", "top-1", "weight")
    assert 0 <= result["linear_probe_macro_f1"] <= 1
    log = (tmp_path / "run/log.txt").read_text()
    assert log.index("Linear probe") < log.index("Training a custom architecture (4 stages)")


@pytest.fixture
def overflowing(trained, tmp_path):
    """A model file of finite weights whose outputs overflow float32."""
    model = load(trained / "run")
    for norm in (model.stem.norm, model.head.norm):
        torch.nn.init.constant_(norm.weight, 3e38)
    model_file.save(tmp_path / "overflowing.safetensors", model)
    return tmp_path / "overflowing.safetensors"


@pytest.mark.parametrize("command", ["predict", "evaluate", "train"])
def test_weights_that_predict_nan_are_refused(command, overflowing, trained, tmp_path):
    out = tmp_path / ("out.csv" if command == "predict" else "out")
    args = {
        "predict": (overflowing, trained / "pictures"),
        "evaluate": (overflowing, trained / "pictures"),
        "train": (trained / "pictures", *TINY, "--weights", overflowing),
    }[command]
    run_refused(command, *args, "--output", out, cwd=tmp_path, names=("NaN",))
    assert not out.exists()


def test_default_learning_rate_follows_the_batch_size(trained, tmp_path):
    """finetune has 2e-4 for 32 images; with AdamW it scales with the square root: 2e-4 / 2 for 8 images."""
    args = ("train", trained / "pictures", *TINY, "--weights", trained / "run", "--verbose", "--output")
    explicit = run_ok(*args, tmp_path / "explicit", "--set", "optimizer.lr=3e-4", cwd=tmp_path)
    assert "Learning rate" not in explicit.stdout
    assert "lr: 0.0003\n" in (tmp_path / "explicit/recipe.yaml").read_text()
    default = effnetv2(*args, tmp_path / "default", cwd=tmp_path)
    assert mentions(default.stdout, "0.0002", "0.0001")
    assert "lr: 0.0001\n" in (tmp_path / "default/recipe.yaml").read_text()


def test_preprocessing_note_has_both_image_sizes():
    recipe = with_overrides(get_recipe("quick"), ["eval_image_size=96"])
    weights = SimpleNamespace(preprocessing=Preprocessing(image_size=96, crop_mode="squash"))
    run = SimpleNamespace(
        recipe=recipe, request=SimpleNamespace(recipe=recipe), network=weights, preprocessing=weights.preprocessing
    )
    assert mentions(preprocessing_note(run), "96", "128")


def test_preprocessing_of_the_weights_is_reported(trained, tmp_path):
    model = load(trained / "run")
    model.preprocessing = replace(
        model.preprocessing, crop_mode="center", crop_pct=0.875, image_size=64, mean=(0.1, 0.2, 0.3)
    )
    model_file.save(tmp_path / "cropped.safetensors", model)
    args = ("train", trained / "pictures", *TINY, "--weights", tmp_path / "cropped.safetensors", "--output")
    done = run_ok(*args, tmp_path / "run", "--verbose", cwd=tmp_path)
    assert mentions(done.stdout, "64", "interpolation")
    advice = "--crop-mode center --set crop_pct=0.875 --image-size 64"
    assert advice in done.stdout
    there = load(tmp_path / "run").preprocessing
    assert (there.crop_mode, there.image_size, there.mean) == ("squash", 64, (0.1, 0.2, 0.3))
    fixed = effnetv2(*args, tmp_path / "fixed", "--verbose", "--set", "eval_image_size=48", cwd=tmp_path)
    assert mentions(fixed.stdout, advice, "--set", "eval_image_size=64"), "an explicit size does not change"
    followed = run_ok(*args, tmp_path / "followed", "--verbose", *shlex.split(advice), cwd=tmp_path)
    assert "The weights had" not in followed.stdout
    assert load(tmp_path / "followed").preprocessing == model.preprocessing


def test_run_resumes_without_its_initial_weights(trained, tmp_path):
    """A torchvision file: run.json has its padding, the checkpoint its weights."""
    torch.manual_seed(0)
    torch.save(torchvision.models.efficientnet_b0(num_classes=3).state_dict(), tmp_path / "torchvision.pth")
    assert TINY[-2:] == ("--weights", "none")
    args = ("train", trained / "pictures", *TINY[2:-2], "--output", tmp_path / "run")
    killed_at(
        "efficientnetv2.evaluation.report:Report.write", *args, "--weights", tmp_path / "torchvision.pth", cwd=tmp_path
    )
    log = (tmp_path / "run/log.txt").read_text()
    assert mentions(log, "efficientnet_b0", "1e-05")
    expected = load(tmp_path / "run").state_dict()
    (tmp_path / "torchvision.pth").unlink()
    (tmp_path / "run/model.safetensors").unlink()
    last = max((tmp_path / "run/checkpoints").iterdir())
    last.unlink()
    resumed = run_ok(*args, "--resume", cwd=tmp_path)
    assert mentions(resumed.stdout, "from step")
    model = load(tmp_path / "run")
    assert model.architecture.padding == "symmetric"
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())


def test_model_of_another_library_is_trained_and_evaluated(trained, tmp_path):
    args = ("train", trained / "pictures", "--model", "torchvision:resnet18", *TINY[2:], "--weights", "auto")
    done = run_ok(*args, "--output", tmp_path / "run", cwd=tmp_path)
    assert mentions(done.stdout, "torchvision:resnet18", "weight", "training")
    evaluated = run_ok("evaluate", tmp_path / "run", trained / "pictures", "--json", cwd=tmp_path)
    assert json.loads(evaluated.stdout)["num_images"] == 48


def test_training_from_scratch_names_available_weights(trained, tmp_path):
    args = (*TINY, "--model", "efficientnetv2_b1", "--weights", "auto")  # without weights in the test cache
    done = run_ok("train", trained / "pictures", *args, "--verbose", "--output", tmp_path / "run", cwd=tmp_path)
    assert mentions(done.stdout, "weights", "from scratch")
    assert "efficientnetv2_b1.in1k" in done.stdout
    assert mentions(done.stdout, "quick", "from scratch")
    assert "Weights: none" in (tmp_path / "run/log.txt").read_text()


def test_resume_keeps_the_length_set_by_minutes(trained, tmp_path):
    """run.json has the number of steps; without checkpoints the run restarts with the same number."""
    args = [arg for arg in TINY if arg not in ("--epochs", "1")]
    run_ok(
        "train", trained / "pictures", *args, "--minutes", "0.3", "--verbose", "--output", tmp_path / "run",
        cwd=tmp_path,
    )  # fmt: skip
    epochs = json.loads((tmp_path / "run/report.json").read_text())["epochs"]
    log = (tmp_path / "run/log.txt").read_text()
    assert re.search(r"Epochs: \S+, what fits into 0.3 minutes", log)
    assert mentions(log, f"{epochs:.3g}", "epochs")
    run_facts = json.loads((tmp_path / "run/run.json").read_text())
    assert run_facts["time_limit"]["seconds"] == pytest.approx(18)
    *_, (_, _, steps) = run_facts["revisions"]
    assert epochs == pytest.approx(8 * steps / 39, abs=0.01), "39 of 48 images train, 8 in each step"
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == steps
    shutil.rmtree(tmp_path / "run/checkpoints", ignore_errors=True)
    for name in ("report.json", "model.safetensors"):  # as in an interrupted run
        (tmp_path / "run" / name).unlink()
    args = ("train", trained / "pictures", "--output", tmp_path / "run", "--resume", "--minutes")
    run_refused(*args, "5", cwd=tmp_path, names=("--minutes: 0.3 there, 5 here",))
    run_ok(*args, "0.3", cwd=tmp_path)
    assert json.loads((tmp_path / "run/report.json").read_text())["epochs"] == epochs


def test_json_option_prints_the_log_to_stderr(trained, tmp_path):
    done = effnetv2("train", trained / "pictures", *TINY, "--output", tmp_path / "run", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["evaluated_on"] == "val"
    assert "held out" in done.stderr


def test_evaluate_accepts_one_class_and_merges_spellings(trained, tmp_path):
    paint(tmp_path / "some/RED/one.jpg", COLORS["red"], 91)
    run_refused("evaluate", trained / "run", tmp_path / "some", cwd=tmp_path)
    merged = run_ok("evaluate", trained / "run", tmp_path / "some", "--labels", "casefold", "--json", cwd=tmp_path)
    assert json.loads(merged.stdout)["top1"] == 1.0


def test_weights_determine_the_architecture(trained, tmp_path):
    model = create("efficientnetv2_b0", num_classes=3)
    model_file.save(tmp_path / "b0.safetensors", model, class_names=("blue", "green", "red"))
    args = ("train", trained / "pictures", *TINY[2:], "--weights", "b0.safetensors", "--output", tmp_path / "run")
    done = effnetv2(*args, "--verbose", cwd=tmp_path)
    assert mentions(done.stdout, "efficientnetv2_b0", "weight")
    other = run_refused(*args[:-1], tmp_path / "other", "--model", "efficientnetv2_b1", cwd=tmp_path)
    assert mentions(other.stderr, "efficientnetv2_b0", "efficientnetv2_b1")
    assert not (tmp_path / "other").exists(), "a refused run leaves no folder"


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_model_with_other_channels_is_refused(command, trained, tmp_path):
    model = create("efficientnetv2_b0", num_classes=3, in_channels=4)
    model_file.save(tmp_path / "four.safetensors", model, class_names=("blue", "green", "red"))
    done = run_refused(command, "four.safetensors", trained / "pictures", cwd=tmp_path)
    assert mentions(done.stderr, "four.safetensors", "4", "channel")


def test_gray_images_are_counted_before_training(trained, tmp_path):
    shutil.copytree(trained / "pictures", tmp_path / "pictures")
    for file in (tmp_path / "pictures/red").iterdir():
        Image.open(file).convert("L").save(file)
    done = run_ok("train", tmp_path / "pictures", *TINY, "--output", tmp_path / "run", cwd=tmp_path)
    assert mentions(done.stdout, "RGB", "16", "channel")


def test_unusual_class_names_are_trained_and_predicted(tmp_path):
    names = ["[/red]", "path", "ärgerlich, sehr", ":car:"]
    colors = [*COLORS.values(), (220, 220, 60)]
    rows = []
    for name, color in zip(names, colors, strict=True):
        for number in range(10):
            rows.append({"path": f"p/{len(rows)}.jpg", "label": name})
            paint(tmp_path / rows[-1]["path"], color, number)
    pd.DataFrame(rows).to_csv(tmp_path / "odd.csv", index=False)
    done = run_ok("train", tmp_path / "odd.csv", *TINY, "--output", tmp_path / "run", cwd=tmp_path)
    assert all(name in done.stdout for name in names)
    run_ok("predict", tmp_path / "run", tmp_path / "odd.csv", cwd=tmp_path)
    table = pd.read_csv(tmp_path / "predictions.csv")
    classes = [":car:", "[/red]", "probability of path", "ärgerlich, sehr"]
    assert list(table.columns) == ["path", "predicted_label", "probability", *classes]


def test_batch_larger_than_the_dataset_trains(trained, tmp_path):
    args = ("train", trained / "pictures", *TINY, "--epochs", "4", "--set", "batch_size=64")
    run_ok(*args, "--output", tmp_path / "run", cwd=tmp_path)


def test_each_long_phase_is_logged_before_it_starts(class_folders, tmp_path, monkeypatch):
    """Without a progress bar, as under nohup, a silent phase would look like a hang."""

    def stop(*_, **__):
        raise InputError("stopped at the measurement")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("efficientnetv2.training.time_budget.measure_timings", stop)
    length = TINY.index("--epochs")
    args = ["train", class_folders, *TINY[:length], *TINY[length + 2 :], "--minutes", "2", "--output", "run"]
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 2, done.output
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["Data", "Split", "Weights"]
    done = CliRunner().invoke(app, [str(arg) for arg in (*args, "--verbose")])
    lines = done.stdout.splitlines()
    phases = ["Checking 48 images", "Split: ", "Measuring: some steps of 2 image sizes, "]
    places = [next(at for at, line in enumerate(lines) if line.startswith(phase)) for phase in phases]
    assert places == sorted(places)


def test_five_lines_are_printed_before_the_first_step(class_folders, tmp_path):
    """log.txt has all lines, which ``--verbose`` prints."""
    args = ("train", class_folders, *TINY, "--output")
    brief = run_ok(*args, "run", cwd=tmp_path)
    lines, log = brief.stdout.splitlines(), (tmp_path / "run/log.txt").read_text()
    first = next(at for at, line in enumerate(lines) if line.startswith(("epoch ", "Evaluating on ")))
    topics = [line.partition(":")[0] for line in lines[:first]]
    assert topics == ["Data", "Split", "Weights", "Model", "Length"]
    assert mentions(lines[0], "48", "3", "image", "class")
    assert "32 to 64 px" in lines[3]
    assert "1 epoch" in lines[4]
    verbose_lines = effnetv2(*args, "verbose", "--verbose", cwd=tmp_path).stdout.splitlines()
    first = next(at for at, line in enumerate(verbose_lines) if line.startswith(("epoch ", "Evaluating on ")))
    assert set(topics) < {line.partition(":")[0] for line in verbose_lines[:first]}
    for line in verbose_lines[:first]:
        line = line.replace("verbose/log.txt", "run/log.txt")
        assert line.partition("--set")[0] in log.replace("`", "")


@pytest.mark.parametrize("words", ["--imgsz 224", "--weight-decay 0.05", "--help-all"])
def test_completion_is_silent_and_completes(words, tmp_path):
    """Translated options print notes, and --help-all the help: not while the shell completes."""
    line = f"effnetv2 train photos {words} --crop-m"
    variables = {"_EFFNETV2_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    start = "import sys; sys.argv = ['effnetv2']; from efficientnetv2.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start], env=os.environ | variables, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout.split(), done.stderr) == (["--crop-mode"], "")
