"""Memory that really runs out in the middle of a run: the system refuses, and the run goes on with less."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.messages import mentions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's data")

# 8 groups of 2 images of 128 px a step; together their activations are about 300 MB.
WORDS = (
    "--model", "efficientnetv2_b0", "--device", "cpu", "--workers", "0", "--epochs", "1", "--batch-size", "16",
    "--set", "ghost_batch_size=2", "--set", "progressive={stages: 1, image_size: 128, dropout: 0.2, drop_path: 0.2}",
    "--set", "precision=fp32",
)  # fmt: skip

# For its first pass the process may have 150 MB more than before it; then as much as it likes: what the allocator has
# kept to itself counts for this limit, so a second pass would not even find room for a convolution's code.
SHORT = """
import resource, sys
import torch
from efficientnetv2.cli import main as cli
from efficientnetv2.training import loop
torch.set_num_threads(1)
passes = []
def counted(*given, real=loop.forward_backward):
    passes.append(len(given[1]))
    if len(passes) == 1:
        data = next(line for line in open("/proc/self/status") if line.startswith("VmData"))
        limit = int(data.split()[1]) * 1024 + 150_000_000
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return real(*given)
loop.forward_backward = counted
"""

# Glibc's own value: with one set by the user the program keeps no memory, else the look at what a pass takes would
# have kept all that the run needs.
GIVING_BACK = {"MALLOC_TRIM_THRESHOLD_": "131072"}


def train(data, run, before, *more):
    words = ["effnetv2", "train", str(data), *WORDS, "--output", str(run), *more]
    script = f"{before}\nimport sys\nfrom efficientnetv2.cli import main as cli\nsys.argv = {words!r}\ncli.main()\n"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=run.parent, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **GIVING_BACK},
    )  # fmt: skip


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_a_run_whose_memory_is_cut_goes_on_with_fewer_groups_and_the_same_losses(class_folders, tmp_path):
    whole = train(class_folders, tmp_path / "whole", "")
    assert whole.returncode == 0, whole.stderr
    assert "8 of 128 px" in (tmp_path / "whole/log.txt").read_text()
    cut = train(class_folders, tmp_path / "cut", SHORT)
    assert cut.returncode == 0, cut.stderr
    assert mentions(cut.stdout, "0", "8", "128")
    now = json.loads((tmp_path / "cut/run.json").read_text())["microbatches"]["128"]
    assert now == 4
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert json.loads((tmp_path / "whole/run.json").read_text())["microbatches"] == {"128": 8}
