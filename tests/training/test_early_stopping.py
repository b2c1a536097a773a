"""Selection of the saved weights, by hand and in interrupted runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.records import Ints
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import model_file as modelfile
from efficientnetv2.progressive.schedule import Revision, StepPlan
from efficientnetv2.training.callbacks import Callback, ModelSelection, unused_patience
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import RunLength, RunSetup, eval_network
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.errors import InputError


@pytest.mark.parametrize(("epochs", "patience", "ends"), [(10, 3, True), (10, 4, False), (40, 5, True)])
def test_patience_that_cannot_stop_the_run_is_reported(epochs, patience, ends):
    """In ten epochs the last of three stages has four validations. At the fourth, the run ends anyway."""
    recipe = with_overrides(get_recipe("finetune"), [f"epochs={epochs}", "minival=0.1", f"patience={patience}"])
    told = unused_patience(recipe, RunLength.of(recipe, 3000), has_start=False)
    assert told == [] if ends else "the last stage has 4 validations" in told[0]
    assert ends or told[0].endswith("Take more epochs, or a patience of 3 at most.")


def test_run_without_patience_has_no_note_on_it():
    recipe = with_overrides(get_recipe("finetune"), ["epochs=1"])
    assert unused_patience(recipe, RunLength.of(recipe, 3000), has_start=True) == []


@pytest.mark.parametrize(
    ("patience", "has_start", "most"), [(8, False, None), (9, False, 8), (9, True, None), (10, True, 9)]
)
def test_first_validation_of_a_single_stage_cannot_end_the_run(patience, has_start, most):
    settings = ["epochs=10", "progressive.stages=1", "minival=0.1", f"patience={patience}"]
    recipe = with_overrides(get_recipe("quick"), settings)
    told = unused_patience(recipe, RunLength.of(recipe, 3000), has_start=has_start)
    assert told == [] if most is None else told[0].endswith(f"a patience of {most} at most.")


class StoppedError(Exception):
    """Simulates a killed process."""


@pytest.fixture
def job(class_folders, small_run):
    """24 steps on 24 training images of three classes. A validation every three steps; stage 2 from step 12."""
    dataset = load_dataset(class_folders)
    train, val, minival = (dataset.select(np.arange(first, 48, step)) for first, step in ((0, 2), (1, 4), (3, 8)))

    def of(name: str, *settings: str) -> RunSetup:
        often = ("epochs=8", "minival=6", "val_interval_epochs=1", *settings)
        return small_run(name, train, val, *often, minival=minival)

    return of


@pytest.fixture
def scripted(monkeypatch):
    """A function that sets the metrics on minival and returns the weights of each validation."""
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def script(*figures: float) -> dict[int, dict[str, torch.Tensor]]:
        def predict(self, state, part, *, once=False, progress=None):
            right = np.ones(len(part), dtype=bool)
            if part is self.minival:
                seen[state.step] = {name: one.clone() for name, one in eval_network(state).state_dict().items()}
                right = np.arange(len(part)) < round(figures[state.step // 3 - 1] * len(part))
            answers = np.where(right, part.labels, (part.labels + 1) % 3)
            logits = torch.nn.functional.one_hot(torch.from_numpy(answers), 3).float()
            return Predictions(np.arange(len(part)), part.labels, logits * 9)

        monkeypatch.setattr(RunSetup, "predict", predict)
        return seen

    return script


def weights_of(job: RunSetup) -> dict[str, torch.Tensor]:
    return dict(modelfile.load(job.folder.model_file).state_dict())


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


#: A run that starts with a linear probe of given weights, so its initial model can classify.
BEGUN = ("weights=given.safetensors", "head_init=linear_probe")


def test_model_worse_than_the_initial_model_is_not_saved(job, scripted):
    """The initial model has 5 of 6 right (the last value), later models at most 4. The initial weights are saved."""
    lines = logged_lines()
    seen = scripted(1 / 6, 2 / 6, 3 / 6, 2 / 6, 4 / 6, 4 / 6, 1 / 6, 4 / 6, 5 / 6)
    one = job("run", *BEGUN)
    result = Trainer(one).fit()
    assert list(seen) == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert same(weights_of(one), seen[0])
    assert not same(seen[0], seen[24])
    told = modelfile.load(one.folder.model_file).metrics
    assert (told["kept_model"], told["selected_step"]) == ("start", 0)
    assert (told["start_metric"], told["trained_metric"]) == (pytest.approx(5 / 6), pytest.approx(4 / 6))
    assert str(result.selection) in lines
    assert "linear probe" in str(result.selection)
    assert next(row["step"] for row in result.history if row["kind"] == "minival") == 0


def test_model_better_than_the_initial_model_is_saved(job, scripted):
    seen = scripted(1 / 6, 2 / 6, 3 / 6, 2 / 6, 4 / 6, 5 / 6, 1 / 6, 4 / 6, 3 / 6)
    one = job("run", *BEGUN)
    Trainer(one).fit()
    assert same(weights_of(one), seen[18])
    told = modelfile.load(one.folder.model_file).metrics
    assert (told["kept_model"], told["start_metric"]) == ("trained", pytest.approx(3 / 6))


@pytest.mark.parametrize("stop", [2, 13])
def test_initial_model_is_kept_across_an_interruption(stop, job, scripted):
    """Before the first checkpoint the run starts again. Later checkpoints have the initial weights."""
    seen = scripted(1 / 6, 2 / 6, 3 / 6, 2 / 6, 4 / 6, 4 / 6, 1 / 6, 4 / 6, 5 / 6)

    class Ends(Callback):
        def on_log(self, done, *facts):
            if done >= stop:
                raise StoppedError

    with pytest.raises(StoppedError):
        Trainer(job("run", *BEGUN), [Ends()]).fit()
    resumed = job("run", *BEGUN)
    result = Trainer(resumed).fit(resume=True)
    assert same(weights_of(resumed), seen[0])
    assert [row["step"] for row in result.history if row["kind"] == "minival"] == [*range(0, 25, 3)]


def test_model_file_has_the_best_weights(job, scripted):
    """The EMA weights after the fifth validation, which are better than the last."""
    seen = scripted(1 / 6, 2 / 6, 3 / 6, 2 / 6, 5 / 6, 4 / 6, 1 / 6, 4 / 6)
    one = job("run")
    result = Trainer(one).fit()
    assert list(seen) == [3, 6, 9, 12, 15, 18, 21, 24]
    assert same(weights_of(one), seen[15])
    assert not same(seen[15], seen[24])
    told = modelfile.load(one.folder.model_file).metrics
    assert told["selected_on"] == "minival"
    assert (told["selected_step"], told["selected_epoch"], told["selected_by"]) == (15, 5.0, "top1")
    assert told["selected_score"] == pytest.approx(5 / 6)
    assert told["stopped_early"] is False
    assert result.images == 24 * 8
    assert [(row["step"], row["top1"]) for row in result.history if row["kind"] == "minival"] == [
        (3 * number, pytest.approx(sixths / 6)) for number, sixths in enumerate((1, 2, 3, 2, 5, 4, 1, 4), start=1)
    ]
    at_the_end = [(row["step"], row["num_images"]) for row in result.history if row["kind"] == "val"]
    assert at_the_end == [(24, len(one.val))], "val is looked at once, at the end"


def test_auto_minival_saves_the_last_weights_despite_better_validations_before(job, scripted):
    """Without a classifier the initial model is not a candidate."""
    seen = scripted(1 / 6, 2 / 6, 3 / 6, 2 / 6, 5 / 6, 4 / 6, 1 / 6, 4 / 6)
    one = job("run", "minival=auto")
    Trainer(one).fit()
    assert same(weights_of(one), seen[24])
    told = modelfile.load(one.folder.model_file).metrics
    assert (told["selected_step"], told["kept_model"]) == (24, "trained")
    assert told["selected_score"] == told["trained_metric"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(("last", "kept"), [(0, 0), (1 / 6, 24)])
def test_auto_minival_keeps_the_start_of_a_failed_training(job, scripted, last, kept):
    """The start has all six images right. By the sign test, 6 lost images are significant (p = 0.03), and 5 are not."""
    seen = scripted(*[last] * 8, 1)
    one = job("run", "minival=auto", *BEGUN)
    Trainer(one).fit()
    assert same(weights_of(one), seen[kept])
    assert modelfile.load(one.folder.model_file).metrics["selected_step"] == kept
    one.folder.model_file.unlink()  # as if killed before it was written
    seen.clear()
    again = job("run", "minival=auto", *BEGUN)
    Trainer(again).fit(resume=True)
    assert not seen, "no step, and no validation"
    assert modelfile.load(again.folder.model_file).metrics["selected_step"] == kept


def test_selection_gets_the_classes_of_each_validation(job, scripted, monkeypatch):
    scripted(*[2 / 6] * 8, 4 / 6)
    one, add, found = job("run", "minival=auto", *BEGUN), ModelSelection.add, []

    def record(selection, step, metrics, network, classes, **others):
        found.append(classes)
        return add(selection, step, metrics, network, classes, **others)

    monkeypatch.setattr(ModelSelection, "add", record)
    Trainer(one).fit()
    for number, (rows, labels, predicted) in enumerate(found):
        assert rows.tolist() == [0, 1, 2, 3, 4, 5]
        assert labels.tolist() == one.minival.labels.tolist()
        assert (labels == predicted).sum() == (2 if number else 4)


def answers(right: int, of: int = 10) -> Ints:
    """Rows, classes and predicted classes of minival, of two classes in turn; the first images are right."""
    labels = np.arange(of) % 2
    return np.stack([np.arange(of), labels, np.where(np.arange(of) < right, labels, 1 - labels)])


@pytest.mark.parametrize(
    ("start", "last", "of", "kept"),
    [
        (7, 6, 10, "trained"),
        (5, 6, 10, "trained"),
        (70, 69, 100, "trained"),
        (9, 1, 10, "start"),
        (70, 60, 100, "start"),
    ],
)
def test_auto_minival_keeps_the_last_model_unless_the_initial_one_is_significantly_better(start, last, of, kept):
    """Steps 10 and 20 are not candidates, even with all images right."""
    recipe = with_overrides(get_recipe("finetune"), ["epochs=3", "minival=auto"])
    selection = ModelSelection(recipe, RunLength(30, 10))
    network = torch.nn.Linear(1, 1)
    filled = dict[int, float]()

    def at(step: int) -> torch.nn.Module:
        filled[step] = float(step + 1)
        torch.nn.init.constant_(network.weight, filled[step])
        return network

    before_last, at_end = (ModelSelection(recipe, RunLength(30, 10)) for _ in range(2))
    for step, right in ((0, start), (10, of - 1), (20, of), (30, last)):
        metrics = {"top1": right / of, "macro_f1": right / of}
        if step == 30:
            before_last.load_state_dict(selection.state_dict())
            before_last.add(step, metrics, at(step), answers(right, of))
        selection.add(step, metrics, at(step), answers(right, of), start_name="the linear probe")
    at_end.load_state_dict(selection.state_dict())
    for one in (selection, before_last, at_end):
        one.apply(network)
        assert network.weight.item() == filled[0 if kept == "start" else 30]
        told = one.to_json()
        assert (told["kept_model"], told["start_metric"], told["trained_metric"]) == (kept, start / of, last / of)
        assert ("not significantly better" in str(one)) == (kept == "trained" and start > last)


def test_unreadable_images_do_not_compare_initial_and_last_model():
    """The start read six images, all right, and the last weights five others, all wrong. No image is in both."""
    recipe = with_overrides(get_recipe("finetune"), ["epochs=1", "minival=auto"])
    selection, network = ModelSelection(recipe, RunLength(10, 10)), torch.nn.Linear(1, 1)
    selection.add(0, {"top1": 1.0, "macro_f1": 1.0}, network, answers(6, 11)[:, :6], start_name="the linear probe")
    selection.add(10, {"top1": 0.0, "macro_f1": 0.0}, network, answers(6, 11)[:, 6:])
    assert selection.to_json()["kept_model"] == "trained"


def test_patience_does_not_count_the_end_of_the_stage_before():
    """With fewer steps than scheduled, that stage ends within a step. The last one begins at 80 of 120."""
    recipe = with_overrides(get_recipe("finetune"), ["epochs=3", "minival=0.1", "patience=2", "progressive.stages=3"])
    plan = StepPlan(120, [Revision(decided=0, step=1, steps=100)])
    assert plan.scheduled_step(66) < 80 < plan.position(67)
    selection = ModelSelection(recipe, RunLength(120, 40), plan)
    over = []
    for step, figure in ((50, 0.9), (67, 0.8), (80, 0.5), (90, 0.4), (95, 0.3)):
        selection.add(step, {"top1": figure, "macro_f1": figure}, torch.nn.Linear(1, 1), answers(0))
        over.append(selection.over)
    assert over == [False, False, False, True, True]


def test_training_stops_after_patience(job, scripted):
    """Best at step 6. The first stage does not count. 15 and 18 are the first validations of the last stage."""
    lines = logged_lines()
    seen = scripted(1 / 6, 5 / 6, 3 / 6, 2 / 6, 4 / 6, 5 / 6, 1 / 6, 1)
    one = job("run", "patience=2")
    result = Trainer(one).fit()
    assert list(seen) == [3, 6, 9, 12, 15, 18]
    assert result.images == 18 * 8
    assert same(weights_of(one), seen[18]), "as good as at 6, and later"
    kept = modelfile.load(one.folder.model_file)
    assert kept.metrics["stopped_early"] is True
    assert (kept.metrics["epochs"], kept.recipe["epochs"]) == (6, 8)
    log = "\n".join(lines)
    assert mentions(log, "18", "24", "6", "top-1", "minival", "2")
    assert mentions(log, "18", "weight", "step")


def test_run_that_stopped_early_does_not_continue_on_resume(job, scripted):
    """Killed before the model file was written. Resumed, it takes no step and selects the same weights."""
    seen = scripted(1 / 6, 5 / 6, 3 / 6, 2 / 6, 4 / 6, 4 / 6, 1, 1)
    one = job("run", "patience=2")
    Trainer(one).fit()
    first = weights_of(one)
    assert same(first, seen[6])
    one.folder.model_file.unlink()
    seen.clear()
    again, lines = job("run", "patience=2"), logged_lines()
    result = Trainer(again).fit(resume=True)
    assert not seen, "it was over with its last checkpoint"
    assert mentions("\n".join(lines), "18", "step")
    assert "from step" not in "\n".join(lines)
    assert result.images == 18 * 8
    assert same(weights_of(again), first)


_ALONE = []  # what ``alone`` returns


def alone(job):
    """Weights and metrics of a run without interruptions: the same in each test, so it is trained once."""
    if not _ALONE:
        one = job("alone")
        Trainer(one).fit()
        _ALONE.extend((weights_of(one), modelfile.load(one.folder.model_file).metrics))
    return _ALONE


@pytest.mark.parametrize("at", [7, 16, 22])
def test_interrupted_run_selects_the_same_weights(at, job):
    """With real predictions. At 16 the best may be earlier, at 22 it may be after the last checkpoint."""
    weights, metrics = alone(job)

    class Ends(Callback):
        def on_log(self, done, *facts):
            if done == at:
                raise StoppedError

    with pytest.raises(StoppedError):
        Trainer(job("killed"), [Ends()]).fit()
    killed = job("killed")
    Trainer(killed).fit(resume=True)
    assert same(weights_of(killed), weights)
    assert modelfile.load(killed.folder.model_file).metrics == metrics


def test_macro_f1_can_be_the_monitored_metric(job, scripted):
    scripted(1 / 6, 2 / 6, 3 / 6, 2 / 6, 5 / 6, 4 / 6, 1 / 6, 4 / 6)
    one = job("run", "monitor=macro_f1")
    Trainer(one).fit()
    told = modelfile.load(one.folder.model_file).metrics
    assert told["selected_by"] == "macro_f1"
    best = next(
        row for row in one.folder.history() if row["kind"] == "minival" and row["step"] == told["selected_step"]
    )
    assert told["selected_score"] == best["macro_f1"] != best["top1"]


def test_without_minival_the_last_weights_are_saved(job, scripted):
    scripted()
    one = replace(job("run", "minival=null"), minival=None)
    result = Trainer(one).fit()
    assert result.selection is None
    assert "selected_on" not in modelfile.load(one.folder.model_file).metrics
    assert [row["step"] for row in result.history if row["kind"] == "val"] == [3, 6, 9, 12, 15, 18, 21, 24]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["minival=null", "patience=3"], ("3", "minival")),
        (["minival=0.1", "patience=0"], ("0", "patience")),
        (["minival=0"], ("minival", "0")),
        (["minival=1.5"], ("minival", "1.5")),
        (["minival=-0.1"], ("minival", "-0.1")),
        (["minival=0.1", "monitor=top5"], ("monitor", "top5")),
    ],
)
def test_invalid_monitor_minival_and_patience_are_rejected(settings, told):
    with pytest.raises(InputError, match=mentioning(*told)):
        with_overrides(get_recipe("quick"), settings)


@pytest.mark.parametrize("name", ["efficientnetv2_s_paper", "efficientnetv2_m_paper", "efficientnetv2_l_paper"])
def test_paper_recipes_hold_out_the_minival_of_the_paper(name):
    """arXiv:2104.00298, section 5.1: 25,000 training images, also for early stopping."""
    assert get_recipe(name).minival == 25_000
