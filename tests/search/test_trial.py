"""What becomes of a network that is tried: trained, stopped, diverged, out of memory, killed."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.command_line import SERVER

from efficientnetv2.arch.cost import cost
from efficientnetv2.arch.spec import Architecture, Stage, fused, mbconv
from efficientnetv2.base.errors import InputError
from efficientnetv2.data.manifest import Manifest, read
from efficientnetv2.search.child import EpochTold, StepTold
from efficientnetv2.search.proxy import Proxy, refuse_leaks
from efficientnetv2.search.trial import measurement, try_out
from efficientnetv2.training.changes import with_settings
from efficientnetv2.training.recipes import named

# fmt: off
TINY = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused(expand=1, kernel=3),            1,       8,      1),
        Stage(fused(expand=4, kernel=3),            2,      16,      1),
        Stage(mbconv(expand=4, kernel=3, se=0.25),  2,      24,      2),
    ),
    head_channels=64,
)
# fmt: on
SETTINGS = (
    "progressive.stages=1",
    "progressive.image_px=32",
    "batch_images=8",
    "epochs=2",
    "precision=fp32",
    "compile=false",
    "eval_px=32",
)  # fmt: skip


def split(folder: Path) -> Manifest:
    """48 pictures: 30 to train on, 9 that choose, 9 that judge."""
    manifest = read(folder)
    parts = [
        "val" if row % 16 < 3 else "minival" if row % 16 < 6 else "train" for row in range(len(manifest))
    ]
    return manifest.with_split(np.array(parts, dtype=object))


def proxy_of(folder: Path, tmp_path: Path, *settings: str, seeds: tuple[int, ...] = (0,)) -> Proxy:
    manifest = split(folder)
    return Proxy(
        recipe=with_settings(named("quick"), [*SETTINGS, *settings]),
        seeds=seeds,
        train=manifest.subset("train"),
        choosing=manifest.subset("minival"),
        device="cpu",
        workers=0,
        threads=1,
        times=tmp_path / "step_times.json",
        quiet=tmp_path / "quiet",
    )


def test_a_trial_is_trained_with_every_seed_and_measured(class_folders, tmp_path):
    told = []
    proxy = proxy_of(class_folders, tmp_path, seeds=(0, 1))
    tried = try_out(TINY, proxy, watch=lambda one: told.append(one) or True)
    found = measurement(TINY, proxy, tried)
    counted = cost(TINY, image_px=32, num_classes=3).total
    assert (found.parameters, found.multiply_adds) == (counted.parameters, counted.multiply_adds)
    assert found.top1 == pytest.approx(sum(tried.trained.top1) / 2)
    assert found.top1 > 0.6, "red, green and blue are easy to tell apart"
    assert found.seeds == (0, 1)
    assert found.epochs == pytest.approx(2, abs=0.2)
    assert found.failure is None
    assert 0 < found.step_seconds < 10
    assert 50e6 < found.peak_memory_bytes < 5e9
    assert isinstance(told[0], StepTold), "known before training, so that a reward can be had at every epoch"
    assert [one.seed for one in told[1:]] == [0, 0, 1, 1]
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("effnetv2-trial-*/run_0"))


def test_the_same_trial_gives_the_same_answers_and_remembers_the_step(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path, "epochs=1")
    first, second = (try_out(TINY, proxy) for _ in range(2))
    assert first.trained.top1 == second.trained.top1
    assert first.step.foretold is None
    assert second.step.foretold > 0
    cached = try_out(TINY, replace(proxy, step_time="cached"), verify=False)
    assert not cached.step.measured
    assert cached.step.time.median == cached.step.foretold


def test_a_hopeless_trial_is_stopped_where_it_stands(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path, "epochs=30")
    tried = try_out(TINY, proxy, watch=lambda one: isinstance(one, StepTold))
    assert tried.stopped
    found = measurement(TINY, proxy, tried)
    assert found.epochs == pytest.approx(1, abs=0.2)
    assert found.top1 == tried.epochs[0].top1


def test_divergence_is_a_result(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path, "optimizer.lr=1e30", "optimizer.clip_norm=null")
    found = measurement(TINY, proxy, try_out(TINY, proxy))
    assert found.failure.startswith("diverged: ")
    assert found.top1 is None
    assert found.step_seconds is not None


def test_no_memory_is_a_result(class_folders, tmp_path):
    """Of a batch of 600 GB not even the pictures can be had."""
    proxy = proxy_of(class_folders, tmp_path, "batch_images=1000000", "progressive.image_px=224")
    found = measurement(TINY, proxy, try_out(TINY, proxy))
    assert found.failure.startswith("out of memory: ")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_is_a_result(number, class_folders, tmp_path):
    """From outside, as the system does it that has run out of memory; the trial is told apart by its own children."""
    proxy = proxy_of(class_folders, tmp_path, "epochs=1000")

    def watch(told) -> bool:
        if isinstance(told, EpochTold):
            for process in trials():
                process.send_signal(number)
        return True

    found = measurement(TINY, proxy, try_out(TINY, proxy, watch=watch))
    assert found.failure.startswith("crashed: ")
    assert number.name in found.failure


def trials() -> list[psutil.Process]:
    """The processes in which networks are being tried: their output goes into a file of the trial."""
    return [one for one in psutil.process_iter() if "effnetv2-trial-" in _output(one)]


def _output(process: psutil.Process) -> str:
    try:
        return os.readlink(f"/proc/{process.pid}/fd/1")
    except OSError:
        return ""


def test_what_is_wrong_with_the_pictures_is_no_result(class_folders, tmp_path):
    proxy = proxy_of(class_folders, tmp_path)
    for file in class_folders.rglob("*.jpg"):
        file.unlink()
    with pytest.raises(InputError, match="unreadable during the run"):
        try_out(TINY, proxy)


def _try_for_long(folder: Path, tmp_path: Path) -> None:
    try_out(TINY, proxy_of(folder, tmp_path, "epochs=100000"))


def test_a_trial_ends_with_whoever_began_it(class_folders, tmp_path):
    worker = SERVER.Process(target=_try_for_long, args=(class_folders, tmp_path))
    worker.start()
    until = time.monotonic() + 300
    while not (running := trials()) and time.monotonic() < until:
        time.sleep(0.1)
    assert running
    worker.kill()
    worker.join()
    while trials() and time.monotonic() < until:
        time.sleep(0.1)
    assert not trials()


def test_a_picture_on_both_sides_is_refused_with_its_copy(class_folders):
    manifest = split(class_folders)
    refuse_leaks(manifest)
    judging, trained = (manifest.paths[list(manifest.split).index(name)] for name in ("val", "train"))
    (class_folders / judging).write_bytes((class_folders / trained).read_bytes())
    with pytest.raises(InputError, match="1 picture that the search would use also stand") as error:
        refuse_leaks(manifest)
    assert judging in str(error.value)
    assert trained in str(error.value)


def test_a_search_leaves_something_to_judge_by(class_folders):
    manifest = split(class_folders)
    kept = manifest.select([row for row, name in enumerate(manifest.split) if name != "val"])
    with pytest.raises(InputError, match="no pictures"):
        refuse_leaks(kept)
