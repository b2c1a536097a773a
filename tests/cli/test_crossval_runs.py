"""The runs of a cross-validation: each fold selects its initial weights, and all runs together keep to the minutes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.cli.test_crossval import fake_training, painted
from tests.command_line import NETWORK
from tests.messages import mentioning, mentions

from efficientnetv2.architectures import registry
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.evaluation.predictions import predictions_table, write_predictions
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training import initial_weights_selection
from efficientnetv2.training.initial_weights import WeightsCandidate
from efficientnetv2.training.memory_probe import MemoryProbe
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_request import RunOptions, RunRequest, repeat_recipe
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.errors import DivergedError, InputError, ReaderKilledError
from efficientnetv2.workflows import crossval_runs
from efficientnetv2.workflows import train as train_job
from efficientnetv2.workflows.crossval import check_recipes, run_crossval
from efficientnetv2.workflows.crossval_config import CrossValConfig
from efficientnetv2.workflows.crossval_runs import FoldTrainer, best_candidates, run_name

# Epochs depend on the number of training images, so that a recipe resolved again would differ.
SETTINGS = (
    "progressive.stages=1", "progressive.image_size=32", "epochs=auto", "auto_epochs=[200, 1, 50]", "batch_size=8",
    "head_init=random", "precision=fp32", "compile=false",
)  # fmt: skip
CANDIDATES = ("class_sampling=null", "class_sampling=equal")
THREE_CANDIDATES = (*CANDIDATES, "class_sampling=sqrt")


def fake_train(job, run, *_):
    """Replaces training: writes the files of a run with a resolved recipe."""
    val, path = run.data.val, run.request.path
    predictions = Predictions(np.arange(len(val)), val.labels, torch.eye(2)[torch.tensor(val.labels)] * 9)
    table = predictions_table(predictions, val.paths, val.class_names, true_labels=list(val.table["label"]))
    write_predictions(path / "predictions.csv", table)
    report = {"top1": 1.0, "macro_f1": 1.0, "epochs": run.recipe.epochs, "wall_s": 1.0}
    (path / "report.json").write_text(json.dumps(report))
    (path / model_file.NAME).touch()


@pytest.fixture
def initial_weights(tmp_path, monkeypatch):
    """Two weight files to select from."""
    found = []
    for name in ("first", "second"):
        headless = create(registry.read_architecture(Path(NETWORK)), num_classes=0)
        file = tmp_path / f"{name}.safetensors"
        model_file.save(file, headless, preprocessing=Preprocessing(image_size=32), class_names=())
        found.append(WeightsCandidate(str(file), f"Weights: {file}.", name))
    monkeypatch.setattr("efficientnetv2.training.overrides.weights_candidates", lambda model: tuple(found))
    return found


def test_each_fold_selects_its_weights_and_repeats_their_recipe(initial_weights, tmp_path, monkeypatch):
    """Folds that train on one image prefer the first weights; the fold that predicts it prefers the second."""
    data, contents, plan = (load_dataset(painted(tmp_path, 25)), np.arange(25), CrossValConfig(folds=3, by="class"))
    folds = plan.make_folds(data, contents, 0)
    sizes = [len(part.train_rows) for part in folds.parts]
    odd = next(number for number in (1, 2) if sizes[3 - number] != sizes[0])
    image = Path(data.paths[folds.parts[odd].val_rows[0]]).name

    def predict(found, recipe, task, *_):
        is_training_image = image in {Path(path).name for path in task.images.paths}
        is_correct = is_training_image == (found == initial_weights[0])
        return task.images.labels if is_correct else 1 - task.images.labels

    monkeypatch.setattr(initial_weights_selection, "_predict", predict)
    monkeypatch.setattr(train_job, "_train", fake_train)
    options = RunOptions(out=tmp_path / "out", device="cpu", workers=0)
    runs = FoldTrainer(TrainOverrides(model=NETWORK, settings=SETTINGS), plan, options, data, contents, 0)
    results = runs.predict(folds, tmp_path / "out", "Fold")

    files_of = [initial_weights[number == odd].word for number in range(3)]
    recipes = [read_recipe(tmp_path / f"out/fold{number + 1}/recipe.yaml") for number in range(3)]
    assert [one.weights for one in recipes] == files_of
    assert [one.score.weights for one in results] == [(one,) for one in files_of]
    assert recipes[3 - odd] == recipes[0]  # with another number of images
    assert recipes[odd].epochs == round(200 / sizes[odd], 2)
    assert [one.score for one in runs.predict(folds, tmp_path / "out", "Fold")] == [one.score for one in results]


@pytest.mark.parametrize(
    ("tries", "try_settings", "members"),
    [
        ((), (), 1),
        (CANDIDATES, (), 1),
        (CANDIDATES, ("epochs=2",), 1),
        ((), (), 2),
        (CANDIDATES, (), 2),
        (THREE_CANDIDATES, ("epochs=2",), 2),
    ],
)
def test_minutes_are_shared_by_all_runs(tries, try_settings, members, tmp_path, monkeypatch):
    """By time, the third fold trains on three times as many images as the first, whose epochs it repeats."""
    spent = []

    def epochs_of(overrides, options, images):
        """The resolved epochs, the set epochs, or the epochs that fit if an image takes a second."""
        settings = dict(setting.split("=") for setting in overrides.settings)
        fitting = float(settings["epochs"]) if "epochs" in settings else overrides.minutes * 60 / images
        epochs = read_recipe(options.settled[0]).epochs if options.settled else fitting
        spent.append(epochs * images)
        return epochs

    def score_of(overrides, out):
        return 0.9 if out.name.endswith("_try2" if "fold2" in out.name else "_try1") else 0.5

    monkeypatch.setattr(crossval_runs, "train_run", fake_training(score_of, [], epochs_of))
    data, contents = with_years(tmp_path, 96), np.arange(96)
    plan = CrossValConfig(folds=3, by="time", tries=tries, try_settings=try_settings, members=members)
    folds = plan.make_folds(data, contents, 0)
    assert [len(part.train_rows) for part in folds.parts] == [24, 48, 72]
    options = RunOptions(out=tmp_path / "out")
    runs = FoldTrainer(TrainOverrides(minutes=90), plan, options, data, contents, 0)
    runs.predict(folds, tmp_path / "out", "Fold")
    assert len(spent) == plan.num_runs
    assert sum(spent) == pytest.approx(0.9 * 90 * 60, rel=0.02)


def test_candidates_that_exceed_the_minutes_are_refused(tmp_path, monkeypatch):
    def epochs_of(overrides, options, images):
        return 100.0

    monkeypatch.setattr(crossval_runs, "train_run", fake_training(lambda overrides, out: 0.5, [], epochs_of))
    data, contents = load_dataset(painted(tmp_path, 48)), np.arange(48)
    plan = CrossValConfig(folds=3, by="class", tries=CANDIDATES, try_settings=("epochs=100",))
    runs = FoldTrainer(TrainOverrides(minutes=1), plan, RunOptions(out=tmp_path / "out"), data, contents, 0)
    with pytest.raises(InputError, match=mentioning("minutes=1", "epochs=100")):
        runs.predict(plan.make_folds(data, contents, 0), tmp_path / "out", "Fold")


def test_candidate_with_epochs_is_refused_with_minutes():
    overrides, options = TrainOverrides(minutes=5, weights="none"), RunOptions(device="cpu")
    with pytest.raises(InputError, match=mentioning("candidates", "class_sampling=null", "epochs=4")):
        check_recipes(overrides, CrossValConfig(tries=("", "class_sampling=null epochs=4")), options)
    short = CrossValConfig(tries=CANDIDATES, try_settings=("epochs=4",))
    assert check_recipes(overrides, short, options).weights == "none"
    assert check_recipes(TrainOverrides(epochs=30, weights="none"), short, options).epochs == 30, (
        "the epochs of the folds"
    )


def probabilities_of(folder: Path, run: str) -> np.ndarray:
    """The predictions of a run: (n, 2) probabilities, in the order of the paths of the images."""
    table = pd.read_csv(folder / run / "predictions.csv").sort_values("path")
    return table[["a", "b"]].to_numpy()


def fake_training_with_random_predictions(calls, score_of):
    """Fake training whose predictions depend on the name and seed of a run, so that their mean differs from each."""
    plain = fake_training(score_of, calls)

    def run(overrides, source, options, *_, **__):
        plain(overrides, source, options)
        file = options.out / "predictions.csv"
        table = pd.read_csv(file)
        probability = np.random.default_rng([*options.out.name.encode(), overrides.seed or 0]).uniform(
            0.05, 0.95, len(table)
        )
        table.assign(a=probability, b=1 - probability).to_csv(file, index=False)

    return run


def test_best_candidates_are_an_ensemble(tmp_path, monkeypatch):
    """Two of three candidates predict: the third and first in fold 2, else the second and third."""
    calls = []

    def score_of(overrides, out):
        order = [0.5, 0.2, 0.9] if "fold2" in out.name else [0.1, 0.8, 0.6]
        return order[int(out.name[-1]) - 1] if "_try" in out.name else 0.0

    monkeypatch.setattr(crossval_runs, "train_run", fake_training_with_random_predictions(calls, score_of))
    data, out = load_dataset(painted(tmp_path, 48)), tmp_path / "out"
    plan = CrossValConfig(folds=3, by="class", tries=THREE_CANDIDATES, members=2)
    folds = plan.make_folds(data, np.arange(48), 0)
    runs = FoldTrainer(TrainOverrides(settings=("epochs=3",)), plan, RunOptions(out=out), data, np.arange(48), 0)
    results = runs.predict(folds, out, "Fold")

    assert [one.score.chosen for one in results] == [
        THREE_CANDIDATES[1:],
        (THREE_CANDIDATES[2], THREE_CANDIDATES[0]),
        THREE_CANDIDATES[1:],
    ]
    assert len(calls) == plan.num_runs == 3 * (3 + 2)
    for number, one in enumerate(results):
        by_member = [probabilities_of(out, run_name(number, member)) for member in range(2)]
        order = np.argsort([data.paths[row] for row in one.rows])
        assert one.probabilities[order] == pytest.approx((by_member[0] + by_member[1]) / 2, abs=1e-6)
        accuracy = (one.probabilities.argmax(axis=1) == data.labels[one.rows]).mean()
        assert one.score.top1 == pytest.approx(accuracy)
        assert one.score.seconds == 2 * 3 * len(folds.parts[number].train_rows)
    trained = {options.out.name: (overrides.settings, options.settled) for overrides, _, options in calls}
    assert trained["fold2_member2"][0][-1] == THREE_CANDIDATES[0]
    assert trained["fold3"][1] == (out / "fold1/recipe.yaml",), "the recipe of the same candidate"
    assert trained["fold3_member2"][1] == (out / "fold1_member2/recipe.yaml", out / "fold2/recipe.yaml")
    assert [one.score for one in runs.predict(folds, out, "Fold")] == [one.score for one in results]
    assert len(calls) == plan.num_runs


def test_candidate_that_diverges_counts_as_zero(tmp_path, monkeypatch):
    """Otherwise it would end all folds, and again after each resume. Without another candidate it is an error."""
    calls = []

    def score_of(overrides, out):
        if out.name in diverging:
            raise DivergedError("the loss is NaN")
        return 0.5

    monkeypatch.setattr(crossval_runs, "train_run", fake_training(score_of, calls))
    data, out = load_dataset(painted(tmp_path, 48)), tmp_path / "out"
    plan = CrossValConfig(folds=3, by="class", tries=CANDIDATES)
    folds = plan.make_folds(data, np.arange(48), 0)
    diverging = {f"fold{number}_try1" for number in (1, 2, 3)}
    runs = FoldTrainer(TrainOverrides(settings=("epochs=3",)), plan, RunOptions(out=out), data, np.arange(48), 0)
    assert [one.score.chosen for one in runs.predict(folds, out, "Fold")] == [(CANDIDATES[1],)] * 3
    diverging = {"fold1"}
    alone = FoldTrainer(TrainOverrides(), CrossValConfig(folds=3), RunOptions(out=out), data, np.arange(48), 0)
    with pytest.raises(DivergedError, match="Fold 1 of 3"):
        alone.predict(folds, tmp_path / "other", "Fold")


def test_members_without_candidates_differ_by_seed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        crossval_runs, "train_run", fake_training_with_random_predictions(calls, lambda overrides, out: 0.5)
    )
    data, out = load_dataset(painted(tmp_path, 48)), tmp_path / "out"
    plan = CrossValConfig(folds=2, by="class", members=3)
    folds = plan.make_folds(data, np.arange(48), 7)
    overrides = TrainOverrides(settings=("seed=7",))
    runs = FoldTrainer(overrides, plan, RunOptions(out=out), data, np.arange(48), 7)
    results = runs.predict(folds, out, "Fold")
    assert [(options.out.name, overrides.settings) for overrides, _, options in calls[:3]] == [
        ("fold1", ("seed=7",)), ("fold1_member2", ("seed=7", "seed=8")), ("fold1_member3", ("seed=7", "seed=9")),
    ]  # fmt: skip
    assert {options.settled for _, _, options in calls[:1]} == {()}
    assert all(options.settled[0] == out / "fold1/recipe.yaml" for _, _, options in calls[1:])
    by_member = [probabilities_of(out, run_name(1, member)) for member in range(3)]
    order = np.argsort([data.paths[row] for row in results[1].rows])
    assert results[1].probabilities[order] == pytest.approx(np.mean(by_member, axis=0), abs=1e-6)
    assert [one.score.chosen for one in results] == [(), ()]


def test_members_of_a_fold_differ_only_by_seed(initial_weights, tmp_path, monkeypatch):
    """Weights are compared once per fold; fields that depend on the seed are resolved for each member."""
    compared = []

    def predict(found, recipe, task, *_):
        compared.append(found.word)
        return task.images.labels if found == initial_weights[len(compared) > 2] else 1 - task.images.labels

    monkeypatch.setattr(initial_weights_selection, "_predict", predict)
    monkeypatch.setattr(train_job, "_train", fake_train)
    data, plan = load_dataset(painted(tmp_path, 24)), CrossValConfig(folds=2, by="class", members=3)
    random = ("progressive.stages=2", "progressive.image_size={start: 32, end: 64}", "progressive.order=random")
    overrides = TrainOverrides(model=NETWORK, seed=5, settings=(*SETTINGS[2:], *random))
    options = RunOptions(out=tmp_path / "out", device="cpu", workers=0)
    folds = plan.make_folds(data, np.arange(24), 5)
    results = FoldTrainer(overrides, plan, options, data, np.arange(24), 5).predict(folds, tmp_path / "out", "Fold")
    assert len(compared) == 2 * 2, "two weight files in each of two folds"
    assert [one.score.weights for one in results] == [(initial_weights[0].word,), (initial_weights[1].word,)]
    for number in range(2):
        recipes = [read_recipe(tmp_path / "out" / run_name(number, member) / "recipe.yaml") for member in range(3)]
        assert [(one.seed, one.progressive.seed) for one in recipes] == [(5, 5), (6, 6), (7, 7)]
        plain = [one.to_json() | {"seed": 0} for one in recipes]
        assert all(one | {"progressive": plain[0]["progressive"]} == plain[0] for one in plain)


def with_years(folder: Path, count: int) -> ImageDataset:
    """A dataset of this many images, two for each year."""
    table = pd.read_csv(painted(folder, count))
    table.assign(year=np.arange(count) // 2).to_csv(folder / "all.csv", index=False)
    return load_dataset(folder / "all.csv")


def test_later_fold_without_memory_keeps_the_ghost_batch_size(initial_weights, tmp_path, monkeypatch):
    """``--resume`` would refuse another recipe: all folds have the ghost batch size of the first."""
    room = [8]

    def train_then_shrink_memory(job, run, *others):
        fake_train(job, run)
        room[0] = 4

    monkeypatch.setattr(train_job, "_train", train_then_shrink_memory)
    monkeypatch.setattr(
        MemoryProbe, "largest_group", lambda self, setting, *, among: max(one for one in among if one <= room[0])
    )
    data, contents, plan = (load_dataset(painted(tmp_path, 24)), np.arange(24), CrossValConfig(folds=2, by="class"))
    overrides = TrainOverrides(model=NETWORK, weights=initial_weights[0].word, settings=(*SETTINGS, "epochs=1"))
    options = RunOptions(out=tmp_path / "out", device="cpu", workers=0)
    runs = FoldTrainer(overrides, plan, options, data, contents, 0)
    with pytest.raises(InputError, match=mentioning("2", "ghost_batch_size", "8", "4")) as error:
        runs.predict(plan.make_folds(data, contents, 0), tmp_path / "out", "Fold")
    assert mentions(str(error.value), "memory")
    assert read_recipe(tmp_path / "out/fold1/recipe.yaml").ghost_batch_size == 8


def test_a_killed_reader_prints_the_command_of_the_cross_validation(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise ReaderKilledError("A process that reads images was killed.")

    monkeypatch.setattr(Trainer, "fit", killed)
    file, out = painted(tmp_path, 24), tmp_path / "out"
    overrides = TrainOverrides(model=NETWORK, weights="none", settings=SETTINGS)
    options = RunOptions(out, device="cpu", workers=0, probe=False)
    with pytest.raises(ReaderKilledError) as error:
        run_crossval(overrides, DataConfig(str(file)), options, CrossValConfig(folds=2, by="class"))
    resume = f"To resume: effnetv2 crossval {file} --output {out} --resume --device cpu --workers 0"
    assert str(error.value) == f"Fold 1 of 2: A process that reads images was killed. {resume}"


def test_only_images_that_all_members_predicted_are_averaged():
    """One may be lost between the trainings of two members."""
    first = SimpleNamespace(rows=np.array([7, 2, 5]), probabilities=np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]]))
    second = SimpleNamespace(rows=np.array([5, 7]), probabilities=np.array([[0.9, 0.1], [0.1, 0.9]]))
    rows, mean = crossval_runs._mean_probabilities([first, second])
    assert rows.tolist() == [7, 5]
    assert mean == pytest.approx(np.array([[0.4, 0.6], [0.7, 0.3]]))


def test_as_many_members_as_candidates_need_no_selection(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(crossval_runs, "train_run", fake_training_with_random_predictions(calls, lambda args, out: 0.5))
    data, out = load_dataset(painted(tmp_path, 48)), tmp_path / "out"
    plan = CrossValConfig(folds=2, by="class", tries=CANDIDATES, members=2)
    folds = plan.make_folds(data, np.arange(48), 0)
    runs = FoldTrainer(TrainOverrides(), plan, RunOptions(out=out), data, np.arange(48), 0)
    results = runs.predict(folds, out, "Fold")
    assert not (out / "selection").exists()
    assert len(calls) == plan.num_runs == 4
    assert [(one.score.chosen, one.candidate_scores) for one in results] == [(CANDIDATES, ()), (CANDIDATES, ())]


def test_equal_candidates_keep_their_order():
    assert best_candidates(CrossValConfig(tries=THREE_CANDIDATES, members=2), (0.5, 0.7, 0.7)) == (1, 2)
    assert best_candidates(CrossValConfig(tries=THREE_CANDIDATES), (0.7, 0.5, 0.7)) == (0,)
    assert best_candidates(CrossValConfig(members=2), ()) == (None, None)


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"tries": CANDIDATES, "members": 3}, ("members", "3", "2", "candidates")),
        (
            {"tries": CANDIDATES, "members": 2, "try_settings": ("epochs=4",)},
            ("candidate_settings", "members", "2", "select"),
        ),
    ],
)
def test_impossible_members_are_refused(fields, facts):
    with pytest.raises(InputError, match=mentioning(*facts)):
        CrossValConfig(**fields)


def test_all_runs_of_the_folds_read_one_cache(tmp_path, monkeypatch):
    """By time the last period trains no model; runs of folds and runs of the selection inside folds share the cache."""
    runs = []
    monkeypatch.setenv("EFFNETV2_CACHE", str(tmp_path / "caches"))
    monkeypatch.setattr(train_job, "_train", lambda job, run, *_: runs.append(run) or fake_train(job, run))
    pd.read_csv(painted(tmp_path, 48)).assign(year=np.arange(48) // 2).to_csv(tmp_path / "all.csv", index=False)
    data, contents = load_dataset(tmp_path / "all.csv"), np.arange(48)
    plan = CrossValConfig(folds=2, by="time", tries=CANDIDATES)
    folds = plan.make_folds(data, contents, 0)
    overrides = TrainOverrides(model=NETWORK, weights="none", cache="disk", settings=SETTINGS)
    for out in (tmp_path / "out", tmp_path / "elsewhere/out"):
        options = RunOptions(out=out, device="cpu", workers=0)
        FoldTrainer(overrides, plan, options, data, contents, 0).predict(folds, out, "Fold")
    assert len(runs) == 2 * plan.num_runs
    assert len({len(ready.data.train) for ready in runs}) == 4, "two folds, and one selection inside each"
    assert "32 images decoded" in runs[0].cache.note
    assert "filled in" in runs[0].cache.note
    assert all("there already" in ready.cache.note for ready in runs[1:])
    assert len(list((tmp_path / "caches/images").iterdir())) == 1
    for ready in runs:
        train = ready.data.train
        for sample in range(len(train)):
            pixels = np.asarray(Image.open(train.file(sample)), dtype=float)
            assert abs(ready.cache.reader.source(sample) - pixels).mean() < 3, (
                "the pixels of this image, not of another"
            )


def test_minival_is_resolved_for_each_fold(tmp_path):
    """The first fold had too few images for minival; the next may have enough."""
    resolved = get_recipe("quick").model_copy(update={"minival": None, "epochs": 3.0})
    (tmp_path / "recipe.yaml").write_text(resolved.to_yaml())
    options = RunOptions(settled=(tmp_path / "recipe.yaml",))
    request = RunRequest(tmp_path / "next", get_recipe("quick"), TrainOverrides(), options)
    found = repeat_recipe(request)
    assert (found.recipe.epochs, found.recipe.minival, found.repeated) == (3.0, "auto", True)


def test_bands_and_missing_data_reach_every_run(tmp_path, monkeypatch):
    sources, train = [], fake_training(lambda overrides, out: 0.5, [])

    def run(overrides, source, *args, **more):
        sources.append(source)
        train(overrides, source, *args, **more)

    monkeypatch.setattr(crossval_runs, "train_run", run)
    data, out, plan = load_dataset(painted(tmp_path, 24)), tmp_path / "out", CrossValConfig(folds=2, by="class")
    facts = (TrainOverrides(), plan, RunOptions(out=out), data, np.arange(24), 0)
    runs = FoldTrainer(*facts, bands="4,3,2", nodata="-9999")
    runs.predict(plan.make_folds(data, np.arange(24), 0), out, "Fold")
    assert [(source.bands, source.nodata) for source in sources] == [("4,3,2", "-9999")] * 2
