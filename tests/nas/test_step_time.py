"""Step times: parts sum to the step and predict steps of other architectures."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.messages import mentioning, mentions
from tests.nas.test_trial import SETTINGS, TINY
from tests.recipes import with_overrides
from torch.optim.optimizer import register_optimizer_step_post_hook

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.architectures.spec import Architecture, Stage, blocks, fused_mbconv
from efficientnetv2.models.blocks import BatchNorm2d
from efficientnetv2.nas import step_time
from efficientnetv2.nas.step_time import (
    ReferenceTiming,
    StepBenchmark,
    StepTimeCache,
    inference_latency,
    min_timed_steps,
    part_names,
    time_step,
)
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils import benchmark
from efficientnetv2.utils.errors import InputError

CPU = torch.device("cpu")
UNCLIPPED = ["optimizer.clip_norm=null"]
RECIPE = with_overrides(get_recipe("quick"), SETTINGS)


def rates(optimizer: torch.optim.Optimizer) -> set[float]:
    return {group["lr"] for group in optimizer.param_groups}


def times(tmp_path, recipe=RECIPE):
    return StepTimeCache(tmp_path / "times.json", recipe, num_classes=3, device=CPU)


def test_equal_blocks_have_equal_part_names():
    b0 = get_architecture("efficientnetv2_b0")
    names = part_names(b0, image_size=224, num_classes=1000)
    assert len(names) == len(blocks(b0)) + 2
    # In stage 5, the first of five blocks has other input channels. Stage 6 reduces the image size first.
    assert len(set(names)) == 2 + sum(min(stage.layers, 2) for stage in b0.stages)
    assert mentions(names[1], "32", "16", "3", "1", "112")
    assert names[-1].startswith("head 192-1280 at 7")


def test_single_and_double_convolution_have_different_part_names():
    """8 to 32 channels: by one convolution, or by one to 4 x 8 channels and a projection."""
    single, double = (
        part_names(
            replace(TINY, stages=(Stage(fused_mbconv(expand=expand, kernel=3), 1, 32, 1),)),
            image_size=32,
            num_classes=3,
        )
        for expand in (1, 4)
    )
    assert single[1].startswith("fused 8-32-32 ")
    assert single[1] != double[1]
    assert single[2:] == double[2:]


@pytest.mark.parametrize("clipped", [True, False])
def test_timed_step_includes_clipping_and_the_optimizer_without_changing_weights(clipped, monkeypatch):
    """Clipping takes some percent of the step of a small model."""
    clips, updates = [], []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: clips.append(1) or clip(*given))
    hook = register_optimizer_step_post_hook(lambda optimizer, *given: updates.append(rates(optimizer)))
    try:
        time_step(TINY, RECIPE if clipped else with_overrides(RECIPE, UNCLIPPED), num_classes=3, device=CPU)
    finally:
        hook.remove()
    assert len(clips) == len(updates) * clipped
    assert {rate for each in updates for rate in each} == {0.0}


def test_parts_sum_to_the_step():
    found = time_step(TINY, RECIPE, num_classes=3, device=CPU)
    names = part_names(TINY, image_size=32, num_classes=3)
    assert set(found.parts) == set(names)
    assert all(seconds > 0 for seconds in found.parts.values())
    # A factor of two is allowed for a busy machine. Without the backward pass, the ratio would be a third.
    assert 0.5 < sum(found.parts[name] for name in names) / found.total.median < 2


class FakeBenchmark:
    """A fake benchmark: each construction has its own step time."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.made = seconds, []

    def __call__(self, architecture: Architecture, *given: object) -> FakeBenchmark:
        self.made.append(architecture)
        return self

    def step(self) -> float:
        return self.seconds[len(self.made) - 1]

    def step_by_part(self) -> list[float]:
        names = part_names(TINY, image_size=32, num_classes=3)
        return [self.step() / len(names)] * len(names)


@pytest.mark.parametrize(
    ("seconds", "median", "low", "high", "rounds"),
    [
        ([0.4] * 3, 0.4, 0.4, 0.4, 3 * 3),  # three rounds fill a second
        ([0.05] * 3, 0.05, 0.05, 0.05, 3 * 6),  # short steps have six rounds
        ([0.42, 0.40, 0.41], 0.41, 0.40, 0.42, 3 * 3),
    ],
)
def test_spread_includes_differences_between_benchmark_runs(seconds, median, low, high, rounds, monkeypatch):
    """Rounds of one benchmark are equal, so a spread over rounds alone would be 0."""
    bench = FakeBenchmark(seconds)
    monkeypatch.setattr(step_time, "StepBenchmark", bench)
    found = time_step(TINY, RECIPE, num_classes=3, device=CPU)
    assert (found.total.median, found.total.low, found.total.high, found.total.rounds) == (
        median, low, high, rounds,
    )  # fmt: skip
    assert found.spread == pytest.approx((high - low) / median)
    assert bench.made == [TINY] * 3


def test_step_time_relative_to_the_reference_ignores_machine_speed(monkeypatch):
    """A step of half the reference: three runs between four of the reference, while the machine slows down by half."""
    other = get_architecture("efficientnetv2_b0")
    slowness = [1.0, 1.1, 1.2, 1.3, 1.4, 1.7, 2.0]
    bench = FakeBenchmark([(0.8 if turn % 2 == 0 else 0.4) * by for turn, by in enumerate(slowness)])
    monkeypatch.setattr(step_time, "StepBenchmark", bench)
    found = time_step(TINY, RECIPE, num_classes=3, device=CPU, reference=ReferenceTiming(other, RECIPE, 1.0))
    assert bench.made == [other, TINY, other, TINY, other, TINY, other]
    assert found.total.median == pytest.approx(0.5)
    assert (found.total.low, found.total.high) == pytest.approx((0.5, 0.5))
    assert sum(found.parts[name] for name in part_names(TINY, image_size=32, num_classes=3)) == pytest.approx(0.5)


def test_long_steps_are_timed_as_often_as_the_dry_run_counts(monkeypatch):
    other = get_architecture("efficientnetv2_b0")
    steps = Counter[Architecture]()

    class Counting(FakeBenchmark):
        def step(self) -> float:
            steps[self.made[-1]] += 1
            return 2.0

        def step_by_part(self) -> list[float]:
            return [2.0] + [0.0] * (len(super().step_by_part()) - 1)

    monkeypatch.setattr(step_time, "StepBenchmark", Counting([]))
    time_step(TINY, RECIPE, num_classes=3, device=CPU, reference=ReferenceTiming(other, RECIPE, 1.0))
    assert (steps[TINY], steps[other]) == min_timed_steps()


def test_unmeasured_step_is_predicted_from_parts_of_others(tmp_path):
    cache = times(tmp_path)
    assert cache.predict(TINY) is None
    cache.add(TINY, dict.fromkeys(part_names(TINY, image_size=32, num_classes=3), 0.25))
    deeper = replace(TINY, stages=(*TINY.stages[:2], replace(TINY.stages[2], layers=5)))
    assert cache.predict(TINY) == pytest.approx(0.25 * 6)
    assert cache.predict(deeper) == pytest.approx(0.25 * 9), "three more blocks of a shape that is known"
    wider = replace(TINY, stages=(*TINY.stages[:2], replace(TINY.stages[2], channels=32)))
    assert cache.predict(wider) is None


def test_median_of_several_times_is_used(tmp_path):
    cache = times(tmp_path)
    for seconds in (0.1, 0.1, 9.0):
        cache.add(TINY, dict.fromkeys(part_names(TINY, image_size=32, num_classes=3), seconds))
    assert cache.predict(TINY) == pytest.approx(0.6)


@pytest.mark.parametrize(
    "change", ["batch_size=16", "precision=bf16", "progressive.image_size=64", "optimizer.clip_norm=null"]
)
def test_times_of_another_recipe_are_separate(change, tmp_path):
    times(tmp_path).add(TINY, dict.fromkeys(part_names(TINY, image_size=32, num_classes=3), 0.1))
    other = with_overrides(RECIPE, [change])
    assert times(tmp_path, other).predict(TINY) is None


@pytest.mark.parametrize(
    "damage",
    [
        "{ half of",
        "[]",
        "null",
        '{"KEY": []}',
        '{"KEY": {"PART": 0.1}}',
        '{"KEY": {"PART": []}}',
        '{"KEY": {"PART": ["fast"]}}',
        '{"KEY": {"PART": [NaN]}}',
    ],
)
def test_damaged_cache_file_counts_as_empty(damage, tmp_path):
    cache = times(tmp_path)
    part = part_names(TINY, image_size=32, num_classes=3)[0]
    cache.file.write_text(damage.replace("KEY", cache._key(TINY)).replace("PART", part))
    assert cache.predict(TINY) is None
    cache.add(TINY, dict.fromkeys(part_names(TINY, image_size=32, num_classes=3), 0.1))
    assert json.loads(cache.file.read_text())
    assert cache.predict(TINY) is not None


def test_step_of_several_groups_takes_proportionally_longer():
    halves = with_overrides(RECIPE, ["batch_size=32", "ghost_batch_size=8"])
    one = with_overrides(RECIPE, ["batch_size=8"])
    four, single = (time_step(TINY, recipe, num_classes=3, device=CPU) for recipe in (halves, one))
    assert 1.5 < four.total.median / single.total.median < 12


def test_groups_per_pass_are_timed_in_one_pass(monkeypatch):
    """Seven groups, three per pass as in training: passes of three, three and one, with separate statistics."""
    seven = with_overrides(RECIPE, ["batch_size=28", "ghost_batch_size=4"])
    bench = StepBenchmark(TINY, seven, 3, CPU, 3)
    stem = bench.state.network.stem
    seen: list[tuple[int, int]] = []
    norm = next(one for one in stem.modules() if isinstance(one, BatchNorm2d))
    stem.register_forward_hook(lambda module, given, output: seen.append((len(output), norm.groups)))
    bench.step()
    assert seen == [(12, 3), (12, 3), (4, 1)]
    assert len(bench.step_by_part()) == len(part_names(TINY, image_size=32, num_classes=3))
    assert seen == [(12, 3), (12, 3), (4, 1)] * 2
    assert norm.groups == 1, "as it was"


def test_times_of_other_groups_per_pass_are_separate(tmp_path):
    times(tmp_path).add(TINY, dict.fromkeys(part_names(TINY, image_size=32, num_classes=3), 0.1))
    file = tmp_path / "times.json"
    assert StepTimeCache(file, RECIPE, num_classes=3, device=CPU, groups_per_pass=2).predict(TINY) is None
    assert StepTimeCache(file, RECIPE, num_classes=3, device=CPU, groups_per_pass=1).predict(TINY) is not None


def test_out_of_memory_of_the_reference_is_an_input_error(monkeypatch):
    def of(architecture: Architecture, *given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(step_time, "StepBenchmark", of)
    with pytest.raises(InputError, match=mentioning("CUDA", "out of memory")):
        time_step(TINY, RECIPE, num_classes=3, device=CPU, reference=ReferenceTiming(TINY, RECIPE, 1.0))
    with pytest.raises(torch.OutOfMemoryError):
        time_step(TINY, RECIPE, num_classes=3, device=CPU)


BACKBONE = get_architecture("efficientnetv2_b0")
SECONDS = {TINY: 0.002, BACKBONE: 0.004}


class Clock:
    """A clock that advances when a model computes, on a machine ``slowness`` times slower than before."""

    def __init__(self, slowness: float) -> None:
        self.now, self.slowness = 0.0, slowness

    def pass_of(self, architecture: object, **words: object) -> torch.nn.Module:
        """A fake model."""
        clock, seconds = self, SECONDS[architecture]

        class FakeModel(torch.nn.Module):
            in_channels = 3

            def forward(self, picture: torch.Tensor) -> None:
                clock.now += clock.slowness * seconds

        return FakeModel()


@pytest.mark.parametrize(
    ("slowness", "pace", "told"),
    [
        (1.1, ReferenceTiming(BACKBONE, RECIPE, 1.0, inference_seconds=0.004), 0.002),
        (1.0, ReferenceTiming(BACKBONE, RECIPE, 1.0, inference_seconds=0.008), 0.004),
        (1.1, ReferenceTiming(BACKBONE, RECIPE, 1.0), 0.0022),
        (1.1, None, 0.0022),
    ],
)
def test_latency_relative_to_the_reference_ignores_machine_speed(slowness, pace, told, monkeypatch):
    clock = Clock(slowness)
    monkeypatch.setattr(step_time, "create", clock.pass_of)
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    found = inference_latency(TINY, image_size=32, num_classes=3, device=CPU, reference=pace)
    assert found == pytest.approx(told)
