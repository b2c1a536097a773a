"""History, checkpoints and files of a run, also after errors and interruptions."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.loader import worker_errors
from efficientnetv2.inference import predict
from efficientnetv2.models import model_file as modelfile
from efficientnetv2.models import safetensors_io
from efficientnetv2.training import loop, metrics_log, post_training, run_setup, trainer
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.checkpoints import checkpoint_steps, remove_checkpoints, save_checkpoint
from efficientnetv2.training.loop import StepOutput
from efficientnetv2.training.metrics_log import data_wait_fraction
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_setup import RunSetup, eval_preprocessing
from efficientnetv2.training.train_state import init_state
from efficientnetv2.training.trainer import Trainer, UnreadableImages
from efficientnetv2.training.validation import DivergenceCheck, Validator, _part_of_val
from efficientnetv2.utils.errors import DivergedError, InputError, MemoryShortError, ReaderKilledError
from efficientnetv2.utils.logs import RunLog, attached


def test_data_wait_fraction_is_of_the_total_training_time():
    """1 s of 2 s, then 1 s of 8 s, is 2 s of 10 s. Validation rows do not count."""
    rows = [
        {"kind": "train", "train_s": 2.0, "data_wait_s": 1.0},
        {"kind": "val", "top1": 0.5},
        {"kind": "train", "train_s": 8.0, "data_wait_s": 1.0},
    ]
    assert data_wait_fraction(rows) == pytest.approx(0.2)
    assert data_wait_fraction([]) is None


@pytest.fixture
def job(class_folders, small_run):
    """24 steps on 24 training images. A validation on 24 images every three steps; stage 2 from step 12."""
    dataset = load_dataset(class_folders)
    train, val = (dataset.select(np.arange(first, 48, 2)) for first in (0, 1))

    def of(name, *settings, minival=False, strict=False):
        often = ("epochs=8", "val_interval_epochs=1", *settings, *(["minival=6"] if minival else []))
        return small_run(name, train, val, *often, strict=strict, minival=val.select(np.arange(6)) if minival else None)

    return of


def gone(job, number):
    """Remove the first images of val. Return a function that restores them."""
    files = [job.val.file(row) for row in range(number)]
    for file in files:
        Path(file).rename(f"{file}.gone")

    def back():
        for file in files:
            Path(f"{file}.gone").rename(file)

    return back


def test_last_validation_has_all_images_and_earlier_ones_a_stratified_sample(job):
    """Of 24 images, 8 per class, earlier validations use 9, three per class."""
    one = job("run", "val_max_images=9")
    asked = []

    class Watching(RunSetup):
        def predict_readable(self, state, part, **words):
            asked.append((state.step, np.bincount(part.labels).tolist()))
            return super().predict_readable(state, part, **words)

    one = Watching(**vars(one))
    result = Trainer(one).fit()
    assert asked == [*((step, [3, 3, 3]) for step in range(3, 24, 3)), (24, [8, 8, 8])]
    points = [row for row in result.history if row["kind"] == "val"]
    assert [row["num_images"] for row in points] == [9] * 7 + [24]
    right = (result.predictions.probabilities.argmax(axis=1) == result.predictions.labels).mean()
    assert points[-1]["top1"] == pytest.approx(float(right))


class Outage(Callback):
    """Removes all images of val after a step. ``back`` restores them."""

    def __init__(self, job, after):
        self.job, self.after = job, after

    def on_log(self, done, *facts):
        if done == self.after:
            self.back = gone(self.job, len(self.job.val))


def kept_weights(job):
    return {
        name: tensor.numpy().tobytes() for name, tensor in modelfile.load(job.folder.model_file).state_dict().items()
    }


def figures_of(result):
    """The history of a run without times."""
    return [(row["kind"], row["step"], row.get("loss"), row.get("top1")) for row in result.history]


_ALONE = {}  # whether there is a minival -> what ``alone`` returns


def alone(job, *, minival=False):
    """Figures and weights of a run without interruptions: the same in each test, so it is trained once."""
    if minival not in _ALONE:
        one = job("alone", minival=minival)
        _ALONE[minival] = figures_of(Trainer(one).fit()), kept_weights(one)
    return _ALONE[minival]


@pytest.mark.parametrize("minival", [False, True])
def test_outage_in_a_validation_loses_no_step_and_changes_no_metric(minival, job):
    """It begins after step 4, and the validation after step 6 fails. The resumed run has the same history."""
    one = job("run", minival=minival)
    outage, asked = Outage(one, after=4), 6 if minival else 24
    with pytest.raises(
        InputError, match=rf"{asked} of the {asked} images .* Restore them, then continue with `resume`"
    ):
        Trainer(one, [outage]).fit()
    assert checkpoint_steps(one.folder.checkpoints) == [6]
    again = job("run", minival=minival)
    with pytest.raises(InputError, match="Restore them"):
        Trainer(again).fit(resume=True)
    outage.back()
    again = job("run", minival=minival)
    found = Trainer(again).fit(resume=True)
    assert (figures_of(found), kept_weights(again)) == alone(job, minival=minival)
    assert not again.folder.skipped_file.exists(), "nothing was left out in the end"


@pytest.mark.parametrize("strict", [False, True])
def test_unreadable_training_images_lose_no_step(strict, job):
    """All are removed after step 4, so none can replace another. With ``strict`` none may be missing."""
    one = job("run", strict=strict)

    class Gone(Callback):
        def on_log(self, done, *facts):
            if done == 4:
                self.back = gone(replace(one, val=one.train), len(one.train) - strict * 20)

    outage = Gone()
    with pytest.raises(InputError, match=mentioning("resume")):
        Trainer(one, [outage]).fit()
    (step,) = checkpoint_steps(one.folder.checkpoints)
    assert step >= 4
    outage.back()
    again = job("run", strict=strict)
    Trainer(again).fit(resume=True)
    if not strict:  # otherwise another image replaced a removed one
        assert step == 4
        assert kept_weights(again) == alone(job)[1]


def test_outage_at_the_final_evaluation_saves_the_model_without_metrics(job):
    one = job("run")
    Trainer(one).fit()
    trained = kept_weights(one)
    one.folder.model_file.unlink()
    back = gone(one, len(one.val))
    with pytest.raises(InputError, match=mentioning("24", "model.safetensors")):
        Trainer(job("run")).fit(resume=True)
    assert kept_weights(one) == trained
    assert "val_top1" not in modelfile.load(one.folder.model_file).metrics
    assert not one.folder.finished, "--resume makes up for the report"
    back()
    assert len(Trainer(job("run")).fit(resume=True).predictions.labels) == 24
    assert modelfile.load(one.folder.model_file).metrics["val_images"] == 24


def test_validation_images_lost_during_training_are_excluded_from_metrics(job):
    """2 of 24 images fail at the first validation: one is damaged, one is missing."""
    said = logged_lines()
    one = job("run")
    one = replace(one, folder=RunDir(one.folder.path))
    gone(one, 1)
    whole = Path(one.val.file(1)).read_bytes()
    Path(one.val.file(1)).write_bytes(whole[:300])
    done = Trainer(one).fit()
    assert len(done.predictions.labels) == 22
    assert modelfile.load(one.folder.model_file).metrics["val_images"] == 22
    assert one.folder.skipped == set(one.val.paths[:2])
    assert any(mentions(line, "2", "24", "val") and "other 22" in line for line in said)
    (named,) = (line for line in said if line.startswith("Skipped 2 of 24"))
    assert one.val.paths[0] in named


def test_validation_without_any_readable_image_is_an_outage(job):
    """One image of several is skipped. A validation on one image needs it."""
    one = job("run")
    one = replace(one, val=one.val.select([0]))
    gone(one, 1)
    with pytest.raises(InputError, match=mentioning("1", "image")):
        Trainer(one).fit()


@pytest.mark.parametrize("minival", [False, True])
def test_signal_stops_a_validation_and_resume_repeats_it(minival, job):
    """A cluster kills a job 30 s after the signal. No training step is lost."""
    one, looked = job("run", minival=minival), []

    def stop(module, inputs):
        if not module.training:
            looked.append(len(inputs[0]))
            os.kill(os.getpid(), signal.SIGTERM)

    one.network.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        Trainer(one).fit()
    assert len(looked) == 1
    assert checkpoint_steps(one.folder.checkpoints) == [3]
    assert all(row["kind"] == "train" for row in one.folder.history())
    again = job("run", minival=minival)
    found = Trainer(again).fit(resume=True)
    assert (figures_of(found), kept_weights(again)) == alone(job, minival=minival)


@pytest.mark.parametrize("event", ["on_stage_start", "on_step_end", "on_log", "on_validation_end"])
def test_callback_stops_the_run_with_a_checkpoint_of_its_step(event, job):
    """On the screen it is as after Ctrl-C. Resumed, the run has the bits of one that was not stopped."""
    one, stopped = job("run"), []

    def stop(*_arguments, **_more):
        if not stopped and run.context.state.step >= 7:
            stopped.append(run.context.state.step)
            raise KeyboardInterrupt

    stopper = Callback()
    setattr(stopper, event, stop)
    run = Trainer(one, [stopper])
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert max(checkpoint_steps(one.folder.checkpoints)) == stopped[0]
    again = job("run")
    found = Trainer(again).fit(resume=True)
    assert (figures_of(found), kept_weights(again)) == alone(job)


def test_out_of_memory_in_a_validation_loses_no_step(job):
    """The first validation is after step 3. With enough memory the run resumes there."""
    one, short = job("run"), [True]

    def no_memory(module, inputs):
        if short[0] and not module.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    one.network.register_forward_pre_hook(no_memory)
    with pytest.raises(MemoryShortError, match=mentioning("48", "CUDA", "out of memory")):
        Trainer(one).fit()
    assert checkpoint_steps(one.folder.checkpoints) == [3]
    again = Trainer(job("run")).fit(resume=True)
    assert [row["step"] for row in again.history if row["kind"] == "val"] == list(range(3, 25, 3))


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (["schedule.warmup_epochs=1", "schedule.max_warmup_fraction=1"], "schedule.warmup_epochs=3`"),
        (["schedule.warmup_epochs=1", "schedule.max_warmup_fraction=0.25"], "schedule.warmup_epochs=2`"),  # of 8 epochs
        (["schedule.warmup_epochs=2", "schedule.max_warmup_fraction=0.25"], None),
    ],
)
def test_longer_warmup_is_advised_only_if_possible(settings, advice, job):
    one = job("run", *settings)
    with torch.no_grad():
        one.network.classifier.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=mentioning("learning rate")) as refused:
        Trainer(one).fit()
    assert ("warm-up" in str(refused.value)) == (advice is not None)
    assert advice is None or advice in str(refused.value)


def test_non_finite_loss_stops_training_at_its_step_without_a_row(job, monkeypatch):
    """Rows are only due at the ends of the stages, after 12 and 24 steps."""
    monkeypatch.setattr(run_setup, "_LOG_ROWS", 1)
    one, passes = job("run", "val_interval_epochs=8"), []

    def broken_in_the_fifth(module, inputs):
        passes.append(1)
        if len(passes) == 5:
            module.classifier.bias.data.fill_(float("inf"))

    one.network.register_forward_pre_hook(broken_in_the_fifth)
    with pytest.raises(DivergedError, match=mentioning("4", "step")):
        Trainer(one).fit()
    assert len(passes) == 5
    assert checkpoint_steps(one.folder.checkpoints) == []


def test_one_overflow_in_fp16_is_not_divergence(job):
    """The scaler leaves the step out; only twenty in a row are divergence, and here a run has more steps."""
    one = job("run")
    check = DivergenceCheck(replace(one, recipe=one.recipe.model_copy(update={"precision": "fp16"})), None)

    def step(number, loss):
        last = one.recipe.progressive.last
        check.add(StepOutput(number, last, torch.tensor(loss), 0.1, 8, (), 0.0, ONE_GROUP_PER_PASS))
        check.check_loss()

    for number in range(19):
        step(number, float("nan"))
    step(19, 1.0)
    for number in range(20, 39):
        step(number, float("inf"))
    with pytest.raises(DivergedError, match=mentioning("20", "step")):
        step(39, float("nan"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_stop_training_with_a_finite_loss(value, job):
    """In training, batch norm does not use its running statistics, so the loss does not show them."""
    one = job("run")

    norm = next(module for module in one.network.modules() if isinstance(module, torch.nn.BatchNorm2d))

    class Breaks(Callback):
        def on_log(self, done, *facts):
            norm.running_mean.fill_(value)

    with pytest.raises(DivergedError, match=mentioning("2", "step")):
        Trainer(one, [Breaks()]).fit()
    assert not one.folder.model_file.exists()


def test_invalid_initial_weights_are_not_reported_as_divergence(job):
    one = job("run", "weights=given.safetensors", minival=True)
    one.network.class_names = one.train.class_names
    norm = next(module for module in one.network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.running_mean.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN or infinite") as refused:
        Trainer(one).fit()
    assert "step -1" not in str(refused.value)


def test_too_high_learning_rate_is_reported_with_a_lower_value(job):
    one = job("run", "optimizer.lr=1e6")
    with pytest.raises(DivergedError, match=mentioning("optimizer.lr=0.1")):
        Trainer(one).fit()
    assert not one.folder.model_file.exists()


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="a device that is always full is Linux's")


class FullDisk(Callback):
    """After a step, a file of the run is on a full disk."""

    def __init__(self, file, after):
        self.file, self.after = file, after

    def on_log(self, done, *facts):
        if done == self.after:
            self.file.rename(self.file.with_name("before"))
            self.file.symlink_to(FULL)

    def has_room(self):
        self.file.with_name("before").replace(self.file)


@needs_full
@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt"])
@pytest.mark.parametrize("minival", [False, True])
def test_full_disk_is_reported_and_loses_no_step(name, minival, job, monkeypatch):
    """Full after step 4. Training rows are due every two steps, validations every three."""
    expected, _ = alone(job, minival=minival)
    monkeypatch.setattr(run_setup, "_LOG_ROWS", 12)
    one = job("run", minival=minival)
    log = RunLog()
    log.write_to(one.folder.path)
    with attached(log):
        logging.getLogger("efficientnetv2").info("The run begins.")
        disk = FullDisk(one.folder.path / name, after=4)
        with pytest.raises(InputError, match=mentioning(name, "`resume`")):
            Trainer(one, [disk]).fit()
    assert checkpoint_steps(one.folder.checkpoints) == [6]
    disk.has_room()
    found = Trainer(job("run", minival=minival)).fit(resume=True)
    curves = [[row for row in figures if row[0] != "train"] for figures in (expected, figures_of(found))]
    assert curves[0] == curves[1]
    assert [row["step"] for row in found.history if row["kind"] == "train"] == [
        step for step in range(2, 25, 2) if (name, step) != ("metrics.jsonl", 6)
    ]


def test_disk_that_is_full_for_the_model_file_loses_no_step(job, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as change:
        change.setattr(safetensors_io, "save_file", full)
        with pytest.raises(InputError, match=mentioning("model.safetensors", "Make room", "`resume`")):
            Trainer(job("run")).fit()
    change = SimpleNamespace(steps=[])
    monkeypatch.setattr(loop, "optimizer_step", lambda *given, **more: change.steps.append(given))
    again = job("run")
    Trainer(again).fit(resume=True)
    assert again.folder.model_file.exists()
    assert not change.steps


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="Windows has no such signal")
@pytest.mark.parametrize("moment", [(torch, "save"), (torch.nn.Module, "state_dict"), (loop, "optimizer_step")])
def test_worker_killed_in_the_middle_of_a_step_or_checkpoint_loses_no_step(job, monkeypatch, moment):
    """PyTorch raises anywhere in the main process. The error is not a full disk."""

    def told(number, frame):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    def interrupted(*given, **named):
        signal.raise_signal(signal.SIGCHLD)
        return real(*given, **named)

    expected, _ = alone(job)
    real, before = getattr(*moment), signal.signal(signal.SIGCHLD, told)
    one = job("run", "checkpoint_minutes=0")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(*moment, interrupted)
            with pytest.raises(ReaderKilledError, match=mentioning("by signal: Killed", "workers")):
                Trainer(one).fit()
        assert signal.getsignal(signal.SIGCHLD) is told
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert checkpoint_steps(one.folder.checkpoints)[-1] in {1, 2}
    found = Trainer(job("run", "checkpoint_minutes=0")).fit(resume=True)
    first, last = ([row for row in figures if row[0] == "train"][-1] for figures in (expected, figures_of(found)))
    assert first == last


def test_reader_that_ends_with_ctrl_c_was_not_killed(job, monkeypatch):
    """On Windows and macOS, Ctrl-C also ends processes that are just starting."""

    def ended(*given):
        signal.raise_signal(signal.SIGINT)
        raise ReaderKilledError("DataLoader worker (pid 1) exited unexpectedly")

    one = job("run")
    with monkeypatch.context() as patch:
        patch.setattr(predict, "retry_halving_batch", ended)
        with pytest.raises(KeyboardInterrupt):
            Trainer(one).fit()
    assert checkpoint_steps(one.folder.checkpoints)


def test_old_checkpoint_that_is_open_elsewhere_ends_no_run(tmp_path, monkeypatch):
    unlink, locked = Path.unlink, [True]

    def refuse(path, **given):
        if locked[0] and path.suffix == ".pt":
            raise PermissionError(13, "Access is denied", str(path))
        unlink(path, **given)

    monkeypatch.setattr(Path, "unlink", refuse)
    for step in (1, 2, 3):
        assert save_checkpoint(tmp_path, {"step": step}, step).exists()
    remove_checkpoints(tmp_path)
    assert checkpoint_steps(tmp_path) == [1, 2, 3]
    locked[0] = False
    save_checkpoint(tmp_path, {"step": 4}, 4)
    assert checkpoint_steps(tmp_path) == [3, 4]


@pytest.mark.parametrize("moment", [(predict, "retry_halving_batch"), (post_training, "_fit_unknown")])
def test_worker_killed_after_the_last_step_loses_no_step(job, monkeypatch, moment):
    """In the last evaluation, and while a detector of unknown images is fitted."""
    ended, real = [], getattr(*moment)

    class End(Callback):
        def on_train_end(self, step):
            ended.append(step)

    def killed(*given, **named):
        if ended:
            with worker_errors() if moment[0] is post_training else nullcontext():
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(*moment, killed)
        with pytest.raises(ReaderKilledError, match=mentioning("by signal: Killed", "workers")):
            Trainer(job("run"), [End()]).fit()
    steps = []
    monkeypatch.setattr(loop, "optimizer_step", lambda *given, **more: steps.append(given))
    again = job("run")
    Trainer(again).fit(resume=True)
    assert again.folder.model_file.exists()
    assert not steps


def test_every_growing_file_is_named_if_its_disk_is_full(tmp_path):
    folder, log = RunDir(tmp_path), RunLog()
    log.write_to(tmp_path)
    line = logging.makeLogRecord({"msg": "epoch 1"})
    for name, write in (
        ("metrics.jsonl", lambda: folder.record({"kind": "train", "step": 1, "loss": 0.5})),
        ("log.txt", lambda: log.emit(line)),
        ("skipped.csv", lambda: folder.skip("a.jpg", "is empty (0 bytes)")),
    ):
        (tmp_path / name).symlink_to(FULL)
        with pytest.raises(InputError, match=mentioning(name, "`resume`")):
            write()
    assert not folder.skipped, "it was not listed"


@pytest.mark.parametrize("begun", ["", "path,reason\n"])
def test_skipped_list_left_empty_by_a_full_disk_is_continued(begun, tmp_path):
    (tmp_path / "skipped.csv").write_text(begun)
    folder = RunDir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        folder.skip(name, "is empty (0 bytes)")
    assert RunDir(tmp_path).skipped == {"a.jpg", "b.jpg"}


def test_skipped_list_truncated_in_its_first_line_is_ignored(tmp_path):
    (tmp_path / "skipped.csv").write_text("pa\na.jpg,is empty (0 bytes)\n")
    assert not RunDir(tmp_path).skipped


def test_evaluation_skips_up_to_half_of_the_images_but_none_with_strict(job):
    one = job("run")
    state = init_state(one.network, one.recipe)
    gone(one, 1)
    assert len(one.predict(state, one.val).labels) == 23
    assert len(one.folder.skipped) == 1
    with pytest.raises(InputError, match=mentioning(one.val.paths[0], "`strict`")):
        replace(one, strict=True).predict(state, one.val)
    for row in range(1, 12):
        Path(one.val.file(row)).unlink()
    assert len(one.predict(state, one.val).labels) == 12
    Path(one.val.file(12)).unlink()
    with pytest.raises(InputError, match=mentioning("13", "24", "50", "`resume`")):
        one.predict(state, one.val)


def test_training_images_skipped_before_resume_count_towards_the_limit(job):
    """Two of 24 exceed 5 %, also if the file lists both. An image counts once, however often it is skipped."""
    one = job("run")
    for row in range(2):
        one.folder.skip(one.train.paths[row], "is empty (0 bytes)")
    resumed = replace(one, folder=RunDir(one.folder.path))
    unreadable = UnreadableImages(resumed)
    unreadable.add([(0, "is empty (0 bytes)")] * 3)
    with pytest.raises(InputError, match=mentioning("2", "24", "`resume`")):
        unreadable.add([(1, "is empty (0 bytes)")])
    assert resumed.folder.skipped_file.read_text().splitlines()[1:] == [
        f"{path},is empty (0 bytes)" for path in one.train.paths[:2]
    ]


class Clock:
    """A clock of the run."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Rows every 12 of 24 steps. A validation takes 50 s, which is not training time."""
    clock = Clock()

    def validate(self):
        clock.now += 50

    monkeypatch.setattr(metrics_log, "time", clock)
    monkeypatch.setattr(trainer, "time", clock)
    monkeypatch.setattr(run_setup, "_LOG_ROWS", 2)
    monkeypatch.setattr(Validator, "validate", validate)
    return clock


def started(job, clock, *, resume=False, selection=None):
    """A run that compiles for 100 s. A step of 8 images takes 1 s, with 0.25 s of waiting."""
    run = Trainer(job)
    run._restore(resume)
    run.context.selection = selection
    clock.now += 100
    run._on_first_batch()

    def steps(first, last):
        for step in range(first, last + 1):
            run.context.state.step = step
            clock.now += 1
            setting = job.recipe.progressive.at(step - 1, total_steps=24)
            loss = torch.tensor(1.0)
            run._on_step_end(StepOutput(step - 1, setting, loss, 0.1, 8, (), 0.25, ONE_GROUP_PER_PASS))

    return run, steps


def test_earlier_validations_have_each_class_by_its_share(job):
    """Of 8, 8 and 2 images, nine are 4, 4 and 1."""
    one = job("run", "val_max_images=9")
    rows = [np.flatnonzero(one.val.labels == label)[:count] for label, count in enumerate((8, 8, 2))]
    part = _part_of_val(replace(one, val=one.val.select(np.sort(np.concatenate(rows)))))
    assert np.bincount(part.labels).tolist() == [4, 4, 1]


def test_remaining_time_is_in_proportion_to_the_pixels_ahead(job, clock):
    """After 12 of 24 steps of 1 s at the size of the first stage, 12 steps at that of the second remain."""
    one, left = job("run"), {}

    class Looks(Callback):
        def on_log(self, step, num_steps, settings, loss, images_per_s, seconds_left):
            left[step] = seconds_left

    run, steps = started(one, clock)
    run.context.callbacks = (Looks(),)
    steps(1, 24)
    first, second = (one.recipe.progressive.at(step, total_steps=24).image_size for step in (0, 23))
    assert first < second
    assert left[12] == pytest.approx(12 * (second / first) ** 2)
    assert left[24] == 0


def test_checkpoint_is_due_after_its_minutes(job, clock):
    """Compiling takes 100 s, a step 1 s, and the validation after step 3 another 50: 153 s then."""
    one = job("run", "checkpoint_minutes=2")
    _, steps = started(one, clock)
    steps(1, 5)
    assert checkpoint_steps(one.folder.checkpoints) == [3]


def test_row_continues_after_an_interruption(job, clock):
    """Stopped after step 5 and resumed: 12 steps of 1 s, without the pause and compiling."""
    one = job("run")
    first, steps = started(one, clock)
    steps(1, 5)
    first.save_checkpoint()
    clock.now += 1000
    second, steps = started(job("run"), clock, resume=True)
    steps(6, 24)
    rows = [row for row in one.folder.history() if row["kind"] == "train"]
    assert [(row["step"], row["train_s"], row["data_wait_s"], row["images_per_s"]) for row in rows] == [
        (12, 12.0, 3.0, 8.0),
        (24, 12.0, 3.0, 8.0),
    ]
    assert not any(isinstance(value, dict) for row in rows for value in row.values())
    assert second.log.seconds == 2 * 100 + 24 + 7 * 50, "of the run, compiling and validation among it, but the last"


def test_steps_before_early_stopping_are_in_a_row(job, clock):
    """A validation after step 15 stops the run. Rows are due after 12 and 24."""
    selection, one = SimpleNamespace(over=False, state_dict=dict), job("run")
    _, steps = started(one, clock, selection=selection)
    steps(1, 14)
    selection.over = True
    steps(15, 15)
    assert [(row["step"], row["train_s"], row["data_wait_s"]) for row in one.folder.history()] == [
        (12, 12.0, 3.0),
        (15, 3.0, 0.75),
    ]


def test_progress_is_reported_between_rows(job, monkeypatch):
    """A run of a day has a row every seven minutes."""
    shown = []

    class Looks(Callback):
        def on_log(self, done, *facts):
            shown.append((done, *facts))

    monkeypatch.setattr(metrics_log, "_PROGRESS_S", -1.0)
    monkeypatch.setattr(metrics_log, "log_steps", lambda recipe, length: frozenset({12, 24}))
    one = job("run")
    Trainer(one, [Looks()]).fit()
    assert [done for done, *_ in shown] == list(range(1, 25))
    assert [row["step"] for row in one.folder.history() if row["kind"] == "train"] == [12, 24]
    assert all(images_per_s > 0 for *_, images_per_s, _ in shown)


def test_only_the_last_evaluation_has_the_views_of_the_recipe(job, monkeypatch):
    """Eight views take eight times as long."""
    one, views, real = job("run", "tta=d4", "eval_image_size=48"), [], run_setup.predict_dataset
    one = replace(one, preprocessing=eval_preprocessing(one.recipe, one.network, None))

    def predict(network, part, *, preprocessing, **words):
        views.append(preprocessing.tta)
        return real(network, part, preprocessing=preprocessing, **words)

    monkeypatch.setattr(run_setup, "predict_dataset", predict)
    Trainer(one).fit()
    assert views == [*["none"] * 7, "d4"]


def test_a_tenth_of_the_learning_rate_is_advised(job):
    """Of the 0.002 of recipe quick."""
    one = job("run")
    with torch.no_grad():
        one.network.classifier.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=mentioning("optimizer.lr=0.0002")):
        Trainer(one).fit()
