"""``--weights auto`` with several candidates: a comparison on training images selects the weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tests.command_line import TINY, effnetv2
from tests.conftest import COLORS, paint
from tests.data.test_splits import dataset
from tests.messages import mentions
from tests.metrics.test_metric_differences import alike_places

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.inference import predict
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training import initial_weights, initial_weights_selection
from efficientnetv2.training.initial_weights import WeightsCandidate
from efficientnetv2.training.initial_weights_selection import select_weights
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.run_request import RunOptions, RunRequest
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

CPU = Hardware(torch.device("cpu"))
SMALL = ("progressive.stages=2", "progressive.image_size={start: 32, end: 32}")


def painted(folder, names=("red", "green", "blue"), each=12):
    """Classes of one color each, which any informative model separates."""
    for name in names:
        for number in range(each):
            paint(folder / name / f"{number}.jpg", COLORS[name], number, px=32)
    return folder


def requested(words, starts, tmp_path, options=None):
    recipe, notes = requested_recipe(words, CPU.device, found=starts[0])
    options = options or RunOptions()
    return RunRequest(tmp_path / "run", recipe, words, options, tuple(notes), candidates=starts)


def compared(words, starts, source, tmp_path, place=None):
    known = requested(words, starts, tmp_path, place)
    recipe = known.recipe
    prepared = prepare_data(source, val_fraction=recipe.val_fraction, seed=recipe.seed, strict=False)
    return known, select_weights(known, prepared, CPU), prepared


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of V2-B0: random weights, and the same weights with constant features."""
    place = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = create("efficientnetv2_b0", num_classes=0)
    how = Preprocessing(image_size=32)
    model_file.save(place / "drawn.safetensors", model, preprocessing=how, class_names=())
    with torch.no_grad():
        model.stem.conv.weight.zero_()
    model_file.save(place / "blind.safetensors", model, preprocessing=how, class_names=())
    return place


def found(file, title):
    return WeightsCandidate(str(file), f"Weights: {file}.", title)


SCRATCH = WeightsCandidate("none", "Weights: none, training from scratch.")


@pytest.mark.usefixtures("on_screen")
def test_start_of_the_comparison_is_printed(files, tmp_path, capsys, monkeypatch):
    """Before the first image, because no progress bar is visible under nohup."""

    def ended(*_):
        raise InputError("as far as the first answer")

    monkeypatch.setattr(initial_weights_selection, "_predict", ended)
    source = DataConfig(str(painted(tmp_path / "pictures")))
    starts = found(files / "blind.safetensors", "blind"), found(files / "drawn.safetensors", "drawn")
    with pytest.raises(InputError, match="first answer"):
        compared(TrainOverrides(settings=SMALL), starts, source, tmp_path)
    assert mentions(capsys.readouterr().out, "2", "30", "training")


def test_better_features_win_in_any_order(files, tmp_path):
    source = DataConfig(str(painted(tmp_path / "pictures")))
    blind, drawn = found(files / "blind.safetensors", "blind"), found(files / "drawn.safetensors", "drawn")
    for starts in ((blind, drawn), (drawn, blind)):
        _, after, _ = compared(TrainOverrides(settings=SMALL), starts, source, tmp_path)
        assert after.recipe.weights == drawn.word
        assert after.comparison is not None
        values = {one["weights"]: one["value"] for one in after.comparison["candidates"]}
        assert values[drawn.word] > values[blind.word] + 0.2
        assert "for drawn" in after.notes[0]
        assert "for blind" in after.notes[0]


def test_uninformative_weights_are_replaced_by_training_from_scratch(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = DataConfig(str(painted(tmp_path / "pictures")))
    starts = (found(files / "blind.safetensors", "blind"), SCRATCH)
    before, after, _ = compared(TrainOverrides(settings=SMALL), starts, source, tmp_path)
    assert (before.recipe.name, after.recipe.name) == ("finetune", "quick")
    assert after.recipe.weights == "none"
    assert after.path.name.endswith("quick")
    _, explicit, _ = compared(
        TrainOverrides(settings=SMALL), starts, source, tmp_path, RunOptions(out=tmp_path / "mine")
    )
    assert explicit.path == tmp_path / "run"  # --output is kept


def test_weights_equal_to_random_weights_are_used(files, tmp_path, monkeypatch):
    """At equal results of the probe."""
    monkeypatch.chdir(tmp_path)
    source = DataConfig(str(painted(tmp_path / "pictures")))
    drawn = found(files / "drawn.safetensors", "drawn")
    same = np.zeros(36, dtype=np.int64)
    monkeypatch.setattr(
        initial_weights_selection, "_predict", lambda one, recipe, task, *rest: same[: len(task.images)]
    )
    _, after, _ = compared(TrainOverrides(settings=SMALL), (drawn, SCRATCH), source, tmp_path)
    assert after.recipe.weights == drawn.word


@pytest.mark.parametrize(("num_better", "weights"), [(1, "drawn"), (20, "none")])
def test_random_weights_must_be_significantly_better(num_better, weights, files, tmp_path, monkeypatch):
    source = DataConfig(str(painted(tmp_path / "pictures")))
    drawn = found(files / "drawn.safetensors", "drawn")

    def answers(one, recipe, task, *rest):
        predicted = np.zeros_like(task.images.labels)
        if one is SCRATCH:
            better = np.flatnonzero(task.images.labels)[-num_better:]
            predicted[better] = task.images.labels[better]
        return predicted

    monkeypatch.setattr(initial_weights_selection, "_predict", answers)
    _, after, _ = compared(TrainOverrides(settings=SMALL), (drawn, SCRATCH), source, tmp_path)
    assert after.recipe.weights == (drawn.word if weights == "drawn" else "none")


def test_better_weights_that_are_unavailable_are_named(files, tmp_path):
    source = DataConfig(str(painted(tmp_path / "pictures")))
    blind, drawn = found(files / "blind.safetensors", "blind"), found(files / "drawn.safetensors", "drawn")
    for starts in ((replace(blind, lacking="no network."), drawn), (replace(drawn, lacking="no network."), blind)):
        _, after, _ = compared(TrainOverrides(settings=SMALL), starts, source, tmp_path)
        assert after.recipe.weights == drawn.word
        assert "Not compared, but promising more: no network." in after.notes


def test_candidate_with_an_incompatible_recipe_is_left_out(files, tmp_path):
    """Three stage fractions fit finetune. From scratch, the recipe would be quick with four stages, an error."""
    source = DataConfig(str(painted(tmp_path / "pictures")))
    overrides = TrainOverrides(
        settings=("progressive.stage_fractions=[1, 2, 3]", "progressive.image_size={start: 32, end: 32}")
    )
    blind, drawn = found(files / "blind.safetensors", "blind"), found(files / "drawn.safetensors", "drawn")
    _, alone, _ = compared(overrides, (blind, SCRATCH), source, tmp_path)
    assert alone.recipe.weights == blind.word
    assert alone.comparison is None
    assert mentions(alone.notes[-1], "stage_fractions", "weight")
    _, after, _ = compared(overrides, (blind, SCRATCH, drawn), source, tmp_path)
    assert [one["weights"] for one in after.comparison["candidates"]] == [blind.word, drawn.word]
    assert after.recipe.weights == drawn.word
    assert "random weights left out" in after.notes[-1]
    # At 56 px, finetune starts with 32 px, quick with 28.
    small = TrainOverrides(image_size=56)
    _, after, _ = compared(small, (blind, SCRATCH), source, tmp_path)
    assert after.notes[-1].startswith("Weights: random weights left out of the comparison. Of its recipe: the smallest")


def test_first_of_equal_candidates_is_used_and_a_single_one_is_not_compared(files, tmp_path):
    source = DataConfig(str(painted(tmp_path / "pictures", each=8)))
    one, same = found(files / "drawn.safetensors", "one"), found(files / "drawn.safetensors", "same")
    _, after, _ = compared(TrainOverrides(settings=SMALL), (one, same), source, tmp_path)
    assert after.comparison is not None
    assert len({one["value"] for one in after.comparison["candidates"]}) == 1
    assert "for one" in after.notes[0]
    before, alone, _ = compared(TrainOverrides(settings=SMALL), (one,), source, tmp_path)
    assert alone == before


def test_less_preferred_weights_win_only_by_a_significant_difference(tmp_path):
    """100 images, 60 right for one candidate. The other candidate is right for 3 or 20 more."""
    dataset = load_dataset(str(painted(tmp_path / "pictures", ("red", "blue"), each=50)))
    labels, alone = dataset.labels, np.arange(100)
    task = initial_weights_selection._Task(dataset, [], alone, "", "top1", Key.of(0))
    wrong = np.random.default_rng(0).permutation(100)

    def right_but(number):
        predicted = labels.copy()
        predicted[wrong[:number]] = 1 - predicted[wrong[:number]]
        return predicted

    assert not task.is_better(right_but(37), right_but(40))
    assert task.is_better(right_but(20), right_but(40))
    assert not task.is_better(right_but(40), right_but(20))
    together = replace(task, clusters=(np.argsort(wrong) < 40).astype(np.int64))
    assert not together.is_better(right_but(20), right_but(40)), "two places are too few to say it of a third"
    nobody = np.full(100, -1)
    assert not task.is_better(nobody, right_but(40))


def test_few_equal_locations_give_no_significant_difference():
    """Four locations of ten images, with two errors against one in each: significant by locations, not by images."""
    labels, one, other, place = alike_places()
    task = initial_weights_selection._Task(dataset(labels), [], place, "", "top1", Key.of(0))
    assert not task.is_better(one, other)


def test_comparison_excludes_val_images_and_keeps_groups_together(files, tmp_path, monkeypatch):
    painted(tmp_path / "pictures", ("red", "blue"), each=24)
    rows = ["path,label,group"]
    rows += [
        f"pictures/{name}/{number}.jpg,{name},{name}{number // 3}" for name in ("red", "blue") for number in range(24)
    ]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    seen, real = [], predict.embed_dataset

    def embed(network, dataset, **others):
        seen.append(dataset)
        return real(network, dataset, **others)

    monkeypatch.setattr(initial_weights_selection, "embed_dataset", embed)
    source = DataConfig(str(tmp_path / "table.csv"), group_column="group")
    starts = (found(files / "drawn.safetensors", "drawn"), SCRATCH)
    _, after, prepared = compared(TrainOverrides(settings=SMALL), starts, source, tmp_path)
    assert len(seen) == 2
    assert not {path for part in seen for path in part.paths} & set(prepared.val.paths)
    assert "groups kept whole" in after.notes[0]
    task = initial_weights_selection._task(
        after.recipe.model_copy(update={"eval_image_size": 32}), prepared, None, CPU, None
    )
    for learning, evaluated in task.folds:
        group = task.images.table["group"].to_numpy()
        assert not set(group[learning]) & set(group[evaluated])


def test_small_images_are_compared_at_their_training_size(files, tmp_path, monkeypatch):
    """Images of 32 px are enlarged four times, as in training, not to the 224 px of the recipe."""
    sizes = []

    def embed(network, dataset, *, preprocessing, **others):
        sizes.append(preprocessing.image_size)
        vectors = np.eye(len(dataset.class_names), dtype=np.float32)[dataset.labels]
        return predict.Embeddings(np.arange(len(dataset)), dataset.labels, vectors)

    monkeypatch.setattr(initial_weights_selection, "embed_dataset", embed)
    starts = found(files / "drawn.safetensors", "drawn"), found(files / "blind.safetensors", "blind")
    source = DataConfig(str(painted(tmp_path / "pictures", ("red", "blue"))))
    _, after, _ = compared(TrainOverrides(), starts, source, tmp_path)
    assert (sizes, after.recipe.progressive.last.image_size) == ([128, 128], 224)
    compared(TrainOverrides(settings=("eval_image_size=160",)), starts, source, tmp_path)
    assert sizes[2:] == [160, 160]


def test_sample_for_the_comparison_includes_rare_classes():
    labels = np.repeat(np.arange(5), [2000, 800, 300, 6, 3])
    key = initial_weights_selection.Key.of(0)
    rows = initial_weights_selection._draw(labels, 150, key)
    counts = np.bincount(labels[rows], minlength=5)
    assert len(rows) == 150
    assert list(counts[3:]) == [4, 3]
    assert np.array_equal(rows, initial_weights_selection._draw(labels, 150, key))
    many = np.arange(900) % 300  # more classes than sampled images
    assert len(np.unique(many[initial_weights_selection._draw(many, 240, key)])) == 60


class FakeClock:
    """A clock that advances with each embedded image."""

    def __init__(self, monkeypatch, *each_s):
        self.now, self.images, each = 0.0, [], iter(each_s)

        def embed(network, dataset, *, progress=None, **others):
            self.now += next(each) * len(dataset)
            self.images.append(len(dataset))
            if progress is not None:
                progress(len(dataset))
            vectors = np.eye(len(dataset.class_names), dtype=np.float32)[dataset.labels]
            return predict.Embeddings(np.arange(len(dataset)), dataset.labels, vectors)

        monkeypatch.setattr(initial_weights_selection, "embed_dataset", embed)
        monkeypatch.setattr(initial_weights_selection, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.mark.parametrize(
    ("each_s", "left_s", "looked_at"),
    [
        ((0.01,) * 4, 100.0, [1, 24, 288, 288]),  # all of train
        ((1.05, 0.1, 0.1, 0.1), 100.0, [1, 24, 107, 107]),  # of 25 s, 3.45 s are used
        ((1.0, 1.0), 100.0, [1, 24]),  # too slow for 100 images of each candidate
        ((0.1, 0.1, 0.5), 100.0, [1, 24, 112]),  # the machine becomes slower
    ],
)
def test_comparison_keeps_to_its_share_of_the_time(each_s, left_s, looked_at, files, tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch, *each_s)
    starts = found(files / "drawn.safetensors", "drawn"), found(files / "blind.safetensors", "blind")
    overrides = TrainOverrides(minutes=60, settings=SMALL)
    source = DataConfig(str(painted(tmp_path / "pictures", each=120)))
    known = requested(overrides, starts, tmp_path)
    prepared = prepare_data(source, val_fraction=known.recipe.val_fraction, seed=0, strict=False)
    assert len(prepared.train) == 288
    budget = SimpleNamespace(left_s=left_s)
    after = select_weights(known, prepared, CPU, budget)
    assert clock.images == looked_at
    assert clock.now <= 25 * 1.5 + 112 * 0.5
    if len(looked_at) < 4:
        assert after.recipe.weights == starts[0].word
        assert after.comparison is None
        assert mentions(after.notes[-1], "not compared", "time")
    else:
        assert after.comparison["num_images"] == looked_at[-1]


def test_selection_is_in_log_report_and_recipe_also_after_resume(files, class_folders, tmp_path, monkeypatch):
    """Bundled weights against training from scratch. The selection is made once."""
    shipped = tmp_path / "weights"
    shipped.mkdir()
    monkeypatch.setattr(initial_weights, "BUNDLED", shipped)
    shutil.copy(files / "drawn.safetensors", shipped / "efficientnetv2_b0.safetensors")
    at_hand = initial_weights.weights_candidates("efficientnetv2_b0")
    assert [one.title for one in at_hand] == ["the shipped efficientnetv2_b0.safetensors", "random weights"]
    monkeypatch.setattr("efficientnetv2.training.overrides.weights_candidates", lambda model: at_hand)
    from efficientnetv2.workflows.train import train_and_report

    overrides = TrainOverrides(model="efficientnetv2_b0", epochs=1, batch_size=8, settings=SMALL)
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    train_and_report(overrides, DataConfig(str(class_folders)), RunOptions(out=out, device="cpu", workers=0))
    report = json.loads((out / "report.json").read_text())
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert len(report["weights_compared"]["candidates"]) == 2
    line = next(line for line in report["auto_choices"] if line.startswith("Weights: "))
    assert "inside the training split" in line
    assert line in (out / "log.txt").read_text()
    assert recipe["weights"] in line
    assert recipe["weights"].endswith("efficientnetv2_b0.safetensors"), "neither is better by more than chance"
    better = next(line for line in report["auto_choices"] if line.startswith("Better weights: "))
    assert mentions(better, "effnetv2 models --fetch efficientnetv2_b0.in1k")
    assert "`weights`" in better
    assert report["next_steps"][0]["topic"] == "weights" or report["next_steps"][1]["topic"] == "weights"
    again = effnetv2("train", class_folders, "--output", out, "--resume", "--device", "cpu", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert yaml.safe_load((out / "recipe.yaml").read_text()) == recipe


def test_given_weights_are_not_compared(files, class_folders, tmp_path):
    done = effnetv2(
        "train", class_folders, *TINY[2:], "--weights", files / "drawn.safetensors", "--output", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "weights_compared" not in json.loads((tmp_path / "run/report.json").read_text())


def test_comparison_keeps_identical_files_together(tmp_path):
    folder = painted(tmp_path / "pictures", ("red", "blue"), each=24)
    for file in list(folder.rglob("*.jpg")):
        shutil.copy(file, file.with_name(f"z{file.name}"))
    recipe = requested(TrainOverrides(settings=SMALL), (SCRATCH,), tmp_path).recipe
    prepared = prepare_data(DataConfig(str(folder)), val_fraction=recipe.val_fraction, seed=0, strict=False)
    recipe = recipe.model_copy(update={"eval_image_size": 32})
    task = initial_weights_selection._task(recipe, prepared, None, CPU, None)
    names = np.array([path.replace("z", "") for path in task.images.paths])
    assert len(set(names)) < len(names)
    for learning, evaluated in task.folds:
        assert not set(names[learning]) & set(names[evaluated])
