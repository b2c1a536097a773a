"""Time of the parts of a run, measured with its own images and loop."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides
from tests.training.test_loop import SMALL

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.readers import source_reader
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training import loop
from efficientnetv2.training import timing as rates
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.training.timing import LinearCost, measure_timings
from efficientnetv2.utils.errors import InputError, ReaderKilledError

SLEEP_S = 0.02


class Slow:
    """A reader with a pause for each image."""

    def __init__(self, reader):
        self.reader, self.asked = reader, 0

    def source(self, sample):
        self.asked += 1
        time.sleep(SLEEP_S)
        return self.reader.source(sample)

    def ahead(self, samples):
        return self

    def name(self, sample):
        return self.reader.name(sample)


@pytest.fixture
def job(class_folders, tmp_path, monkeypatch):
    """Ghost batches of 4 images: two per pass at 32 px, one per pass at 64 px."""
    monkeypatch.setattr(rates, "_TIMED_S", 0.0)
    monkeypatch.setattr(rates, "_PREDICTIONS_S", 0.0)
    settings = [
        "progressive={stages: 2, image_size: {start: 32, end: 64}}", "batch_size=8", "ghost_batch_size=4",
        "precision=fp32", "compile=false", "epochs=1",
    ]  # fmt: skip
    dataset = load_dataset(class_folders)
    train, val = (dataset.select(np.arange(first, 48, 2)) for first in (0, 1))
    return RunSetup(
        recipe=with_overrides(get_recipe("quick"), settings),
        network=create(SMALL, num_classes=3),
        train=train,
        val=val,
        preprocessing=Preprocessing(image_size=64),
        folder=NullRunDir(tmp_path / "run"),
        device=torch.device("cpu"),
        workers=0,
        microbatches=MicrobatchPlan({32: 2, 64: 1}),
    )


@pytest.fixture
def large_job(job):
    """The same with a published architecture: its files are mostly weights, and its steps take longer than reading."""
    return replace(job, network=create("efficientnetv2_b0", num_classes=3))


def test_timed_steps_are_those_of_the_run_and_the_model_is_unchanged(large_job, tmp_path, monkeypatch):
    """At 32 px one pass of two ghost batches, at 64 px two passes. Two warm-up steps and three timed steps."""
    passes = []

    def counted(network, batches, *rest, real=loop.forward_backward):
        passes.append((batches[0].request.setting.image_size, len(batches)))
        return real(network, batches, *rest)

    monkeypatch.setattr(loop, "forward_backward", counted)
    before = {name: tensor.clone() for name, tensor in large_job.network.state_dict().items()}
    found = measure_timings(large_job, tmp_path)
    assert passes == [(32, 2)] * 5 + [(64, 1)] * 10
    assert [rate.image_size for rate in found.steps] == [32, 64]
    assert all(rate.each_s > 0 and rate.begin_s >= 0 for rate in found.steps)
    assert all(torch.equal(before[name], now) for name, now in large_job.network.state_dict().items())
    weights = sum(tensor.nbytes for tensor in before.values())
    assert weights < found.model_bytes < 1.02 * weights, "and its header"
    assert 0 < found.model_s < 60
    # model, two moments, EMA, and a small overhead
    assert 3.9 * weights < found.checkpoint_bytes < 4.2 * weights
    assert {path.stat().st_size for path in tmp_path.glob("*.pt")} == {found.checkpoint_bytes}
    assert found.checkpoints.each_s > 0
    assert found.checkpoints.begin_s >= 0
    assert all(rate.memory_bytes > 4 * weights for rate in found.steps)


def test_timed_steps_have_the_class_terms_of_the_run(job, tmp_path, monkeypatch):
    weights = []

    def noted(network, batches, context, *rest, real=loop.forward_backward):
        weights.append(context.class_terms.weights)
        return real(network, batches, context, *rest)

    monkeypatch.setattr(loop, "forward_backward", noted)
    measure_timings(replace(job, recipe=job.recipe.model_copy(update={"class_weights": "equal"})), tmp_path)
    assert weights
    assert all(each is not None for each in weights)


def test_reading_time_is_part_of_a_step(job, tmp_path):
    slow = measure_timings(replace(job, reader=Slow(source_reader(job.train))), tmp_path)
    assert all(rate.each_s > 8 * SLEEP_S for rate in slow.steps), "8 pictures, one after the other"


def test_large_batch_is_measured_in_part(job, tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "_MOST_IMAGES", 4)
    large = job.recipe.model_copy(update={"batch_size": 40})
    reader = Slow(source_reader(job.train))
    found = measure_timings(
        replace(job, recipe=large, reader=reader, microbatches=MicrobatchPlan({32: 1, 64: 1})), tmp_path
    )
    assert all(rate.each_s > 40 * SLEEP_S for rate in found.steps)
    assert reader.asked == 2 * 5 * 4, "at both sizes a tenth of each of five steps"


def test_slow_steps_are_timed_once(job, tmp_path, monkeypatch):
    """Two warm-up steps and one timed step of 8 images for both sizes."""
    monkeypatch.setattr(rates, "_LONG_S", 0.0)
    reader = Slow(source_reader(job.train))
    measure_timings(replace(job, reader=reader), tmp_path)
    assert reader.asked == 2 * 3 * 8


def test_short_run_times_no_more_steps_than_it_has(job, tmp_path):
    """Of 4 steps, two per size, after two warm-up steps."""
    reader = Slow(source_reader(job.train))
    measure_timings(replace(job, reader=reader), tmp_path, run_steps=4)
    assert reader.asked == 2 * 4 * 8


def test_each_measurement_is_logged_before_it_starts(job, tmp_path):
    said = logged_lines()
    measure_timings(replace(job, reader=Slow(source_reader(job.train))), tmp_path)
    answers, first, second, checkpoints = said
    assert mentions(first, "32", "1", "2")
    assert mentions(second, "64", "2 of 2")
    assert answers == "Measuring predictions."
    assert checkpoints == "Measuring checkpoints."


def test_measuring_stops_if_the_run_is_impossible(job, tmp_path, caplog):
    """The check is after 32 px. Without a measurement, 64 px is taken as four times as long.

    The check itself gets the predictions, and both sizes with the time of the smaller.
    """
    asked = []

    def in_vain(rates):
        asked.append(rates)
        return True

    with caplog.at_level("DEBUG", logger="efficientnetv2"):
        found = measure_timings(job, tmp_path, is_impossible=in_vain)
    assert any("32 px" in line for line in caplog.messages)
    assert not any("64 px" in line for line in caplog.messages)
    (least,) = asked
    assert least.predictions.each_s > 0
    assert [rate.image_size for rate in least.steps] == [32, 64]
    assert least.steps[1].each_s == least.steps[0].each_s == found.steps[0].each_s
    assert found.steps[1].each_s == pytest.approx(4 * found.steps[0].each_s)
    assert found.steps[1].begin_s == 0


def test_all_sizes_are_measured_if_the_run_is_possible(job, tmp_path):
    asked = []
    found = measure_timings(job, tmp_path, is_impossible=lambda rates: bool(asked.append(rates)))
    assert [rates.steps for rates in asked][-1] == found.steps, "asked after each size"
    assert len(asked) == 2


def test_extra_time_of_the_first_checkpoint_is_separate(job, tmp_path, monkeypatch):
    """400 s for the first, 100 s for the second."""
    now, taken = [0.0], iter((400, 100))

    def clock():
        now[0] += 0.001  # no measurement takes zero time
        return now[0]

    def save(folder, kept, step, fix):
        now[0] += next(taken)
        path = folder / f"{step}.pt"
        path.write_bytes(bytes(17))
        return path

    monkeypatch.setattr(rates, "save_checkpoint", save)
    monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=clock))
    found = measure_timings(job, tmp_path)
    assert found.checkpoints.begin_s == pytest.approx(300, abs=0.01)
    assert found.checkpoints.each_s == pytest.approx(100, abs=0.01)
    assert found.checkpoint_bytes == 17


@pytest.mark.parametrize("moment", [(loop, "optimizer_step"), (torch, "save")])
def test_worker_killed_while_measuring_is_named(job, tmp_path, monkeypatch, moment):
    def killed(*given, **named):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(*moment, killed)
    with pytest.raises(ReaderKilledError, match=mentioning("by signal: Killed", "`workers`")):
        measure_timings(job, tmp_path)


def test_full_disk_while_measuring_does_not_ask_to_resume_a_run(job, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=mentioning("Make room", "another `output`")) as error:
        measure_timings(job, tmp_path)
    assert "resume" not in str(error.value)


def test_workers_of_the_run_are_used(large_job, tmp_path):
    """Two parallel workers take half the time: 8 images in 4 pauses."""
    found = measure_timings(replace(large_job, workers=2, reader=Slow(source_reader(large_job.train))), tmp_path)
    last = found.steps[-1]
    assert last.each_s > 3 * SLEEP_S
    assert last.begin_s == 0, "the workers have read ahead by then"


def test_time_between_two_sizes_is_proportional_to_the_pixels(job, tmp_path):
    found = measure_timings(job, tmp_path)
    small, large = (rate.each_s for rate in found.steps)
    middle = (0.5 * (32**2 + 64**2)) ** 0.5
    assert found.step_s(32) == pytest.approx(small)
    assert found.step_s(middle) == pytest.approx((small + large) / 2)


def test_linear_cost_is_a_start_and_a_time_per_item():
    assert LinearCost(0.5, 0.01).seconds(30) == pytest.approx(0.8)
    assert LinearCost(0.5, 0.01).seconds(0) == 0


@pytest.mark.parametrize(("within_s", "sizes"), [(1e6, [32, 64]), (0.0, [32])])
def test_sizes_without_time_to_measure_scale_with_their_pixels(within_s, sizes, job, tmp_path):
    """Without time, one step of the smallest size is timed after one warm-up step."""
    said = logged_lines()
    found = measure_timings(job, tmp_path, within_s=within_s)
    assert [line.split()[3] for line in said if "steps of" in line] == [str(px) for px in sizes]
    assert [rate.image_size for rate in found.steps] == [32, 64]
    small, large = found.steps
    if sizes == [32]:
        assert large.each_s == pytest.approx(4 * small.each_s)
