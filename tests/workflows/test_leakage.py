"""Evaluation on training images is reported as optimistic, for any location and format of the images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.command_line import TINY, effnetv2
from tests.file_server import serving
from tests.log_lines import logged_lines
from tests.messages import each_mentions, mentioning, mentions
from tests.recipes import with_overrides
from tests.training.test_loop import SMALL

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_metadata import content_hashes
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.data.splits import MINIVAL_USE
from efficientnetv2.evaluation.bootstrap_clusters import Clusters
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import model_file as modelfile
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.ensemble import Ensemble
from efficientnetv2.models.factory import create
from efficientnetv2.models.model_header import parse_entry
from efficientnetv2.models.provenance import KEY, Calibration, TrainingFingerprint
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training import post_training, resolve
from efficientnetv2.training.callbacks import RunContext
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_request import RunOptions, RunRequest
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.training.seen_images import PretrainOverlap, TrainOverlap, pretrain_overlap, train_overlap
from efficientnetv2.training.train_state import init_state
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import resume
from efficientnetv2.workflows.evaluate import unseen_metrics


def remembered(dataset, most=10**6):
    return TrainingFingerprint(len(dataset), np.sort(content_hashes(dataset, most=most)[1]))


def test_model_file_recognizes_its_training_images_in_every_format(class_folders, tmp_path):
    """Trained and evaluated on the command line. The model file is copied without its run."""
    done = effnetv2(
        "train", class_folders, *TINY, "--weights", "none", "--epochs", "0.5", "--output", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "far").mkdir()
    shutil.copy(tmp_path / "run/model.safetensors", tmp_path / "far/m.safetensors")
    for number, file in enumerate(sorted(class_folders.rglob("*.jpg"))):
        copy = tmp_path / "copies" / file.parent.name / f"{97 * number}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    write_shards(load_dataset(class_folders), tmp_path / "served/small", PackOptions(10**9, image_size=16))
    message = "Optimistic: 39 of these 48 images trained the model."
    with serving(tmp_path / "served") as server:
        for data in ("copies", "served/small", f"{server.url}/small"):
            done = effnetv2("evaluate", "far/m.safetensors", data, "--device", "cpu", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert message in done.stdout, data
    table = pd.read_csv(tmp_path / "run/dataset.csv")
    table = table[table["split"] == "val"].assign(path=lambda rows: rows["path"].str.replace("../", "../../"))
    (tmp_path / "far/val").mkdir()
    table.drop(columns="split").to_csv(tmp_path / "far/val/val.csv", index=False)
    done = effnetv2("evaluate", "far/m.safetensors", "far/val/val.csv", "--json", cwd=tmp_path)
    output = json.loads(done.stdout)
    assert (output["num_images"], output["optimistic"], output["notes"]) == (9, False, [])
    # A model without a training fingerprint.
    model = modelfile.load(tmp_path / "far/m.safetensors")
    assert model.trained_on.num_images == len(model.trained_on.hashes) == 39
    model.trained_on = None
    modelfile.save(tmp_path / "far/m.safetensors", model)
    done = effnetv2("evaluate", "far/m.safetensors", "copies", "--device", "cpu", cwd=tmp_path)
    assert "Optimistic" not in done.stdout
    assert mentions(done.stdout, "not known")


def test_unavailable_store_after_training_costs_only_the_fingerprint(class_folders, monkeypatch):
    def gone(dataset):
        raise InputError("https://example.org/shards does not answer")

    lines = logged_lines()
    model = SimpleNamespace(trained_on=None)
    job = SimpleNamespace(train=load_dataset(class_folders), minival=None, network=model)
    assert post_training._fingerprint(job).num_images == 48
    assert post_training._fingerprint(job).selection is None
    job.minival = job.train.select(np.arange(8))
    assert post_training._fingerprint(job).selection.hashes.tolist() == remembered(job.minival).hashes.tolist()
    assert lines == []
    monkeypatch.setattr(post_training, "content_hashes", gone)
    assert post_training._fingerprint(job) is None
    assert "does not answer" in lines[0]


def test_fingerprints_of_a_model_and_its_initial_weights_are_separate(class_folders, tmp_path, monkeypatch):
    """Without its own fingerprint, the model file has none."""
    files = load_dataset(class_folders)
    model = create(SMALL, num_classes=3)
    model.trained_on = TrainingFingerprint(2, np.array([1, 2]))
    output = RunDir(tmp_path / "run")
    recipe = with_overrides(get_recipe("quick"), ["epochs=1", "ema_decay=0.5"])
    job = RunSetup(recipe, model, files, files, Preprocessing(image_size=32), output, torch.device("cpu"), 0)
    state = init_state(model, recipe)
    context = RunContext(job, state, SimpleNamespace(steps=0))
    parts = SimpleNamespace(seconds=1.0), SimpleNamespace(record_final=lambda predictions: None), None

    def gone(dataset):
        raise InputError("https://example.org/shards does not answer")

    post_training.finish_training(context, *parts)
    saved = modelfile.load(output.model_file).trained_on
    assert (saved.num_images, saved.earlier.num_images, saved.earlier.hashes.tolist()) == (48, 2, [1, 2])
    state.eval_network.trained_on = model.trained_on
    monkeypatch.setattr(post_training, "content_hashes", gone)
    post_training.finish_training(context, *parts)
    assert modelfile.load(output.model_file).trained_on is None


def weights_of(pictures, tmp_path, class_names=()):
    """A path of weights and a model that was trained on these images."""
    (tmp_path / "before.safetensors").touch()
    return str(tmp_path / "before.safetensors"), SimpleNamespace(
        trained_on=remembered(pictures), class_names=class_names
    )


def overlap_of(place, model, prepared, **options):
    return pretrain_overlap(place, model, prepared, classes=model.class_names, **options)


def test_initial_weights_trained_on_val_images_are_found(class_folders, tmp_path):
    """Nine of 48 images are in val. The weights were trained on four of them, or only on other images."""
    prepared = prepare_data(DataConfig(str(class_folders)), val_fraction=0.2, seed=0, strict=False)
    assert len(prepared.val) == 9
    place, model = weights_of(prepared.val.select(np.arange(4)), tmp_path, prepared.train.class_names)
    found = overlap_of(place, model, prepared)
    assert found.num_trained == 4
    (line,) = found.notes
    assert mentions(line, place, "4", "9", "val")
    for word, others in ((place, prepared.train), ("none", prepared.val), ("gone.safetensors", prepared.val)):
        assert overlap_of(word, weights_of(others, tmp_path)[1], prepared) == PretrainOverlap()


def test_initial_weights_selected_on_val_images_are_found(class_folders, tmp_path):
    """The images were minival of the run that trained the weights, or of an earlier run."""
    prepared = prepare_data(DataConfig(str(class_folders)), val_fraction=0.2, seed=0, strict=False)
    place, model = weights_of(prepared.train, tmp_path, prepared.train.class_names)
    chose, alone = remembered(prepared.val.select(np.arange(3))), model.trained_on
    chain = alone.started_from(replace(alone, selection=chose), most=100)
    further = alone.started_from(chain, most=100)  # a third run
    for trained_on in (replace(alone, selection=chose), chain, further):
        model.trained_on = trained_on
        found = overlap_of(place, model, prepared)
        assert (found.num_trained, found.num_selected, found.optimistic) == (0, 3, True)
        (line,) = found.notes
        message = "3 of the 9 images of val selected them, as the minival of an earlier run"
        assert line.startswith(f"Weights {place}: {message}, so the metrics on them are optimistic.")
        assert found.to_json() == {"num_images": 0, "num_selected": 3, "note": line}
    model.trained_on = replace(remembered(prepared.val.select([2, 3])), selection=chose)
    found = overlap_of(place, model, prepared)
    assert (found.num_trained, found.num_selected) == (2, 2)
    (line,) = found.notes
    assert mentions(line, "2", "9", "val")


def test_evaluation_on_selection_images_of_the_weights_is_optimistic(class_folders, tmp_path):
    """Six images select the weights of the first run. They are val of the second run."""
    files = load_dataset(class_folders)
    for name, parts in (("first", ["minival", "train", "val"]), ("second", ["val", "train", "train"])):
        of = np.array(parts, dtype=object)[np.searchsorted([6, 40], np.arange(48)[::-1], side="right")]
        files.with_split(of).to_csv(tmp_path / f"{name}.csv")
    args = (*TINY[:-2], "--epochs", "0.5")
    for name, weights in (("first", ("none", "--set", "minival=6")), ("second", ("first",))):
        done = effnetv2("train", f"{name}.csv", *args, "--weights", *weights, "--output", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    message = "Weights first: 6 of the 6 images of val selected them, as the minival of an earlier run"
    assert message in done.stdout
    report = json.loads((tmp_path / "second/report.json").read_text())
    assert (
        report["num_eval_images_seen_in_training"],
        report["num_eval_images_used_for_selection"],
        report["optimistic"],
    ) == (0, 6, True)
    assert report["notes"][0].startswith(message)
    evaluated = effnetv2("evaluate", "second", "second.csv", "--device", "cpu", "--json", cwd=tmp_path)
    assert each_mentions(json.loads(evaluated.stdout)["notes"], ("6", "minival"))


def test_minival_that_trained_the_weights_is_rejected(class_folders, tmp_path):
    quiet = {"strict": False}
    prepared = prepare_data(DataConfig(str(class_folders)), val_fraction=0.2, seed=0, minival=6, **quiet)
    place, model = weights_of(prepared.minival, tmp_path, prepared.train.class_names)
    with pytest.raises(InputError, match=mentioning("6", "minival")):
        overlap_of(place, model, prepared)
    unasked = overlap_of(place, model, prepared, refuse=False)
    assert unasked.minival_trained
    assert "select nothing" in unasked.notes[-1]
    found = overlap_of(place, weights_of(prepared.minival, tmp_path)[1], prepared)
    assert found.num_trained == 0
    (line,) = found.notes
    assert mentions(line, place, "6", "minival")


@pytest.mark.parametrize(("known", "is_refused"), [(("blue", "green"), True), (("oak", "elm"), False)])
def test_minival_that_trained_the_weights_for_one_of_the_classes_selects_nothing(
    known, is_refused, class_folders, tmp_path
):
    """A class was added since."""
    prepared = prepare_data(DataConfig(str(class_folders)), val_fraction=0.2, seed=0, minival=6, strict=False)
    place, model = weights_of(prepared.minival, tmp_path)
    assert pretrain_overlap(place, model, prepared, classes=known, refuse=False).minival_trained == is_refused


def test_note_on_a_split_states_that_minival_is_not_used(class_folders):
    prepared = prepare_data(DataConfig(str(class_folders)), val_fraction=0.2, seed=0, strict=False)
    prepared = replace(prepared, split_note=f"Minival: 6 images. {MINIVAL_USE}", has_selection_set=True)
    unused = prepared.without_selection()
    assert unused.minival is None
    assert "temperature" not in unused.split_note
    assert mentions(unused.split_note, "Minival: 6 images", "not used")


@pytest.mark.parametrize("setting", ["patience=2", "eval_image_size_candidates=[32,64]"])
def test_selection_by_images_that_trained_the_weights_is_refused(setting, class_folders, tmp_path, monkeypatch):
    overlap = PretrainOverlap(1, 0, ("They trained the weights.",), minival_trained=True)
    monkeypatch.setattr(resolve, "pretrain_overlap", lambda *args, **more: overlap)
    fixed = ["minival=6", "model=efficientnetv2_b0", "precision=fp32", "compile=false", "epochs=10"]
    recipe = with_overrides(get_recipe("quick"), [*fixed, setting])
    data = prepare_data(DataConfig(str(class_folders)), val_fraction=0.2, seed=0, minival=6, strict=False)
    request = RunRequest(tmp_path / "run", recipe, TrainOverrides(), RunOptions())
    with pytest.raises(InputError, match=mentioning("They trained", f"{setting.partition('=')[0]}=null")):
        resolve.resolve_unmeasured(request, data, Hardware(torch.device("cpu")), None, None)


def test_run_from_weights_trained_on_its_val_images_is_optimistic(class_folders, tmp_path):
    """Another seed gives other val images, which are training images of the first run."""
    args = ("train", class_folders, *TINY[:-2], "--epochs", "0.5")
    done = effnetv2(*args, "--weights", "none", "--output", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained = {path for path, split in splits(tmp_path / "first") if split == "train"}
    out = tmp_path / "seed1"
    done = effnetv2(*args, "--weights", "first", "--seed", 1, "--output", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    known = sum(split == "val" and path in trained for path, split in splits(out))
    assert (report["num_eval_images_seen_in_training"], report["optimistic"]) == (known, True)
    assert known > 0
    message = f"{known} of the 9 images of val trained them"
    assert message in done.stdout
    assert message in (out / "log.txt").read_text()
    assert "trained them" in report["notes"][0]
    planned = effnetv2("train", "--dry-run", *args[1:], "--weights", "first", "--seed", 1, cwd=tmp_path)
    assert mentions(planned.stdout, "val")
    # Val images of the second run count too, because its initial weights were trained on them.
    ever = trained | {path for path, split in splits(tmp_path / "seed1") if split == "train"}
    assert len(ever) > 39
    done = effnetv2("evaluate", "seed1", class_folders, "--device", "cpu", "--json", cwd=tmp_path)
    output = json.loads(done.stdout)
    assert output["num_eval_images_seen_in_training"] == len(ever)
    assert mentions(output["notes"][0], len(ever), "48", "weight")


def test_resumed_run_keeps_the_fingerprint_of_its_initial_weights(tmp_path, monkeypatch):
    """Its weights come from the checkpoint. The file of the initial weights may be gone."""
    recipe = with_overrides(get_recipe("quick"), ["model=efficientnetv2_b0"])
    before = TrainingFingerprint(
        3, np.array([4, 5, 6]), earlier=TrainingFingerprint(9, np.array([1, 2]), of_several=True)
    )
    beginning = {
        "command": "train", "auto_choices": [], "preprocessing": Preprocessing(image_size=32).to_json(),
        "microbatches": {}, "weights_trained_on": before.to_json(),
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(beginning))
    pictures = SimpleNamespace(class_names=("a", "b"), channels=3)
    prepared = SimpleNamespace(train=pictures, dataset=pictures)
    monkeypatch.setattr(resume, "checkpoint_steps", lambda _: [7])
    folder, hardware = RunDir(tmp_path), Hardware(torch.device("cpu"))
    model = resume._initial_model(folder, folder.beginning(), recipe, prepared, hardware)
    again = model.trained_on
    assert (again.num_images, again.hashes.tolist()) == (3, [4, 5, 6])
    assert (again.earlier.num_images, again.earlier.hashes.tolist()) == (9, [1, 2])
    assert again.earlier.of_several


def test_training_pretraining_and_selection_images_are_known(class_folders, tmp_path):
    """8 images trained the initial weights, 8 the model, and 8 selected it. 24 images are unseen."""
    files = load_dataset(class_folders)
    first, second, chose = (remembered(files.select(np.arange(8 * part, 8 * part + 8))) for part in range(3))
    saved = replace(second, selection=chose).started_from(first, most=100)
    saved = TrainingFingerprint.from_json(saved.to_json())
    found = train_overlap(tmp_path / "m.safetensors", saved, files)
    assert (found.num_trained, found.pretraining, found.num_selected, found.exact) == (16, True, 8, True)
    assert found.unseen.tolist() == list(range(24, 48))


def test_fingerprints_of_a_chain_of_runs_are_combined(class_folders, tmp_path):
    """The third run started from the second, and the second from the first. Each has a quarter of the images."""
    files = load_dataset(class_folders)
    first, second, third = (remembered(files.select(np.arange(part, 48, 4))) for part in range(3))
    chain = third.started_from(second.started_from(first, most=100), most=100)
    known = train_overlap(tmp_path / "m", chain, files)
    assert (known.num_trained, known.exact, known.pretraining) == (36, True, True)
    assert known.unseen.tolist() == list(range(3, 48, 4))
    alone = train_overlap(tmp_path / "m", chain, files.select(np.arange(2, 48, 4)))
    assert mentions(alone.training_note, "12")
    # A sample is stored if the list is too long, so no image is known to be unseen.
    short = third.started_from(second.started_from(first, most=100), most=8)
    assert (short.earlier.num_images, len(short.earlier.hashes)) == (24, 8)
    known = train_overlap(tmp_path / "m", short, files)
    assert (known.num_trained, known.exact, known.unseen) == (36, False, None)
    sampled = third.started_from(replace(second, num_images=120, earlier=first), most=100)
    known = train_overlap(tmp_path / "m", sampled, files)
    assert (known.num_trained, known.exact, known.lower_bound, known.unseen) == (36, False, True, None)
    assert mentions(known.training_note, "36", "48")


def test_minival_is_checked_against_the_last_training_only(class_folders, tmp_path):
    """Earlier trainings may have had other classes, which is no reason for an error."""
    quiet = {"strict": False}
    prepared = prepare_data(DataConfig(str(class_folders)), val_fraction=0.2, seed=0, minival=6, **quiet)
    place, model = weights_of(prepared.train, tmp_path, prepared.train.class_names)
    model.trained_on = model.trained_on.started_from(remembered(prepared.minival), most=100)
    assert overlap_of(place, model, prepared) == PretrainOverlap()


def splits(run):
    table = pd.read_csv(run / "dataset.csv")
    return [(path.rpartition("/")[2], split) for path, split in zip(table["path"], table["split"], strict=True)]


def test_shards_keep_the_hashes_of_their_source_files(class_folders, tmp_path):
    """Trained on shards, also with smaller images, and evaluated on the source files."""
    files = load_dataset(class_folders)
    for name, image_size in (("whole", None), ("small", 16)):
        write_shards(files, tmp_path / name, PackOptions(10**9, image_size=image_size))
        known = train_overlap(tmp_path / "m", remembered(load_dataset(tmp_path / name)), files)
        assert mentions(known.training_note, "48")


def test_rewritten_image_is_recognized_by_its_path_only(class_folders, tmp_path):
    files = load_dataset(class_folders).with_split(np.array(["train"] * 48, dtype=object))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    files.to_csv(tmp_path / "run/dataset.csv")
    trained_on = remembered(files)
    shutil.copytree(class_folders, tmp_path / "elsewhere")
    for folder in (class_folders, tmp_path / "elsewhere"):
        for file in sorted((folder / "red").iterdir()):
            Image.open(file).rotate(90).save(file)
    assert train_overlap(tmp_path / "run", trained_on, load_dataset(class_folders)).training_note.startswith(
        "48 of these 48"
    )
    assert train_overlap(tmp_path / "run", trained_on, load_dataset(tmp_path / "elsewhere")).training_note.startswith(
        "32 of these 48"
    )
    assert train_overlap(tmp_path / "m", trained_on, load_dataset(class_folders)).training_note.startswith(
        "32 of these 48"
    )
    assert train_overlap(tmp_path / "run", None, load_dataset(class_folders)).training_note.startswith(
        "48 of these 48"
    ), "an older file"


def test_links_are_resolved(class_folders, tmp_path):
    """A link to a folder, and a folder of links to files."""
    files = load_dataset(class_folders).with_split(np.array(["train"] * 24 + ["val"] * 24, dtype=object))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    files.to_csv(tmp_path / "run/dataset.csv")
    (tmp_path / "way").symlink_to(class_folders, target_is_directory=True)
    for number, file in enumerate(sorted(class_folders.rglob("*.jpg"))):
        link = tmp_path / "links" / file.parent.name / f"{number}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    for data in ("way", "links"):
        assert train_overlap(tmp_path / "run", None, load_dataset(tmp_path / data)).num_trained == 24


def test_run_behind_a_link_recognizes_its_images(class_folders, tmp_path):
    files = load_dataset(class_folders).with_split(np.array(["train"] * 24 + ["val"] * 24, dtype=object))
    (tmp_path / "scratch/mine/runs/one").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "scratch/mine/runs", target_is_directory=True)
    (tmp_path / "runs/one/run.json").write_text("{}")
    files.to_csv(tmp_path / "runs/one/dataset.csv")
    for way in ("runs/one", "scratch/mine/runs/one"):
        assert train_overlap(tmp_path / way, None, load_dataset(class_folders)).num_trained == 24


def a_model(path, trained_on, calibration=None):
    """The file of an untrained model for the class folders, with this fingerprint."""
    model = create(SMALL, num_classes=3)
    model.preprocessing, model.class_names = Preprocessing(image_size=32), ("blue", "green", "red")
    model.trained_on, model.calibration = trained_on, calibration
    modelfile.save(path, model)
    return path


def called(files, split, path):
    """A table of images that all have one split."""
    rows = {"path": [str(files.file(row)) for row in range(len(files))], "label": list(files.table["label"])}
    pd.DataFrame({**rows, "split": split}).to_csv(path, index=False)
    return path


def test_train_split_of_another_dataset_is_not_training_data_of_the_model(class_folders, tmp_path):
    """Each image is compared with the fingerprint, and no image is in it."""
    model = a_model(tmp_path / "m.safetensors", TrainingFingerprint(2, np.array([1, 2])))
    table = called(load_dataset(class_folders), "train", tmp_path / "elsewhere.csv")
    args = ("evaluate", model, table, "--split", "train", "--device", "cpu")
    done = effnetv2(*args, "--output", "rated", "--calibrate", "calibrated.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Optimistic" not in done.stdout
    report = json.loads((tmp_path / "rated/report.json").read_text())
    assert (report["evaluated_on"], report["num_eval_images_seen_in_training"], report["optimistic"]) == (
        "train",
        0,
        False,
    )
    page = (tmp_path / "rated/report.html").read_text()
    assert "the model was trained on these images" not in page
    assert "images of split train" in page
    assert modelfile.load(tmp_path / "calibrated.safetensors").calibration.fitted_on == "train"


@pytest.mark.parametrize(
    "trained_on", [None, TrainingFingerprint(20_000, np.array([1, 2]))], ids=["nothing", "a sample"]
)
def test_train_split_counts_as_training_data_if_the_fingerprint_is_incomplete(trained_on, class_folders, tmp_path):
    model = a_model(tmp_path / "m.safetensors", trained_on)
    table = called(load_dataset(class_folders), "train", tmp_path / "pictures.csv")
    args = ("evaluate", model, table, "--split", "train", "--device", "cpu")
    done = effnetv2(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Optimistic: these images trained the model." in done.stdout
    assert "also chose" not in done.stdout
    refused = effnetv2(*args, "--calibrate", "calibrated.safetensors", cwd=tmp_path)
    assert refused.returncode == 2
    assert "images of train trained the model" in refused.stderr
    assert "evaluating at" not in refused.stdout


def test_selection_images_do_not_count_as_unseen(class_folders, tmp_path):
    """Of 48 images, ten trained the model, eight selected weights and temperature, and thirty are unseen."""
    files = load_dataset(class_folders)
    parts = [files.select(np.arange(*ends)) for ends in ((0, 10), (10, 18))]
    trained_on = replace(remembered(parts[0]), selection=remembered(parts[1]))
    model = a_model(tmp_path / "m.safetensors", trained_on, Calibration(1.5, 8, "minival"))

    def told(data):
        done = effnetv2("evaluate", model, data, "--device", "cpu", "--output", "rated", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    chose = "chose its weights, as its minival."
    fitted = "Its temperature was fitted on those of minival: the calibration error is optimistic."
    found = told(class_folders)
    assert (
        found["num_eval_images_seen_in_training"],
        found["num_eval_images_used_for_selection"],
        found["unseen"]["num_images"],
    ) == (10, 8, 30)
    trained = "10 of these 48 images trained the model."
    assert found["notes"] == [trained, f"8 of these 48 images {chose}", fitted]
    page = (tmp_path / "rated/report.html").read_text()
    assert mentions(page, "30", "48")
    found = told(called(files.select(np.arange(10, 48)), "val", tmp_path / "others.csv"))
    assert (found["num_eval_images_seen_in_training"], found["optimistic"], found["unseen"]["num_images"]) == (
        0,
        True,
        30,
    )
    assert found["notes"] == [f"8 of these 38 images {chose}", fitted]
    page = (tmp_path / "rated/report.html").read_text()
    assert mentions(page, "selected", "8")


def test_older_file_without_selection_images_has_no_unseen_images(class_folders, tmp_path):
    """The file states that minival selected the model, but not which images were in minival."""
    files = load_dataset(class_folders)
    model = modelfile.load(a_model(tmp_path / "m.safetensors", remembered(files.select(np.arange(10)))))
    assert train_overlap(tmp_path, model.trained_on, files).unseen.tolist() == list(range(10, 48))
    model.metrics = {"selected_on": "minival"}
    modelfile.save(tmp_path / "m.safetensors", model)
    older = modelfile.load(tmp_path / "m.safetensors").trained_on
    known = train_overlap(tmp_path, older, files)
    assert (known.num_trained, known.num_selected, known.unseen) == (10, 0, None)


def test_rewritten_minival_image_is_recognized_by_its_path(class_folders, tmp_path):
    parts = ["train"] * 24 + ["minival"] * 12 + ["val"] * 12
    files = load_dataset(class_folders).with_split(np.array(parts, dtype=object))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    files.to_csv(tmp_path / "run/dataset.csv")
    trained_on = remembered(files.subset("train"))
    chosen = replace(trained_on, selection=TrainingFingerprint(1, np.array([5])))
    known = train_overlap(tmp_path / "run", chosen, files)
    assert (known.num_trained, known.num_selected, known.unseen.tolist()) == (24, 12, list(range(36, 48)))
    # A run without minival ignores this split of its table.
    known = train_overlap(tmp_path / "run", trained_on, files)
    assert (known.num_selected, len(known.unseen)) == (0, 24)


def test_overlap_estimated_from_a_sample_is_marked_as_an_estimate(tmp_path):
    """500 of 2,000 training images and 500 others: the sample of 400 contains 100 ± 9 of the 500."""
    for number in range(2_500):
        (tmp_path / f"{number}.jpg").write_bytes(f"content {number}".encode())
    rows = [{"path": f"{number}.jpg", "label": "ab"[number % 2]} for number in range(2_500)]
    pd.DataFrame(rows).to_csv(tmp_path / "list.csv", index=False)
    dataset = load_dataset(tmp_path / "list.csv")
    trained_on = remembered(dataset.select(np.arange(2_000)), most=400)
    known = train_overlap(tmp_path / "m", trained_on, dataset.select(np.arange(1_500, 2_500)))
    assert not known.exact
    assert 500 - 4 * 45 < known.num_trained < 500 + 4 * 45
    assert mentions(known.training_note, known.num_trained, "1000")
    assert train_overlap(tmp_path / "m", trained_on, dataset.select(np.arange(2_000, 2_500))).training_note is None


def test_overlap_of_an_ensemble_is_a_lower_bound(tmp_path):
    """Five folds of 2,000 store a third of their 1,600 images each: about half of 100 is recognized."""
    for number in range(2_400):
        (tmp_path / f"{number}.jpg").write_bytes(f"content {number}".encode())
    rows = [{"path": f"{number}.jpg", "label": "ab"[number % 2]} for number in range(2_400)]
    pd.DataFrame(rows).to_csv(tmp_path / "list.csv", index=False)
    dataset = load_dataset(tmp_path / "list.csv")
    folds = [EfficientNet(SMALL, num_classes=2) for _ in range(5)]
    for number, model in enumerate(folds):
        trained = np.flatnonzero(np.arange(2_000) % 5 != number)
        model.trained_on = remembered(dataset.select(trained), most=len(trained) // 3)
    known = train_overlap(tmp_path / "m", Ensemble(folds).trained_on, dataset.select(np.arange(1_900, 2_400)))
    assert (known.exact, known.lower_bound, known.unseen) == (False, True, None)
    assert 40 < known.num_trained <= 100
    assert mentions(known.training_note, known.num_trained, "500")


def test_fingerprint_survives_json(class_folders, tmp_path):
    marks = np.array([0, 5, 2**63 - 1], dtype=np.int64)
    again = TrainingFingerprint.from_json(TrainingFingerprint(40, marks).to_json())
    assert again.num_images == 40
    assert again.hashes.tolist() == marks.tolist()
    assert again.stored_fraction == 3 / 40
    chosen = TrainingFingerprint(40, marks, selection=TrainingFingerprint(3, marks))
    assert TrainingFingerprint.from_json(chosen.to_json()).selection.hashes.tolist() == marks.tolist()
    assert again.selection is None
    old = chosen.to_json().replace("num_images", "pictures").replace("hashes", "marks").replace("selection", "chose")
    assert TrainingFingerprint.from_json(old).to_json() == chosen.to_json(), "names of version 0.1"
    whole = TrainingFingerprint(1_000_000, np.arange(16_384, dtype=np.int64) << 49)
    assert len(whole.to_json()) < 180_000, "what a million pictures add to a model file"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"pictures": 1, "marks": "??"}',
        '{"pictures": 1, "marks": "AAAA"}',
        '{"pictures": 1, "marks": "AAAAAAAAAAA=", "chose": 3}',
    ],
)
def test_damaged_fingerprint_names_the_file(text, tmp_path):
    with pytest.raises(InputError, match=mentioning(KEY, "far.safetensors")):
        parse_entry(tmp_path / "far.safetensors", text, KEY, TrainingFingerprint.from_json)


def test_metrics_of_unseen_images_use_cluster_intervals():
    """40 of 60 images, in 8 locations that are all right or all wrong."""
    labels = np.tile([0, 1], 30)
    predicted = np.where(np.arange(60) // 5 % 2 == 0, labels, 1 - labels)
    predictions = Predictions(np.arange(60), labels, torch.eye(2)[predicted] * 9)
    known = TrainOverlap(20, exact=True, num_images=60, unseen=np.arange(20, 60))
    whole = Clusters(np.arange(60) // 5, "places")
    alone, together = (
        unseen_metrics(predictions, known, ("a", "b"), one)[1]["intervals"]["top1"] for one in (None, whole)
    )
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
