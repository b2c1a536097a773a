"""Log messages while a run compiles, which takes minutes."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.log_lines import logged_lines
from tests.messages import mentions
from tests.recipes import with_overrides
from tests.training.test_autotune import SMALL
from torch._dynamo.testing import CompileCounter

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training import compile as compiling
from efficientnetv2.training import metrics_log, timing
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import NullRunDir, RunDir
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.training.timing import measure_timings
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.logs import RunLog, attached

COMPILE = torch.compile  # replaced by the fixture
# 8 images per step in ghost batches of 2: at 32 px passes of three and one, at 64 px one pass of four.
EXPECTED = [
    "Compiling (1 of 3): passes of 6 images of 32 px ...",
    "Compiled in 0 s.",
    "Compiling (2 of 3): passes of 2 images of 32 px ...",
    "Compiled in 0 s.",
    "Compiling (3 of 3): passes of 8 images of 64 px ...",
    "Compiled in 0 s.",
]


@pytest.fixture
def job(class_folders, tmp_path, monkeypatch):
    """One step of each size. A stub replaces PyTorch's compiler, which takes minutes."""
    monkeypatch.setattr(compiling.torch, "compile", lambda module, **words: module)
    monkeypatch.setattr(timing, "_TIMED_S", 0.0)
    settings = [
        "progressive={stages: 2, image_size: {start: 32, end: 64}}", "batch_size=8", "ghost_batch_size=2",
        "precision=fp32", "compile=true", "epochs=0.7",
    ]  # fmt: skip
    dataset = load_dataset(class_folders)
    return RunSetup(
        recipe=with_overrides(get_recipe("quick"), settings),
        network=create(SMALL, num_classes=3),
        train=dataset.select(np.arange(0, 48, 2)),
        val=dataset.select(np.arange(1, 48, 6)),
        preprocessing=Preprocessing(image_size=64),
        folder=NullRunDir(tmp_path / "run"),
        device=torch.device("cpu"),
        workers=0,
        microbatches=MicrobatchPlan({32: 3, 64: 4}),
    )


def without_seconds(lines):
    return [re.sub(r"\d+ s\.", "0 s.", line) for line in lines]


def test_compiling_is_logged_and_written_to_the_log_file(job, tmp_path):
    said = logged_lines()
    job = replace(job, folder=RunDir(tmp_path / "run"))
    job.folder.begin(job.recipe, job.train, {})
    log = RunLog()
    log.write_to(job.folder.path)
    with attached(log):
        Trainer(job).fit()
    assert without_seconds(said)[: len(EXPECTED)] == EXPECTED
    written = (tmp_path / "run/log.txt").read_text()
    assert all(line in written for line in said)


def test_compiling_time_is_not_training_time(job, tmp_path, monkeypatch):
    """The first call of each of three programs takes 100 s. All else takes no time."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now

    seconds = iter([100] * 3)

    def compiler(module, **words):
        module.register_forward_pre_hook(lambda *_: setattr(clock, "now", clock.now + next(seconds, 0)))
        return module

    monkeypatch.setattr(metrics_log, "time", clock)
    monkeypatch.setattr(compiling.torch, "compile", compiler)
    result = Trainer(replace(job, folder=RunDir(tmp_path / "run"))).fit()
    assert result.seconds == 300
    assert metrics_log.training_seconds(result.history) < 1


def test_finished_run_compiles_nothing_on_resume(job, tmp_path):
    """As after a kill before the report was written."""
    job = replace(job, folder=RunDir(tmp_path / "run"))
    job.folder.begin(job.recipe, job.train, {})
    first = Trainer(job).fit()
    said = logged_lines()
    again = Trainer(replace(job, folder=RunDir(tmp_path / "run"))).fit(resume=True)
    assert mentions(said, "Evaluating", "8", "val")
    assert not any("ompil" in line for line in said)
    assert np.array_equal(again.predictions.logits, first.predictions.logits)


def of_compiling(said):
    """Without the messages about measuring."""
    return [line for line in said if not line.startswith("Measuring ")]


def test_measuring_a_run_logs_compiling(job, tmp_path):
    said = logged_lines()
    measure_timings(job, tmp_path)
    assert without_seconds(of_compiling(said)) == EXPECTED


def test_continuous_ramp_compiles_its_smallest_and_largest_size(job):
    growing = with_overrides(job.recipe, ["progressive={image_size: {start: 32, end: 64, continuous: true}}"])
    said = logged_lines()
    compiling.compile_model(job.network.train(), growing, job.device, job.microbatches)
    assert without_seconds(said) == EXPECTED


def test_each_process_compiles_the_passes_of_its_share(job):
    """Four ghost batches, at most three or four per pass. Each of two processes has two, in one pass."""
    said = logged_lines()
    world = World(rank=0, size=2, local_rank=0, local_size=2)
    compiling.compile_model(job.network.train(), job.recipe, job.device, job.microbatches, world=world)
    assert [line for line in said if line.startswith("Compiling")] == [
        f"Compiling ({number} of 2): passes of 4 images of {px} px ..." for number, px in ((1, 32), (2, 64))
    ]


def test_every_stage_is_compiled_beyond_the_limit_of_pytorch(job, monkeypatch):
    """Five sizes, with passes of three ghost batches and of one: ten programs. By default PyTorch keeps 8."""
    graphs = CompileCounter()
    one_block = Architecture(
        stem_channels=8, stages=(Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1),), head_channels=8
    )
    network = create(one_block, num_classes=3).train()
    monkeypatch.setattr(
        compiling.torch, "compile", lambda module, **words: COMPILE(module, dynamic=False, backend=graphs)
    )
    five = "progressive={stages: 5, size_multiple: 8, image_size: {start: 32, end: 64}}"
    before = torch._dynamo.config.recompile_limit
    compiling.compile_model(network, with_overrides(job.recipe, [five]), job.device, MicrobatchPlan({64: 3}))
    assert graphs.frame_count == 10
    assert torch._dynamo.config.recompile_limit == before
