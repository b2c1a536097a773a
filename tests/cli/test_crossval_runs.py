"""The runs of a cross-validation: each fold chooses its weights, and all of them together keep to the minutes."""

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
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.evaluation.predictions import predictions_table, write_predictions
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training import weights_selection
from efficientnetv2.training.initial_weights import WeightsCandidate
from efficientnetv2.training.memory_probe import MemoryProbe
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_request import RunOptions, RunRequest, repeat_recipe
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import crossval_runs
from efficientnetv2.workflows import train as train_job
from efficientnetv2.workflows.crossval import check_recipes
from efficientnetv2.workflows.crossval_config import CrossValConfig
from efficientnetv2.workflows.crossval_runs import FoldTrainer, best_candidates, run_name

# Epochs by the number of training images, so that a recipe that is settled again is another.
SETTINGS = (
    "progressive.stages=1", "progressive.image_size=32", "epochs=auto", "auto_epochs=[200, 1, 50]", "batch_size=8",
    "head_init=random", "precision=fp32", "compile=false",
)  # fmt: skip
TRIES = ("class_sampling=null", "class_sampling=equal")
THREE = (*TRIES, "class_sampling=sqrt")


def answered(job, run, *_):
    """In place of training: what a run leaves whose recipe is settled."""
    val, path = run.data.val, run.request.path
    answers = Predictions(np.arange(len(val)), val.labels, torch.eye(2)[torch.tensor(val.labels)] * 9)
    table = predictions_table(answers, val.paths, val.class_names, true_labels=list(val.table["label"]))
    write_predictions(path / "predictions.csv", table)
    report = {"top1": 1.0, "macro_f1": 1.0, "epochs": run.recipe.epochs, "wall_s": 1.0}
    (path / "report.json").write_text(json.dumps(report))
    (path / model_file.NAME).touch()


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """Two files of weights to choose among."""
    found = []
    for name in ("first", "second"):
        network = create(registry.read_architecture(Path(NETWORK)), num_classes=0)
        place = tmp_path / f"{name}.safetensors"
        model_file.save(place, network, preprocessing=Preprocessing(image_size=32), class_names=())
        found.append(WeightsCandidate(str(place), f"Weights: {place}.", name))
    monkeypatch.setattr("efficientnetv2.training.overrides.weights_candidates", lambda model: tuple(found))
    return found


def test_each_fold_chooses_its_weights_and_repeats_the_recipe_settled_for_them(starts, tmp_path, monkeypatch):
    """Who may learn from one image prefers the first weights, who answers it the second."""
    data, contents, plan = (load_dataset(painted(tmp_path, 25)), np.arange(25), CrossValConfig(folds=3, by="class"))
    dealt = plan.make_folds(data, contents, 0)
    sizes = [len(part.train_rows) for part in dealt.parts]
    odd = next(number for number in (1, 2) if sizes[3 - number] != sizes[0])
    picture = Path(data.paths[dealt.parts[odd].val_rows[0]]).name

    def answers(found, recipe, task, *_):
        learnt = picture in {Path(path).name for path in task.images.paths}
        right = learnt == (found == starts[0])
        return task.images.labels if right else 1 - task.images.labels

    monkeypatch.setattr(weights_selection, "_predict", answers)
    monkeypatch.setattr(train_job, "_train", answered)
    place = RunOptions(out=tmp_path / "out", device="cpu", workers=0)
    runs = FoldTrainer(TrainOverrides(model=NETWORK, settings=SETTINGS), plan, place, data, contents, 0)
    told = runs.predict(dealt, tmp_path / "out", "Fold")

    files_of = [starts[number == odd].word for number in range(3)]
    recipes = [read_recipe(tmp_path / f"out/fold{number + 1}/recipe.yaml") for number in range(3)]
    assert [one.weights for one in recipes] == files_of
    assert [one.score.weights for one in told] == [(one,) for one in files_of]
    assert recipes[3 - odd] == recipes[0]  # on another number of images
    assert recipes[odd].epochs == round(200 / sizes[odd], 2)
    assert [one.score for one in runs.predict(dealt, tmp_path / "out", "Fold")] == [one.score for one in told]


@pytest.mark.parametrize(
    ("tries", "while_choosing", "members"),
    [((), (), 1), (TRIES, (), 1), (TRIES, ("epochs=2",), 1), ((), (), 2), (TRIES, (), 2), (THREE, ("epochs=2",), 2)],
)
def test_the_minutes_are_for_all_runs_together(tries, while_choosing, members, tmp_path, monkeypatch):
    """By time, where the third fold learns from three times as many images as the first whose epochs it repeats."""
    spent = []

    def epochs_of(words, place, pictures):
        """What was settled before, what is set, or what fits if an image takes a second."""
        said = dict(setting.split("=") for setting in words.settings)
        fitting = float(said["epochs"]) if "epochs" in said else words.minutes * 60 / pictures
        epochs = read_recipe(place.settled[0]).epochs if place.settled else fitting
        spent.append(epochs * pictures)
        return epochs

    def reached(words, out):
        return 0.9 if out.name.endswith("_try2" if "fold2" in out.name else "_try1") else 0.5

    monkeypatch.setattr(crossval_runs, "train_run", fake_training(reached, [], epochs_of))
    data, contents = of_years(tmp_path, 96), np.arange(96)
    plan = CrossValConfig(folds=3, by="time", tries=tries, try_settings=while_choosing, members=members)
    dealt = plan.make_folds(data, contents, 0)
    assert [len(part.train_rows) for part in dealt.parts] == [24, 48, 72]
    place = RunOptions(out=tmp_path / "out")
    runs = FoldTrainer(TrainOverrides(minutes=90), plan, place, data, contents, 0)
    runs.predict(dealt, tmp_path / "out", "Fold")
    assert len(spent) == plan.num_runs
    assert sum(spent) == pytest.approx(0.9 * 90 * 60, rel=0.02)


def test_tries_that_leave_nothing_of_the_minutes_are_refused(tmp_path, monkeypatch):
    def epochs_of(words, place, pictures):
        return 100.0

    monkeypatch.setattr(crossval_runs, "train_run", fake_training(lambda words, out: 0.5, [], epochs_of))
    data, contents = load_dataset(painted(tmp_path, 48)), np.arange(48)
    plan = CrossValConfig(folds=3, by="class", tries=TRIES, try_settings=("epochs=100",))
    runs = FoldTrainer(TrainOverrides(minutes=1), plan, RunOptions(out=tmp_path / "out"), data, contents, 0)
    with pytest.raises(InputError, match=mentioning("minutes=1", "epochs=100")):
        runs.predict(plan.make_folds(data, contents, 0), tmp_path / "out", "Fold")


def test_a_try_that_says_its_own_length_is_refused_beside_minutes():
    words, place = TrainOverrides(minutes=5, weights="none"), RunOptions(device="cpu")
    with pytest.raises(InputError, match=mentioning("candidates", "class_sampling=null", "epochs=4")):
        check_recipes(words, CrossValConfig(tries=("", "class_sampling=null epochs=4")), place)
    short = CrossValConfig(tries=TRIES, try_settings=("epochs=4",))
    assert check_recipes(words, short, place).weights == "none"
    assert check_recipes(TrainOverrides(epochs=30, weights="none"), short, place).epochs == 30, "that of the folds"


def answers_of(folder: Path, run: str) -> np.ndarray:
    """What a run answered: (n, 2) probabilities, in the order of the images' paths."""
    table = pd.read_csv(folder / run / "predictions.csv").sort_values("path")
    return table[["a", "b"]].to_numpy()


def unlike(asked, reached):
    """Training whose answers are those of its run's name and seed alone, so that a mean of them is told from each."""
    plain = fake_training(reached, asked)

    def run(words, source, place, *_, **__):
        plain(words, source, place)
        file = place.out / "predictions.csv"
        table = pd.read_csv(file)
        sure = np.random.default_rng([*place.out.name.encode(), words.seed or 0]).uniform(0.05, 0.95, len(table))
        table.assign(a=sure, b=1 - sure).to_csv(file, index=False)

    return run


def test_the_best_tries_answer_a_fold_together(tmp_path, monkeypatch):
    """Of three tries two answer: in fold 2 the third and the first, else the second and the third."""
    asked = []

    def reached(words, out):
        order = [0.5, 0.2, 0.9] if "fold2" in out.name else [0.1, 0.8, 0.6]
        return order[int(out.name[-1]) - 1] if "_try" in out.name else 0.0

    monkeypatch.setattr(crossval_runs, "train_run", unlike(asked, reached))
    data, out = load_dataset(painted(tmp_path, 48)), tmp_path / "out"
    plan = CrossValConfig(folds=3, by="class", tries=THREE, members=2)
    dealt = plan.make_folds(data, np.arange(48), 0)
    runs = FoldTrainer(TrainOverrides(settings=("epochs=3",)), plan, RunOptions(out=out), data, np.arange(48), 0)
    told = runs.predict(dealt, out, "Fold")

    assert [one.score.chosen for one in told] == [THREE[1:], (THREE[2], THREE[0]), THREE[1:]]
    assert len(asked) == plan.num_runs == 3 * (3 + 2)
    for number, one in enumerate(told):
        own = [answers_of(out, run_name(number, member)) for member in range(2)]
        order = np.argsort([data.paths[row] for row in one.rows])
        assert one.probabilities[order] == pytest.approx((own[0] + own[1]) / 2, abs=1e-6)
        right = (one.probabilities.argmax(axis=1) == data.labels[one.rows]).mean()
        assert one.score.top1 == pytest.approx(right)
        assert one.score.seconds == 2 * 3 * len(dealt.parts[number].train_rows)
    trained = {place.out.name: (words.settings, place.settled) for words, _, place in asked}
    assert trained["fold2_member2"][0][-1] == THREE[0]
    assert trained["fold3"][1] == (out / "fold1/recipe.yaml",), "of the same try, not of the others"
    assert trained["fold3_member2"][1] == (out / "fold1_member2/recipe.yaml", out / "fold2/recipe.yaml")
    assert [one.score for one in runs.predict(dealt, out, "Fold")] == [one.score for one in told]
    assert len(asked) == plan.num_runs


def test_without_tries_networks_of_other_seeds_answer_together(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(crossval_runs, "train_run", unlike(asked, lambda words, out: 0.5))
    data, out = load_dataset(painted(tmp_path, 48)), tmp_path / "out"
    plan = CrossValConfig(folds=2, by="class", members=3)
    dealt = plan.make_folds(data, np.arange(48), 7)
    words = TrainOverrides(settings=("seed=7",))
    runs = FoldTrainer(words, plan, RunOptions(out=out), data, np.arange(48), 7)
    told = runs.predict(dealt, out, "Fold")
    assert [(place.out.name, words.settings) for words, _, place in asked[:3]] == [
        ("fold1", ("seed=7",)), ("fold1_member2", ("seed=7", "seed=8")), ("fold1_member3", ("seed=7", "seed=9")),
    ]  # fmt: skip
    assert {place.settled for _, _, place in asked[:1]} == {()}
    assert all(place.settled[0] == out / "fold1/recipe.yaml" for _, _, place in asked[1:])
    own = [answers_of(out, run_name(1, member)) for member in range(3)]
    order = np.argsort([data.paths[row] for row in told[1].rows])
    assert told[1].probabilities[order] == pytest.approx(np.mean(own, axis=0), abs=1e-6)
    assert [one.score.chosen for one in told] == [(), ()]


def test_the_members_of_a_fold_begin_alike_but_for_their_seeds(starts, tmp_path, monkeypatch):
    """Weights are compared once a fold; what is settled by the seed is settled for each."""
    compared = []

    def answers(found, recipe, task, *_):
        compared.append(found.word)
        return task.images.labels if found == starts[len(compared) > 2] else 1 - task.images.labels

    monkeypatch.setattr(weights_selection, "_predict", answers)
    monkeypatch.setattr(train_job, "_train", answered)
    data, plan = load_dataset(painted(tmp_path, 24)), CrossValConfig(folds=2, by="class", members=3)
    random = ("progressive.stages=2", "progressive.image_size={start: 32, end: 64}", "progressive.order=random")
    words = TrainOverrides(model=NETWORK, seed=5, settings=(*SETTINGS[2:], *random))
    place = RunOptions(out=tmp_path / "out", device="cpu", workers=0)
    dealt = plan.make_folds(data, np.arange(24), 5)
    told = FoldTrainer(words, plan, place, data, np.arange(24), 5).predict(dealt, tmp_path / "out", "Fold")
    assert len(compared) == 2 * 2, "two starts in each of two folds"
    assert [one.score.weights for one in told] == [(starts[0].word,), (starts[1].word,)]
    for number in range(2):
        own = [read_recipe(tmp_path / "out" / run_name(number, member) / "recipe.yaml") for member in range(3)]
        assert [(one.seed, one.progressive.seed) for one in own] == [(5, 5), (6, 6), (7, 7)]
        plain = [one.to_json() | {"seed": 0} for one in own]
        assert all(one | {"progressive": plain[0]["progressive"]} == plain[0] for one in plain)


def of_years(folder: Path, count: int) -> ImageDataset:
    """So many images, two of each year."""
    table = pd.read_csv(painted(folder, count))
    table.assign(year=np.arange(count) // 2).to_csv(folder / "all.csv", index=False)
    return load_dataset(folder / "all.csv")


def test_a_later_fold_that_lacks_memory_is_not_told_to_change_the_recipe(starts, tmp_path, monkeypatch):
    """Which --resume would refuse: the group of the first fold is chosen, but then it is that of all."""
    room = [8]

    def first(job, run, *others):
        answered(job, run)
        room[0] = 4

    monkeypatch.setattr(train_job, "_train", first)
    monkeypatch.setattr(
        MemoryProbe, "largest_group", lambda self, setting, *, among: max(one for one in among if one <= room[0])
    )
    data, contents, plan = (load_dataset(painted(tmp_path, 24)), np.arange(24), CrossValConfig(folds=2, by="class"))
    words = TrainOverrides(model=NETWORK, weights=starts[0].word, settings=(*SETTINGS, "epochs=1"))
    place = RunOptions(out=tmp_path / "out", device="cpu", workers=0)
    runs = FoldTrainer(words, plan, place, data, contents, 0)
    with pytest.raises(InputError, match=mentioning("2", "ghost_batch_size", "8", "4")) as told:
        runs.predict(plan.make_folds(data, contents, 0), tmp_path / "out", "Fold")
    assert mentions(str(told.value), "memory")
    assert read_recipe(tmp_path / "out/fold1/recipe.yaml").ghost_batch_size == 8


def test_networks_that_answered_other_pictures_do_not_answer_together(tmp_path):
    shares, rows = np.full((3, 2), 0.5), np.arange(3)
    runs = [
        SimpleNamespace(path=tmp_path / "fold1", rows=rows, probabilities=shares),
        SimpleNamespace(path=tmp_path / "fold1_member2", rows=rows[:2], probabilities=shares[:2]),
    ]
    with pytest.raises(InputError, match=mentioning("fold1_member2", "2", "3")):
        crossval_runs._mean_probabilities(runs)


def test_as_many_members_as_tries_leave_nothing_to_choose(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(crossval_runs, "train_run", unlike(asked, lambda words, out: 0.5))
    data, out = load_dataset(painted(tmp_path, 48)), tmp_path / "out"
    plan = CrossValConfig(folds=2, by="class", tries=TRIES, members=2)
    dealt = plan.make_folds(data, np.arange(48), 0)
    runs = FoldTrainer(TrainOverrides(), plan, RunOptions(out=out), data, np.arange(48), 0)
    told = runs.predict(dealt, out, "Fold")
    assert not (out / "choosing").exists()
    assert len(asked) == plan.num_runs == 4
    assert [(one.score.chosen, one.candidate_scores) for one in told] == [(TRIES, ()), (TRIES, ())]


def test_equally_good_tries_answer_in_their_order():
    assert best_candidates(CrossValConfig(tries=THREE, members=2), (0.5, 0.7, 0.7)) == (1, 2)
    assert best_candidates(CrossValConfig(tries=THREE), (0.7, 0.5, 0.7)) == (0,)
    assert best_candidates(CrossValConfig(members=2), ()) == (None, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"tries": TRIES, "members": 3}, ("members", "3", "2", "candidates")),
        (
            {"tries": TRIES, "members": 2, "try_settings": ("epochs=4",)},
            ("candidate_settings", "members", "2", "select"),
        ),
    ],
)
def test_members_that_cannot_be_are_refused(words, said):
    with pytest.raises(InputError, match=mentioning(*said)):
        CrossValConfig(**words)


def test_runs_on_other_pictures_of_the_folds_read_one_cache(tmp_path, monkeypatch):
    """By time, where the last period trains no run: those that answer a fold, and those that choose inside it."""
    begun = []
    monkeypatch.setenv("EFFNETV2_CACHE", str(tmp_path / "caches"))
    monkeypatch.setattr(train_job, "_train", lambda job, run, *_: begun.append(run) or answered(job, run))
    pd.read_csv(painted(tmp_path, 48)).assign(year=np.arange(48) // 2).to_csv(tmp_path / "all.csv", index=False)
    data, contents, plan = (
        load_dataset(tmp_path / "all.csv"),
        np.arange(48),
        CrossValConfig(folds=2, by="time", tries=TRIES),
    )
    dealt = plan.make_folds(data, contents, 0)
    words = TrainOverrides(model=NETWORK, weights="none", cache="disk", settings=SETTINGS)
    for out in (tmp_path / "out", tmp_path / "elsewhere/out"):
        place = RunOptions(out=out, device="cpu", workers=0)
        FoldTrainer(words, plan, place, data, contents, 0).predict(dealt, out, "Fold")
    assert len(begun) == 2 * plan.num_runs
    assert len({len(ready.data.train) for ready in begun}) == 4, "of two folds, and to choose inside each"
    assert "32 images decoded" in begun[0].cache.note
    assert "filled in" in begun[0].cache.note
    assert all("there already" in ready.cache.note for ready in begun[1:])
    assert len(list((tmp_path / "caches/pictures").iterdir())) == 1
    for ready in begun:
        train = ready.data.train
        for sample in range(len(train)):
            own = np.asarray(Image.open(train.file(sample)), dtype=float)
            assert abs(ready.cache.reader.source(sample) - own).mean() < 3, "not another's, of other noise"


def test_each_fold_sets_its_own_pictures_aside(tmp_path):
    """The first had too few, so that its settled recipe has no minival; the next may have enough."""
    settled = get_recipe("quick").model_copy(update={"minival": None, "epochs": 3.0})
    (tmp_path / "recipe.yaml").write_text(settled.to_yaml())
    options = RunOptions(settled=(tmp_path / "recipe.yaml",))
    request = RunRequest(tmp_path / "next", get_recipe("quick"), TrainOverrides(), options)
    found = repeat_recipe(request)
    assert (found.recipe.epochs, found.recipe.minival, found.repeated) == (3.0, "auto", True)
