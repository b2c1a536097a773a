"""A run that exceeds a memory limit of the system continues with less memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.messages import mentions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's data")

# 8 groups of 2 images of 128 px per step, whose activations need about 300 MB.
ARGS = (
    "--model", "efficientnetv2_b0", "--device", "cpu", "--workers", "0", "--epochs", "1", "--batch-size", "16",
    "--set", "ghost_batch_size=2", "--set", "progressive={stages: 1, image_size: 128, dropout: 0.2, drop_path: 0.2}",
    "--set", "precision=fp32",
)  # fmt: skip

# The first pass may use 150 MB more than before. Later passes have no limit: memory that the allocator keeps also
# counts, so a second pass would not even have memory for the code of a convolution.
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

# The default of glibc. If the user sets a value, the program does not keep freed memory. Otherwise the pass that
# measures memory would already keep all memory that the run needs.
GIVING_BACK = {"MALLOC_TRIM_THRESHOLD_": "131072"}


def train(data, run, before, *more):
    args = ["effnetv2", "train", str(data), *ARGS, "--output", str(run), *more]
    script = f"{before}\nimport sys\nfrom efficientnetv2.cli import main as cli\nsys.argv = {args!r}\ncli.main()\n"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=run.parent, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **GIVING_BACK},
    )  # fmt: skip


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_run_with_limited_memory_continues_with_the_same_losses(class_folders, tmp_path):
    unlimited = train(class_folders, tmp_path / "whole", "")
    assert unlimited.returncode == 0, unlimited.stderr
    assert "8 of 128 px" in (tmp_path / "whole/log.txt").read_text()
    cut = train(class_folders, tmp_path / "cut", SHORT)
    assert cut.returncode == 0, cut.stderr
    assert mentions(cut.stdout, "0", "8", "128")
    now = json.loads((tmp_path / "cut/run.json").read_text())["microbatches"]["128"]
    assert now == 4
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert json.loads((tmp_path / "whole/run.json").read_text())["microbatches"] == {"128": 8}
