"""Wrong input through the command line: the message names the file or row and the fix; exit code 2."""

from __future__ import annotations

import json
import logging
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.command_line import TINY, effnetv2, killed_at, run_ok
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions

from efficientnetv2.architectures.spec import Architecture, Stage, mbconv
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.resume import restore_dataset


def refused(done, *facts):
    assert done.returncode == 2, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    for fact in facts:
        assert mentions(done.stderr, fact)


@pytest.fixture(scope="module")
def stopped(painted_folders, tmp_path_factory):
    """A folder with images and a run on them that was killed after its last training step."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(painted_folders, folder / "pictures")
    killed(folder / "pictures", folder)
    return folder


def train(data, cwd, *more):
    return effnetv2("train", data, *TINY, "--output", cwd / "run", *more, cwd=cwd)


def train_ok(data, cwd, *more):
    return run_ok("train", data, *TINY, "--output", cwd / "run", *more, cwd=cwd)


def killed(data, cwd):
    """Train, and kill the run after its last step."""
    function = "efficientnetv2.training.post_training:save_model"
    killed_at(function, "train", data, *TINY, "--output", cwd / "run", cwd=cwd)


@pytest.fixture
def table(class_folders, tmp_path):
    """A function that writes the images as a CSV; row 2 is the first red image."""
    paths = sorted(class_folders.rglob("*.jpg"), reverse=True)
    frame = pd.DataFrame(
        {"path": [str(p.relative_to(tmp_path)) for p in paths], "label": [p.parent.name for p in paths]}
    )

    def write(change=lambda frame: frame):
        change(frame.copy()).to_csv(tmp_path / "pictures.csv", index=False)
        return tmp_path / "pictures.csv"

    return write


def changed(row, column, value):
    def change(frame):
        frame.loc[row, column] = value
        return frame

    return change


def test_single_class_is_refused(class_folders, tmp_path):
    for name in ("green", "blue"):
        shutil.rmtree(class_folders / name)
    refused(train(class_folders, tmp_path), "'red'", "class")


def test_class_with_one_image_is_refused_or_dropped(class_folders, tmp_path):
    paint(class_folders / "lone" / "only.jpg", (9, 9, 9))
    refused(train(class_folders, tmp_path), "'lone'", "only.jpg", "--min-images-per-class", "2")
    done = train_ok(class_folders, tmp_path, "--min-images-per-class", "2")
    assert mentions(done.stdout, "1", "2", "class", "training")
    assert set(pd.read_csv(tmp_path / "run/dataset.csv")["label"]) == set(COLORS)


def test_missing_label_column_is_refused(table, tmp_path):
    data = table(lambda frame: frame.rename(columns={"label": "lable"}))
    refused(train(data, tmp_path), "pictures.csv", "'label'", "lable", "--label-column")


def test_one_missing_file_is_skipped_and_listed(table, tmp_path):
    data = table(changed(5, "path", "pictures/gone.jpg"))
    refused(train(data, tmp_path, "--strict"), "pictures.csv", "row 7", "--strict")
    done = train_ok(data, tmp_path)
    assert "Skipped 1 unreadable" in done.stdout
    assert mentions(done.stdout, "gone.jpg")
    assert "pictures/gone.jpg" in (tmp_path / "run/skipped.csv").read_text()


def test_many_missing_files_are_refused(table, tmp_path):
    data = table(lambda frame: frame.assign(path=frame["path"].replace("pictures/", "photos/", regex=True)))
    refused(train(data, tmp_path), "pictures.csv", "row 2", "48", "photos/")


def test_labels_that_differ_by_case_are_refused(table, tmp_path):
    data = table(changed(3, "label", "Red"))
    refused(train(data, tmp_path), "pictures.csv", "row 5", "'Red'", "red", "15", "--labels casefold")


def test_labels_that_differ_by_space_are_merged_on_request(table, tmp_path):
    data = table(changed(3, "label", " red"))
    refused(train(data, tmp_path), "row 5", "--labels casefold")
    train_ok(data, tmp_path, "--labels", "casefold")
    assert set(pd.read_csv(tmp_path / "run/dataset.csv")["label"]) == set(COLORS)


def test_label_without_training_images_is_refused(table, tmp_path):
    def change(frame):
        frame["split"] = ["val" if row % 4 == 0 else "train" for row in range(len(frame))]
        frame.loc[8, "label"] = "violet"
        return frame

    refused(train(table(change), tmp_path), "pictures.csv", "row 10", "'violet'", "train")


def test_duplicate_rows_are_refused(table, tmp_path):
    data = table(lambda frame: pd.concat([frame, frame.iloc[[4]]]))
    refused(train(data, tmp_path), "pictures.csv", "row 50", "row 6")


def test_same_image_in_train_and_val_is_refused(class_folders, tmp_path):
    for path in sorted(class_folders.rglob("*.jpg")):
        split = "val" if path.stem.endswith(("_00", "_01")) else "train"
        (tmp_path / "set" / split / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "set" / split / path.parent.name / path.name)
    shutil.copy(class_folders / "red/red_07.jpg", tmp_path / "set/val/red/another_name.jpg")
    refused(train(tmp_path / "set", tmp_path), "another_name.jpg", "red_07.jpg", "train", "val")


BAD_FILES = {
    "empty.jpg": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("This is not an image.\n" * 50),
    "cut.jpg": lambda path: path.write_bytes(path.with_name("red_00.jpg").read_bytes()[:700]),
    "corrupt.png": lambda path: corrupt_png(path),
    "dot.png": lambda path: Image.new("RGB", (1, 1)).save(path),
}


def corrupt_png(path):
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)


@pytest.mark.parametrize("name", BAD_FILES)
def test_unreadable_image_is_found_before_training(name, class_folders):
    BAD_FILES[name](class_folders / "red" / name)
    prepared = prepared_data(class_folders)
    ((skipped, reason),) = prepared.skipped
    assert skipped == f"red/{name}"
    assert len(reason) > 5
    assert skipped not in prepared.dataset.paths


def test_unreadable_image_is_skipped_and_listed(class_folders, tmp_path):
    name = "corrupt.png"
    BAD_FILES[name](class_folders / "red" / name)
    done = train_ok(class_folders, tmp_path)
    assert mentions(done.stdout, "1", "unreadable", "skipped")
    assert f"listed in {tmp_path / 'run/skipped.csv'}." in done.stdout
    skipped = pd.read_csv(tmp_path / "run/skipped.csv")
    assert skipped["path"].tolist() == [f"red/{name}"]
    assert f"red/{name}" not in (tmp_path / "run/dataset.csv").read_text()


def test_strict_refuses_an_unreadable_image(class_folders, tmp_path):
    BAD_FILES["text.jpg"](class_folders / "red/text.jpg")
    refused(train(class_folders, tmp_path, "--strict"), "text.jpg", "strict")
    assert not (tmp_path / "run/recipe.yaml").exists()


def test_too_many_unreadable_images_are_refused(class_folders, tmp_path):
    for number in range(4):  # of 52: 7.7 %
        (class_folders / f"red/bad_{number}.jpg").write_bytes(b"")
    refused(train(class_folders, tmp_path), "4 of 52", "5 %", "bad_0.jpg")


WRONG = [
    (("--weights", "imagenet"), ("--weights imagenet", "--weights efficientnetv2_b0.in1k")),
    (("--weights", "IMAGENET1K_V1"), ("--weights efficientnetv2_b0.in1k",)),
    (("--weights", "pretrained"), ("--weights auto",)),
    (("--weights", "scratch"), ("--weights none",)),
    (("--weights", "nowhere.pth"), ("--weights nowhere.pth",)),
    (("--weights", "efficientnetv2_b0.in2k"), ("efficientnetv2_b0.in2k", "did you mean")),
    (("--set", "weights=nowhere.pth"), ("nowhere.pth",)),
    (("--bands", "red"), ("--bands",)),
]


@pytest.mark.parametrize(
    ("command", "args", "facts"),
    [(("train",), *case) for case in WRONG]
    + [(command, *case) for command in (("train", "--dry-run"), ("crossval",)) for case in (WRONG[3], WRONG[-1])],
)
def test_wrong_options_are_refused_before_reading_images(command, args, facts, tmp_path):
    """None of the files is an image, so reading them would fail with another message."""
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(b"x")
    rest = [] if "weights" in str(args) else ["--weights", "none"]
    args = [*args, *rest, "--model", "efficientnetv2_b0", "--recipe", "quick"]
    refused(effnetv2(*command, "pictures", *args, cwd=tmp_path), *facts)
    assert [file.name for file in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize("command", ["predict", "evaluate", "geo map"])
def test_swapped_model_and_data_are_recognized(command, tmp_path):
    model, data = tmp_path / "model.safetensors", tmp_path / "scene.tif"
    model_file.save(model, create("efficientnetv2_b0", num_classes=2), class_names=("a", "b"))
    data.write_bytes(b"x")
    refused(effnetv2(*command.split(), data, model, cwd=tmp_path), f"effnetv2 {command} {model} {data}")


def test_folder_without_images_names_the_expected_layout(tmp_path):
    (tmp_path / "empty").mkdir()
    model_file.save(tmp_path / "model.safetensors", create("efficientnetv2_b0", num_classes=2), class_names=("a", "b"))
    for args in (("predict", "model.safetensors", "empty"), ("check", "empty")):
        done = effnetv2(*args, cwd=tmp_path)
        refused(done, "empty", "image", "a folder of images")
        assert "per class" not in done.stderr
    refused(effnetv2("train", "empty", "--weights", "none", cwd=tmp_path), "one sub-folder per class")


def test_flat_folder_explains_the_class_folder_layout(class_folders, tmp_path):
    done = run_ok("check", class_folders / "red", cwd=tmp_path)
    assert "sub-folder" in done.stdout
    assert "--label-column" not in done.stdout


def test_run_folder_as_data_names_its_dataset_table(stopped):
    refused(effnetv2("train", "run", "--weights", "none", cwd=stopped), "run/dataset.csv")


def test_resume_with_another_recipe_lists_the_differences(stopped):
    args = ("train", stopped / "pictures", "--output", stopped / "run", "--resume")
    done = effnetv2(*args, "--epochs", "7", "--set", "ema_decay=0.5", cwd=stopped)
    refused(done, "--epochs: 1 there, 7 here", "ema_decay=0.5 here", "--output")
    done = effnetv2(*args, "--recipe", "finetune", cwd=stopped)
    refused(done, "--recipe: not given there, finetune here")


def test_resume_accepts_the_same_options(class_folders, tmp_path):
    args = ("train", class_folders, *TINY, "--output", tmp_path / "run")
    killed(class_folders, tmp_path)
    steps = (tmp_path / "run/metrics.jsonl").read_text()
    assert steps
    done = run_ok(*args, "--resume", cwd=tmp_path)
    assert mentions(done.stdout, "Evaluating", "9", "val")
    assert (tmp_path / "run/metrics.jsonl").read_text().startswith(steps)  # no step is done again


def test_resume_compares_all_fields_of_a_recipe_file(class_folders, tmp_path):
    args = ("train", class_folders, "--workers", "0")
    train_ok(class_folders, tmp_path)
    run_ok(*args, "--recipe", tmp_path / "run/recipe.yaml", "--output", tmp_path / "again", cwd=tmp_path)
    assert (tmp_path / "again/recipe.yaml").read_text() == (tmp_path / "run/recipe.yaml").read_text()
    text = (tmp_path / "run/recipe.yaml").read_text().replace("crop_scale_min: 0.35", "crop_scale_min: 0.5")
    (tmp_path / "other.yaml").write_text(text)
    args = (*args, "--output", tmp_path / "again", "--resume", "--recipe", tmp_path / "other.yaml")
    refused(effnetv2(*args, cwd=tmp_path), "crop_scale_min: 0.35 there, 0.5 here")


def test_output_folder_with_other_files_is_refused(class_folders, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/one.txt").write_text("x")
    args = ("train", class_folders, *TINY, "--output", tmp_path / "letters")
    refused(effnetv2(*args, cwd=tmp_path), "not a run", "another folder")


def test_recipe_that_was_changed_after_the_start_is_refused(class_folders, tmp_path):
    killed(class_folders, tmp_path)
    file, args = tmp_path / "run/recipe.yaml", ("train", class_folders, "--output", tmp_path / "run", "--resume")
    text = file.read_text()
    file.write_text(text.replace("weight_decay: 0.05", "weight_decay: 0.5"))
    refused(effnetv2(*args, cwd=tmp_path), "optimizer.weight_decay: 0.05 there, 0.5 here", "recipe.yaml")
    file.write_text(text)
    run_ok(*args, cwd=tmp_path)


def test_resume_with_other_images_lists_the_differences(class_folders, tmp_path):
    killed(class_folders, tmp_path)
    (class_folders / "red/red_03.jpg").unlink()
    done = effnetv2("train", class_folders, "--output", tmp_path / "run", "--resume", cwd=tmp_path)
    refused(done, "1 gone", "red_03.jpg")


def lossless(folder, number=60, classes=COLORS):
    """Class folders of PNG files."""
    for name, color in classes.items():
        for one in range(number // len(classes)):
            paint(folder / name / f"{one:02d}.png", color, one, px=32)
    return folder


def prepared_data(data, separator=None, **more):
    source = DataConfig(str(data), label_separator=separator)
    return prepare_data(source, **{"val_fraction": 0.2, "seed": 0, "strict": False} | more)


def started_run(data, path, **more):
    """A run folder as it is when the first step starts; returns its data."""
    data_at_start, folder = prepared_data(data, **more), RunDir(path)
    run_facts = {"preprocessing": Preprocessing(image_size=32).to_json()}
    run_facts |= {"command": "effnetv2 train", "auto_choices": [], "microbatches": {}}
    run_facts["label_separator"] = data_at_start.dataset.separator
    folder.begin(get_recipe("quick"), data_at_start.dataset, run_facts)
    for skipped, reason in data_at_start.skipped:
        folder.skip(skipped, reason)
    return data_at_start


def truncate(file):
    """Cut a file in half, and return its full content."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return content


def test_run_that_is_resumed_with_other_options_of_its_table_names_its_command(tmp_path):
    """For example without --group-column, so that other images are held out."""
    data = lossless(tmp_path / "pictures")
    started_run(data, tmp_path / "run")
    with pytest.raises(InputError, match=mentioning("splits", "options", "effnetv2 train")):
        restore_dataset(tmp_path / "run", prepared_data(data, seed=1))


def test_run_resumes_with_an_unreadable_image(tmp_path, caplog):
    """The saved list of images and splits applies, in its order."""
    data = lossless(tmp_path / "pictures")
    before = started_run(data, tmp_path / "run", minival=6)
    content = truncate(data / before.train.paths[0])
    now = prepared_data(data, minival=6)
    assert now.dataset.digest() != before.dataset.digest()
    with caplog.at_level(logging.INFO, logger="efficientnetv2"):
        restored = restore_dataset(tmp_path / "run", now)
    assert restored.dataset.digest() == before.dataset.digest()
    assert restored.dataset.class_names == before.dataset.class_names
    assert len(np.unique(restored.contents)) == len(before.dataset)
    (data / before.train.paths[0]).write_bytes(content)
    with caplog.at_level(logging.INFO, logger="efficientnetv2"):
        restored = restore_dataset(tmp_path / "run", prepared_data(data, minival=6))
    assert restored.dataset.digest() == before.dataset.digest()
    assert sum(mentions(line, "1", "can't be read") for line in caplog.messages) == 1


def test_run_resumes_without_an_image_repaired_since(tmp_path, caplog):
    data = lossless(tmp_path / "pictures")
    content = truncate(data / "red/07.png")
    before = started_run(data, tmp_path / "run")
    (data / "red/07.png").write_bytes(content)
    with caplog.at_level(logging.INFO, logger="efficientnetv2"):
        restored = restore_dataset(tmp_path / "run", prepared_data(data))
    assert restored.dataset.digest() == before.dataset.digest()
    assert mentions(caplog.messages, "red/07.png")


def test_run_resumes_after_the_removal_of_an_image_that_it_skipped(class_folders, tmp_path):
    """Its damage was found after the split was drawn. Without it, another split is drawn."""
    lost = prepared_data(class_folders).val.paths[0]
    content = (class_folders / lost).read_bytes()
    (class_folders / lost).write_bytes(content[: len(content) // 2] + b"\xff\xd9")
    before = started_run(class_folders, tmp_path / "run")
    assert [path for path, _ in before.skipped] == [lost]
    (class_folders / lost).unlink()
    now = prepared_data(class_folders)
    assert now.dataset.digest() != before.dataset.digest()
    assert restore_dataset(tmp_path / "run", now).dataset.digest() == before.dataset.digest()


def test_multilabel_run_resumes_after_the_removal_of_an_image_that_it_skipped(tmp_path):
    """The order of the labels in a cell depends on how many images have them: one image fewer reverses it."""
    data, table = lossless(tmp_path / "pictures"), tmp_path / "images.csv"
    paths = sorted(data.rglob("*.png"))
    cells = ["red;green" if row % 2 else ("red", "green")[row // 2 % 2] for row in range(len(paths))]
    frame = pd.DataFrame({"path": paths, "label": cells})
    frame.to_csv(table, index=False)
    truncate(paths[cells.index("red")])
    before = started_run(table, tmp_path / "run", separator=";")
    frame.drop(index=cells.index("red")).to_csv(table, index=False)
    now = prepared_data(table, separator=";")
    assert set(now.dataset.table["label"]) != set(before.dataset.table["label"])
    restored = restore_dataset(tmp_path / "run", now).dataset
    assert restored.digest() == before.dataset.digest()
    assert restored.targets.tolist() == before.dataset.targets.tolist()


def test_resume_refuses_missing_and_too_many_unreadable_images(tmp_path):
    """A renamed image, and more unreadable images than a run accepts."""
    data = lossless(tmp_path / "pictures")
    before = started_run(data, tmp_path / "run")
    first, second, third = (data / path for path in before.train.paths[:3])
    truncate(first)
    second.rename(tmp_path / "away.png")
    with pytest.raises(InputError, match=mentioning("2", "gone")):
        restore_dataset(tmp_path / "run", prepared_data(data))
    (tmp_path / "away.png").rename(second)
    truncate(second)
    truncate(third)  # 3 of 48 training images, and of 60 images
    with pytest.raises(InputError, match=r"3 gone \(first: "):
        restore_dataset(tmp_path / "run", prepared_data(data))


def test_resume_refuses_a_changed_split_despite_an_unreadable_image(tmp_path):
    data = lossless(tmp_path / "pictures")
    paths = sorted(data.rglob("*.png"))
    frame = pd.DataFrame({"path": paths, "label": [path.parent.name for path in paths]})
    frame["split"] = ["train", "train", "val"] * 20
    frame.to_csv(tmp_path / "images.csv", index=False)
    before = started_run(tmp_path / "images.csv", tmp_path / "run")
    truncate(paths[0])
    restored = restore_dataset(tmp_path / "run", prepared_data(tmp_path / "images.csv"))
    assert restored.dataset.digest() == before.dataset.digest()
    frame.loc[1, "split"] = "val"
    frame.to_csv(tmp_path / "images.csv", index=False)
    with pytest.raises(InputError, match="1 gone"):
        restore_dataset(tmp_path / "run", prepared_data(tmp_path / "images.csv"))


def test_killed_run_finishes_with_a_truncated_image(tmp_path):
    data = lossless(tmp_path / "pictures")
    args = ("train", data, *TINY, "--output", tmp_path / "run", "--set", "epochs=2")
    args = tuple(arg for arg in args if arg not in ("--epochs", "1"))
    killed_at("efficientnetv2.training.trainer:Trainer._train", *args, cwd=tmp_path)
    frame = pd.read_csv(tmp_path / "run/dataset.csv")
    lost = frame.loc[frame["split"] == "train", "path"].iloc[0].removeprefix("../pictures/")
    truncate(data / lost)
    done = run_ok(*args, "--resume", cwd=tmp_path)
    assert mentions(done.stdout, lost, "1", "read")
    assert pd.read_csv(tmp_path / "run/skipped.csv")["path"].tolist() == [lost]
    trained = frame[(frame["split"] == "train") & (frame["path"] != f"../pictures/{lost}")]
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert (report["num_train_images"], report["num_train_lost"], report["num_skipped"]) == (len(trained), 1, 1)
    assert report["train_images_per_class"] == trained["label"].value_counts().to_dict()
    page = (tmp_path / "run/report.html").read_text()
    assert mentions(page, "trained on", len(trained))
    assert mentions(page, "unreadable", 1, "during training")


def test_output_folder_with_a_run_is_refused(class_folders, tmp_path):
    killed(class_folders, tmp_path)
    refused(train(class_folders, tmp_path), "holds a run already", "--resume")
    train_ok(class_folders, tmp_path, "--resume")
    refused(train(class_folders, tmp_path), "holds a run already", "finished", "another folder")


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        (("--set", "optimiser.lr=1"), ("optimizer", "did you mean", "optimizer")),
        (
            ("--weights", "none", "--epochs", "2", "--set", "global_pool=avg+centre"),
            ("--set global_pool=avg+centre", "did you mean 'avg+center'"),
        ),
        (("--minutes", "3", "--set", "epochs=5"), ("--minutes", "epochs", "5")),
        (("--epochs", "0.05"), ("stages", "1 step:")),
        (
            ("--set", "batch_size=1", "--set", "progressive.image_size=32", "--set", "freeze_bn=false"),
            ("batch-norm", "--batch-size"),
        ),
        (
            ("--image-size", "24", "--recipe", "quick", "--weights", "none"),
            ("24", "training", "stride of 32 px", "--image-size"),
        ),
        (
            ("--set", "progressive.image_size={start: 8, end: 64}", "--recipe", "quick", "--weights", "none"),
            ("8", "training", "stride of 32 px", "--set", "progressive.image_size={start: 32, end: 64}"),
        ),
        (("--set", "eval_image_size=16"), ("eval_image_size", "16", "stride of 32 px", "--set")),
        (
            ("--image-size", "40", "--recipe", "quick", "--weights", "none"),
            ("20", "training", "--set", "progressive.image_size={start: 32, end: 40}"),
        ),
        (
            ("--model", "torchvision:vit_b_16", "--image-size", "224", "--weights", "none"),
            ("128", "training", "--image-size", "224", "--set", "progressive.stages=1"),
        ),
        (("--set", "progressive.image_size={start: 128, end: 64}"), ("image_size", "{start: 64, end: 128}")),
        (("--set", "progressive.dropout={start: 0.3, end: 0.1}"), ("dropout", "0.3", "0.1")),
        (("--set", "progressive.mixup_alpha=0.2", "--set", "ghost_batch_size=1"), ("mixup", "at least 2")),
        (("--memory-gib", "0.05"), ("--memory-gib", "0.05", "alone take")),
    ],
)
def test_impossible_options_are_refused_before_training(args, facts, class_folders, tmp_path):
    data = ("train", class_folders, "--workers", "0", "--output", tmp_path / "run", "--set", "batch_size=8")
    refused(effnetv2(*data, *args, cwd=tmp_path), *facts)
    assert not (tmp_path / "run/checkpoints").exists()


def test_mixup_with_a_single_class_is_refused(tmp_path):
    """Every batch would be mixed with its own class."""
    for number in range(16):
        paint(tmp_path / "pictures/red" / f"{number}.jpg", COLORS["red"], number)
    data = ("train", tmp_path / "pictures", "--workers", "0", "--output", tmp_path / "run")
    done = effnetv2(*data, "--set", "progressive.mixup_alpha=0.2", cwd=tmp_path)
    refused(done, "red", "16", "Add images of another class")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [(), ("--weights", "none"), ("--model", "efficientnetv2_s")])
def test_image_sizes_below_the_stride_are_refused_before_reading_images(more, class_folders, tmp_path):
    """Weights are not compared on the images first."""
    done = effnetv2("train", class_folders, "--image-size", "8", "--device", "cpu", *more, cwd=tmp_path)
    model = more[1] if more[:1] == ("--model",) else "efficientnetv2_b0"
    refused(done)
    assert mentions(done.stderr, "largest training image", "8 px", model, "stride of 32 px")
    assert not re.search("image|picture", done.stdout, re.IGNORECASE)


@pytest.mark.parametrize(
    ("overrides", "both"),
    [
        ({"minutes": 3, "settings": ("steps = 5",)}, ("minutes", "steps = 5")),
        ({"epochs": 2, "settings": ("lr=1", "epochs=5")}, ("epochs", "epochs=5")),
        ({"minutes": 3, "settings": ("epochs=auto", "steps=null", "val_interval_epochs=2")}, None),
        ({"settings": ("epochs=30", "epochs=5")}, None),  # as a --candidate overrides a --set
    ],
)
def test_two_training_lengths_are_refused(overrides, both):
    """Otherwise one of them would silently be ignored."""
    if both is None:
        assert TrainOverrides(**overrides).settings == overrides["settings"]
        return
    with pytest.raises(InputError, match=mentioning(*both, "training length")):
        TrainOverrides(**overrides)


def test_predict_and_evaluate_refuse_an_invalid_model_file(class_folders, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors at all")
    for command in ("predict", "evaluate"):
        refused(effnetv2(command, tmp_path / "model.safetensors", class_folders, cwd=tmp_path), "model.safetensors")


def test_predict_and_evaluate_refuse_a_model_without_classes(class_folders, tmp_path):
    small = Architecture(8, (Stage(mbconv(expand=2, kernel=3), 2, 8, 1),), 8)
    model_file.save(tmp_path / "headless.safetensors", create(small, num_classes=0))
    for command in ("predict", "evaluate"):
        done = effnetv2(command, tmp_path / "headless.safetensors", class_folders, cwd=tmp_path)
        refused(done, "headless.safetensors", "classifier", "weights")
    assert not (tmp_path / "predictions.csv").exists()
