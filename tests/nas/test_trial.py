"""Trials: trained, pruned, diverged, out of memory or killed."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from tests.command_line import SERVER
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.nas import trial as trial_module
from efficientnetv2.nas import trial_process as child
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.proxy_task import PROXY_OVERRIDES, ProxyTask, require_no_leakage
from efficientnetv2.nas.step_time import ReferenceTiming, StepTimeByPart, part_names
from efficientnetv2.nas.trial import EpochDone, Failed, StepTimed, Trained, TrialResult, to_measurement
from efficientnetv2.nas.trial_process import run_trial
from efficientnetv2.training.memory_probe import MemoryProbe
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS, MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.utils.benchmark import MachineLock, TimingStats
from efficientnetv2.utils.errors import InputError, MemoryShortError, ReaderKilledError
from efficientnetv2.workflows import search_run

# fmt: off
TINY = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3),            1,       8,      1),
        Stage(fused_mbconv(expand=4, kernel=3),            2,      16,      1),
        Stage(mbconv(expand=4, kernel=3, se=0.25),  2,      24,      2),
    ),
    head_channels=64,
)
# fmt: on
# Training takes some hundred MB and little computation.
WIDE = replace(TINY, head_channels=100_000)
SETTINGS = (
    "progressive.stages=1",
    "progressive.image_size=32",
    "batch_size=8",
    "epochs=2",
    "precision=fp32",
    "compile=false",
    "eval_image_size=32",
)  # fmt: skip


def split(folder: Path) -> ImageDataset:
    """48 images: 30 in train, 9 in minival, 9 in val."""
    dataset = load_dataset(folder)
    parts = ["val" if row % 16 < 3 else "minival" if row % 16 < 6 else "train" for row in range(len(dataset))]
    return dataset.with_split(np.array(parts, dtype=object))


def proxy_of(folder: Path, tmp_path: Path, *settings: str, seeds: tuple[int, ...] = (0,)) -> ProxyTask:
    dataset = split(folder)
    return ProxyTask(
        recipe=with_overrides(get_recipe("quick"), [*SETTINGS, *settings]),
        seeds=seeds,
        train=dataset.subset("train"),
        selection=dataset.subset("minival"),
        device="cpu",
        workers=0,
        threads=1,
        times=tmp_path / "step_times.json",
        quiet=tmp_path / "quiet",
    )


def test_trial_is_trained_with_every_seed_and_measured(class_folders, tmp_path):
    messages = []

    def watch(one):
        messages.append(one)
        return True

    proxy = proxy_of(class_folders, tmp_path, seeds=(0, 1))
    tried = run_trial(TINY, proxy, on_message=watch)
    found = to_measurement(TINY, proxy, tried)
    counted = count_flops(TINY, image_size=32, num_classes=3).total
    assert (found.parameters, found.multiply_adds) == (counted.parameters, counted.multiply_adds)
    assert found.top1 == pytest.approx(sum(tried.trained.top1) / 2)
    assert found.top1 > 0.6, "red, green and blue are easy to tell apart"
    assert found.seeds == (0, 1)
    assert found.epochs == pytest.approx(2, abs=0.2)
    assert found.failure is None
    assert 0 < found.step_seconds < 10
    assert 50e6 < found.peak_memory_bytes < 5e9
    assert found.inference_seconds is None, "nobody has asked for it"
    assert isinstance(messages[0], StepTimed), "known before training, so that a reward can be had at every epoch"
    assert [one.run for one in messages[1:]] == [0, 0, 1, 1]


def test_equal_trials_have_equal_results_and_the_step_time_is_cached(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path, "epochs=1")
    first, second = (run_trial(TINY, proxy) for _ in range(2))
    assert first.trained.top1 == second.trained.top1
    assert first.step.predicted is None
    assert second.step.predicted > 0
    cached = run_trial(TINY, replace(proxy, step_time="cached"), verify=False)
    assert not cached.step.measured
    assert cached.step.time.median == cached.step.predicted


def test_pruned_trial_stops_immediately(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path, "epochs=100000")
    tried = run_trial(TINY, proxy, on_message=lambda one: isinstance(one, StepTimed))
    assert tried.pruned
    found = to_measurement(TINY, proxy, tried)
    assert found.epochs == pytest.approx(1, abs=0.2)
    assert found.top1 == tried.epochs[0].top1
    assert found.peak_memory_bytes > 50e6, "told with the point, for rewards that count it"
    assert not trials(), "it computes no further"


STEP = StepTimed(TimingStats(0.1, 0.08, 0.13, rounds=5), predicted=None, measured=True)
CURVE = (EpochDone(0, 1.0, 0.2), EpochDone(0, 2.0, 0.4), EpochDone(1, 1.0, 0.6))


def test_pruned_trial_is_measured_by_its_last_points(class_folders, tmp_path):
    """By hand: 0.4 after two epochs of the first seed, 0.6 after one epoch of the second, no point of the third."""
    proxy = proxy_of(class_folders, tmp_path, "eval_image_size=64", seeds=(7, 8, 9))
    found = to_measurement(TINY, proxy, TrialResult(STEP, CURVE, None, None))
    assert (found.top1, found.epochs, found.seeds) == (pytest.approx(0.5), 1.5, (7, 8))
    assert found.step_seconds == 0.1
    assert found.step_spread == pytest.approx(0.5), "from quartile to quartile, over the median"
    assert found.peak_memory_bytes is None, "it was never told"
    assert found.multiply_adds == count_flops(TINY, image_size=64, num_classes=3).total.multiply_adds
    assert found.failure is None


def test_peak_memory_is_the_maximum_over_all_points(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path)
    curve = (EpochDone(0, 1.0, 0.2, 3000), EpochDone(0, 2.0, 0.4, 2000))
    for ended, most in ((None, 3000), (Trained((0.7,), 5000), 5000), (Trained((0.7,), 0), 3000)):
        assert to_measurement(TINY, proxy, TrialResult(STEP, curve, ended, None)).peak_memory_bytes == most


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a CPU's peak is the process's for life")
@pytest.mark.slow
def test_peak_memory_excludes_the_reference_model(class_folders, tmp_path):
    """The reference has several maps of 50 MB in its head. It is timed in the same process before training."""
    proxy = proxy_of(class_folders, tmp_path, "epochs=1")
    alone, paced = (
        to_measurement(TINY, each, run_trial(TINY, each)).peak_memory_bytes
        for each in (proxy, replace(proxy, reference=ReferenceTiming(WIDE, proxy.recipe, 0.1)))
    )
    assert paced == pytest.approx(alone, rel=0.2)


def test_inference_latency_is_measured_on_request(class_folders, tmp_path):
    proxy = replace(proxy_of(class_folders, tmp_path), seeds=(), latency=True)
    found = to_measurement(TINY, proxy, run_trial(TINY, proxy))
    assert 0 < found.inference_seconds < 10


def test_finished_trial_is_measured_by_its_final_results(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path, seeds=(7, 8))
    found = to_measurement(TINY, proxy, TrialResult(STEP, CURVE, Trained((0.7, 0.9), 1000), None))
    assert found.top1 == pytest.approx(0.8)
    assert found.peak_memory_bytes == 1000
    without = to_measurement(TINY, proxy, TrialResult(STEP, (), Trained((0.7, 0.9), 0), None))
    assert (without.peak_memory_bytes, without.seeds) == (None, (7, 8)), "of no curve, and no memory told"


def test_trial_with_an_end_is_not_pruned():
    trained, failed = Trained((0.7,), 1000), Failed("diverged", "the loss is inf", 1000)
    ended = [TrialResult(STEP, CURVE, *end) for end in ((trained, None), (None, failed), (None, None))]
    assert [one.pruned for one in ended] == [False, False, True]


def test_failed_trial_has_no_accuracy(class_folders, tmp_path):
    """Also if earlier points had a high accuracy."""
    proxy = proxy_of(class_folders, tmp_path, seeds=(7, 8))
    found = to_measurement(TINY, proxy, TrialResult(STEP, CURVE, None, Failed("diverged", "the loss is inf", 1000)))
    assert (found.top1, found.failure) == (None, "diverged: the loss is inf")
    assert (found.step_seconds, found.epochs, found.peak_memory_bytes) == (0.1, 1.5, 1000)


def test_untrained_model_is_reported_as_not_trained(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path, seeds=())
    found = to_measurement(TINY, proxy, TrialResult(STEP, (), Trained((), 1000), None))
    assert (found.top1, found.failure, found.seeds, found.epochs) == (None, "not trained", (), 0.0)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (None, ""),
        ("diverged: the loss is inf", "diverged: the loss is inf"),
        ("crashed: Traceback (most recent call last):\n  File ...\nKeyError: 3\n", "crashed: KeyError: 3"),
        (
            "crashed: the process was killed by SIGSEGV: Fatal\nThread 1",
            "crashed: the process was killed by SIGSEGV: Fatal",
        ),
    ],
)
def test_failure_is_one_line(failure, said):
    assert Measurement(1, 1, top1=0.5, failure=failure).failure_line == said


def step_of(median: float, apart: float = 0.0) -> StepTimeByPart:
    names = part_names(TINY, image_size=32, num_classes=3)
    return StepTimeByPart(TimingStats(median, median, median + apart, 5), dict.fromkeys(names, 0.1 / len(names)))


@pytest.mark.parametrize(
    ("first", "times", "counts"),
    [
        (step_of(0.11), 1, 0.11),
        (step_of(0.2, apart=0.1), 2, 0.12),
        (step_of(0.2, apart=0.001), 2, 0.2),
        (step_of(0.05, apart=0.02), 2, 0.12),
    ],
)
def test_step_time_that_differs_from_the_sum_of_parts_is_measured_again(
    first, times, counts, class_folders, tmp_path, monkeypatch
):
    """The parts sum to 0.1 s. If the difference exceeds 15 %, the steadier of two measurements is used."""
    proxy = proxy_of(class_folders, tmp_path)
    results = [first, step_of(0.12, apart=0.01)]
    monkeypatch.setattr(trial_module, "time_step", lambda *given, **more: results.pop(0))
    found = trial_module.time_trial_step(
        TINY, proxy, torch.device("cpu"), MachineLock(tmp_path / "quiet"), verify=False
    )
    assert (2 - len(results), found.time.median, found.measured) == (times, counts, True)


@pytest.mark.parametrize(
    ("by", "verify", "measured"), [("cached", False, False), ("cached", True, True), ("measured", False, True)]
)
def test_cached_step_time_is_measured_on_request(by, verify, measured, class_folders, tmp_path, monkeypatch):
    proxy = replace(proxy_of(class_folders, tmp_path), step_time=by)
    monkeypatch.setattr(trial_module, "time_step", lambda *given, **more: step_of(0.11))
    for turn in range(2):
        found = trial_module.time_trial_step(
            TINY, proxy, torch.device("cpu"), MachineLock(tmp_path / "quiet"), verify=verify or turn == 0
        )
    assert found.measured is measured
    assert found.predicted == pytest.approx(0.1, rel=0.01)
    assert found.time.median == pytest.approx(0.11 if measured else 0.1, rel=0.01)


def test_trial_process_keeps_freed_memory_as_train_does(monkeypatch, tmp_path):
    """Freed memory must be kept before the step is timed, otherwise step times differ from training."""
    events: list[str] = []
    monkeypatch.setattr(child, "keep_freed_memory", lambda: events.append("memory kept"))
    monkeypatch.setattr(child, "time_trial_step", lambda *given, **more: events.append("timed"))
    monkeypatch.setattr(child, "reset_peak_memory", lambda device: events.append("peak forgotten"))
    monkeypatch.setattr(child, "peak_bytes", lambda device: 1)
    monkeypatch.setattr(child, "trial_setup", lambda *given: "a run")
    monkeypatch.setattr(child.timing, "measure_timings", lambda job, folder: events.append(f"a little of {job}"))
    for name in ("exit_with_parent", "_redirect_output"):
        monkeypatch.setattr(child, name, lambda *given: None)
    monkeypatch.setattr(child, "resolve_task", lambda network, proxy, device: proxy)
    connection = SimpleNamespace(send=events.append)
    proxy = SimpleNamespace(
        device="cpu",
        threads=None,
        training_threads=None,
        memory_gib=None,
        quiet=tmp_path / "quiet",
        seeds=(),
        latency=False,
        reference=None,
        step_time="measured",
    )
    child.trial_process_main(connection, TINY, proxy, verify=True, scratch=tmp_path)
    assert events == ["memory kept", "timed", None, "peak forgotten", "a little of a run", Trained((), 1)]
    events.clear()
    proxy.step_time = "unmeasured"
    child.trial_process_main(connection, TINY, proxy, verify=True, scratch=tmp_path)
    assert events == ["memory kept", "a little of a run", Trained((), 1)], "no step is timed, nor told of"


@pytest.mark.parametrize(("share", "trained"), [(1, 1), (None, 2)])
def test_steps_use_all_threads_and_training_uses_its_share(share, trained, monkeypatch, tmp_path):
    """The work of the trial process, run here. Its two parts return their numbers of threads."""
    events: list[object] = []
    monkeypatch.setattr(child, "time_trial_step", lambda *given, **more: torch.get_num_threads())
    monkeypatch.setattr(child, "_train", lambda *given: torch.get_num_threads())
    for name in ("exit_with_parent", "_redirect_output", "keep_freed_memory"):
        monkeypatch.setattr(child, name, lambda *given: None)
    monkeypatch.setattr(child, "resolve_task", lambda network, proxy, device: proxy)
    proxy = ProxyTask(
        get_recipe("quick"),
        (0,),
        SimpleNamespace(),
        SimpleNamespace(),
        "cpu",
        0,
        tmp_path / "times",
        tmp_path / "quiet",
        2,
        share,
    )
    before = torch.get_num_threads()
    try:
        child.trial_process_main(SimpleNamespace(send=events.append), TINY, proxy, verify=True, scratch=tmp_path)
    finally:
        torch.set_num_threads(before)
    assert events[0] == 2
    assert events[1].top1 == (trained,)


def test_divergence_is_a_result(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path, "optimizer.lr=1e30", "optimizer.clip_norm=null")
    found = to_measurement(TINY, proxy, run_trial(TINY, proxy))
    assert found.failure.startswith("diverged: ")
    assert found.top1 is None
    assert found.step_seconds is not None


def test_step_is_timed_in_the_groups_of_training(class_folders, tmp_path, monkeypatch):
    """Memory for half a batch: a step has two groups, and both run in one pass."""
    proxy = proxy_of(class_folders, tmp_path)
    batch = proxy.recipe.batch_size
    limits: list[float | None] = []

    def settled(recipe, data, hardware):
        limits.append(hardware.memory_gib)
        two = MicrobatchPlan({32: 2})
        return SimpleNamespace(recipe=recipe.model_copy(update={"ghost_batch_size": batch // 2}), microbatches=two)

    monkeypatch.setattr(trial_module, "resolve_recipe", settled)
    halved = trial_module.resolve_task(TINY, replace(proxy, memory_gib=3.0), torch.device("cpu"))
    timed: list[tuple[Recipe, int]] = []

    def measured(network, recipe, *, groups_per_pass, **more):
        timed.append((recipe, groups_per_pass))
        return step_of(0.1)

    monkeypatch.setattr(trial_module, "time_step", measured)
    step = trial_module.time_trial_step(
        TINY, halved, torch.device("cpu"), MachineLock(tmp_path / "quiet"), verify=False
    )
    assert limits == [3.0]
    own = {"ghost_batch_size": batch // 2, "model": TINY, "seed": 0, **PROXY_OVERRIDES}
    assert timed[0] == (proxy.recipe.model_copy(update=own), 2)
    assert step.groups_per_pass == 2, "by which the backbone is timed for as long as the study lasts"


@pytest.mark.parametrize(("begun", "groups"), [(None, 1), (2, 2)])
def test_reference_is_timed_in_its_own_groups(begun, groups, class_folders, tmp_path, monkeypatch):
    """As at the start of the search, independent of the size of the trial model and of the memory now."""
    other = replace(TINY, head_channels=32)
    proxy = proxy_of(class_folders, tmp_path, seeds=())
    batch = proxy.recipe.batch_size
    of_pace = proxy.recipe.model_copy(update={"ghost_batch_size": begun and batch // begun})
    proxy = replace(proxy, reference=ReferenceTiming(other, of_pace, 0.1))

    def settled(recipe, *given):
        fitting = 1 if recipe.model == other else 4
        own = recipe.ghost_batch_size or batch // fitting
        return SimpleNamespace(
            recipe=recipe.model_copy(update={"ghost_batch_size": own}), microbatches=ONE_GROUP_PER_PASS
        )

    timed = []
    monkeypatch.setattr(trial_module, "resolve_recipe", settled)
    monkeypatch.setattr(trial_module, "time_step", lambda *given, **more: timed.append((given, more)) or step_of(0.1))
    for name in ("exit_with_parent", "_redirect_output", "trial_setup"):
        monkeypatch.setattr(child, name, lambda *given: None)
    monkeypatch.setattr(child.timing, "measure_timings", lambda *given: None)
    messages = []
    child.trial_process_main(SimpleNamespace(send=messages.append), TINY, proxy, verify=True, scratch=tmp_path)
    assert isinstance(messages[0], StepTimed), messages
    ((model, recipe), more) = timed[0]
    assert (model, recipe.ghost_batch_size) == (TINY, batch // 4)
    assert (more["reference"].architecture, more["reference"].recipe.ghost_batch_size) == (other, batch // groups)


def test_fixed_group_that_does_not_fit_is_out_of_memory(class_folders, tmp_path, monkeypatch):
    """A model larger than the backbone fails, and the search continues."""
    proxy = proxy_of(class_folders, tmp_path, "ghost_batch_size=8")
    monkeypatch.setattr(MemoryProbe, "largest_group", lambda self, setting, among: 4)
    with pytest.raises(MemoryShortError, match=mentioning("ghost_batch_size", "8", "4")):
        trial_module.resolve_task(TINY, proxy, torch.device("cpu"))


def test_too_little_memory_for_the_reference_is_an_error(class_folders, tmp_path, monkeypatch):
    """The reference fitted when the search started, so the trial has not failed."""
    proxy = proxy_of(class_folders, tmp_path, "ghost_batch_size=8")
    proxy = replace(proxy, threads=None, reference=ReferenceTiming(TINY, proxy.recipe, 0.1))
    monkeypatch.setattr(MemoryProbe, "largest_group", lambda self, setting, among: 4)
    for name in ("exit_with_parent", "_redirect_output", "keep_freed_memory"):
        monkeypatch.setattr(child, name, lambda *given: None)
    messages = []
    child.trial_process_main(SimpleNamespace(send=messages.append), TINY, proxy, verify=True, scratch=tmp_path)
    (refused,) = messages
    assert isinstance(refused, InputError)
    assert mentions(str(refused), "memory", "ghost_batch_size", 8, 4)
    assert mentions(str(refused), "effnetv2 search resume")


def test_memory_is_measured_once_for_all_runs_of_a_trial(class_folders, tmp_path, monkeypatch):
    """If memory decreased between runs, the model would seem too large."""
    proxy = proxy_of(class_folders, tmp_path, seeds=(0, 1))
    cpu = torch.device("cpu")
    monkeypatch.setattr(MemoryProbe, "largest_group", lambda self, setting, among: 4)
    once = trial_module.resolve_task(TINY, proxy, cpu)
    monkeypatch.setattr(MemoryProbe, "largest_group", lambda self, setting, among: 1)
    first, second = (trial_module.trial_setup(TINY, once, seed, cpu, NullRunDir(tmp_path)) for seed in proxy.seeds)
    assert [one.recipe.ghost_batch_size for one in (first, second)] == [4, 4]
    assert [one.recipe.seed for one in (first, second)] == [0, 1]
    assert first.microbatches == once.microbatches
    weights = [next(iter(one.network.parameters())) for one in (first, second)]
    assert not torch.equal(*weights), "each begins with its own"


@pytest.mark.parametrize(("setting", "expected"), [("null", [0, 1]), ("0", [0, 0])])
def test_random_order_of_sizes_follows_the_seed_of_a_run(setting, expected, class_folders, tmp_path):
    random = (f"progressive.seed={setting}", "progressive.order=random", "progressive.stages=3")
    proxy, cpu = proxy_of(class_folders, tmp_path, *random, seeds=(0, 1)), torch.device("cpu")
    task = trial_module.resolve_task(TINY, proxy, cpu)
    runs = [trial_module.trial_setup(TINY, task, seed, cpu, NullRunDir(tmp_path)) for seed in proxy.seeds]
    assert [run.recipe.progressive.seed for run in runs] == expected


def test_out_of_memory_is_a_result(class_folders, tmp_path):
    """The program alone takes more than 0.01 GiB."""
    proxy = replace(proxy_of(class_folders, tmp_path), memory_gib=0.01)
    found = to_measurement(TINY, proxy, run_trial(TINY, proxy))
    assert mentions(found.failure, "out of memory")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ReaderKilledError("A process that reads images was killed by the system"), "reads images was killed"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
        (OSError(errno.ENOSPC, "No space left on device"), None),
    ],
)
def test_out_of_memory_of_a_model_does_not_end_the_worker(error, said, monkeypatch, tmp_path):
    """Otherwise the next worker would start the same model and end too."""

    def trained(*given: object) -> float:
        raise error

    monkeypatch.setattr(child, "_train", trained)
    for name in ("exit_with_parent", "_redirect_output", "keep_freed_memory"):
        monkeypatch.setattr(child, name, lambda *given: None)
    monkeypatch.setattr(child, "resolve_task", lambda network, proxy, device: proxy)
    nothing = SimpleNamespace()
    proxy = ProxyTask(get_recipe("quick"), (0,), nothing, nothing, "cpu", 0, tmp_path / "times", tmp_path / "quiet")
    messages = []
    child.trial_process_main(
        SimpleNamespace(send=messages.append),
        TINY,
        replace(proxy, step_time="unmeasured"),
        verify=True,
        scratch=tmp_path,
    )
    (one,) = messages
    if said is None:
        assert isinstance(one, InputError)
        return
    assert (one.kind, said in one.reason) == ("out of memory", True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_crashed_process_is_a_result(number, class_folders, tmp_path):
    """A signal from outside, as when the system is out of memory."""
    proxy = proxy_of(class_folders, tmp_path, "epochs=1000")

    def watch(told) -> bool:
        if isinstance(told, EpochDone):
            for process in trials():
                process.send_signal(number)
        return True

    found = to_measurement(TINY, proxy, run_trial(TINY, proxy, on_message=watch))
    assert found.failure.startswith("crashed: ")
    assert number.name in found.failure


def trials() -> list[psutil.Process]:
    """The trial processes of this process: their output goes to the file of a trial."""
    below = psutil.Process().children(recursive=True)
    return [one for one in below if "/effnetv2-trial-" in _output(one)]


def _output(process: psutil.Process) -> str:
    try:
        return os.readlink(f"/proc/{process.pid}/fd/1")
    except OSError:
        return ""


def test_unreadable_images_are_an_error_not_a_result(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path)
    for file in class_folders.rglob("*.jpg"):
        file.unlink()
    with pytest.raises(InputError, match=mentioning("unreadable")):
        run_trial(TINY, proxy)


def test_unreadable_image_is_named_once(class_folders, tmp_path):
    proxy, lines = proxy_of(class_folders, tmp_path), logged_lines()
    lost = proxy.train.paths[0]
    (class_folders / lost).unlink()
    for _ in range(2):
        assert run_trial(TINY, proxy).trained is not None
    assert [line for line in lines if "Skipped" in line and lost in line] == [line for line in lines if lost in line]
    assert sum(lost in line for line in lines) == 1


def _try_for_long(folder: Path, tmp_path: Path) -> None:
    run_trial(TINY, proxy_of(folder, tmp_path, "epochs=100000"))


def test_trial_ends_with_its_parent_process(class_folders, tmp_path):
    worker = SERVER.Process(target=_try_for_long, args=(class_folders, tmp_path))
    worker.start()
    until = time.monotonic() + 300
    while not (running := trials()) and time.monotonic() < until:
        time.sleep(0.1)
    worker.kill()
    worker.join()
    assert running
    while trials() and time.monotonic() < until:
        time.sleep(0.1)
    assert not trials()


def test_duplicate_in_train_and_val_is_rejected(class_folders):
    dataset = split(class_folders)
    contents = validate_images(dataset).contents
    require_no_leakage(dataset, contents)
    judging, trained = (dataset.paths[list(dataset.split).index(name)] for name in ("val", "train"))
    contents[dataset.paths.index(judging)] = contents[dataset.paths.index(trained)]
    with pytest.raises(InputError, match=mentioning("1", "search")) as error:
        require_no_leakage(dataset, contents)
    assert judging in str(error.value)
    assert trained in str(error.value)


def test_search_in_a_published_dataset_leaves_out_copies_of_held_out_images(class_folders, monkeypatch):
    """`train` keeps its splits as they are, so removing files is no advice."""
    dataset = replace(split(class_folders), published="imagenette")
    held_out, trained = (list(dataset.split).index(name) for name in ("val", "train"))
    contents = np.arange(len(dataset))
    contents[trained] = contents[held_out]
    prepared = PreparedData(dataset, "", (), holdout_drawn=False, has_selection_set=False, contents=contents)
    monkeypatch.setattr(search_run, "load_run_data", lambda *_arguments, **_options: prepared)
    found = search_run.load_search_data(DataConfig(str(class_folders)), get_recipe("quick"), strict=False)
    assert sorted({*dataset.paths} - {*found.dataset.paths}) == [dataset.paths[trained]]
    assert len(found.contents) == len(found.dataset)


def test_search_without_val_images_is_rejected(class_folders):
    dataset = split(class_folders)
    selected = dataset.select([row for row, name in enumerate(dataset.split) if name != "val"])
    with pytest.raises(InputError, match="no images"):
        require_no_leakage(selected, np.arange(len(selected)))


def test_interrupt_during_process_start_leaves_no_process(class_folders, tmp_path, monkeypatch):
    """The signal arrives after the process started and before its id is stored."""
    started = []
    begin = BaseProcess.start

    def start(process: BaseProcess) -> None:
        begin(process)
        started.append(process)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(BaseProcess, "start", start)
    with pytest.raises(KeyboardInterrupt):
        run_trial(TINY, proxy_of(class_folders, tmp_path))
    assert [process.is_alive() for process in started] == [False]


def test_trial_trains_on_train_and_is_judged_on_minival(class_folders, tmp_path):
    """Judged on its training images, the architecture that memorizes best would win."""
    proxy, cpu = proxy_of(class_folders, tmp_path), torch.device("cpu")
    task = trial_module.resolve_task(TINY, proxy, cpu)
    run = trial_module.trial_setup(TINY, task, 0, cpu, NullRunDir(tmp_path))
    assert (set(run.train.split), set(run.val.split)) == ({"train"}, {"minival"})
