"""Fixtures for all tests: small images on disk, and no network connection. ``command_line`` runs commands."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import signal
import struct
import sys
import tempfile
import threading
import zlib
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from tests.log_lines import forget_log

from efficientnetv2.cli.console import Screen, spelling_as
from efficientnetv2.utils.logs import PACKAGE

# No test and no process of a test connects to the internet or reads the caches of the user. This must precede any
# import of huggingface_hub, which reads the variables once. Nothing listens on port 9, so connections fail at once.
_NOWHERE = "http://127.0.0.1:9"
if "EFFNETV2_TEST_CACHES" not in os.environ:  # not set by a parent process of pytest-xdist
    os.environ["EFFNETV2_TEST_CACHES"] = tempfile.mkdtemp(prefix="effnetv2-caches-")
    atexit.register(shutil.rmtree, os.environ["EFFNETV2_TEST_CACHES"], ignore_errors=True)
os.environ |= {
    "HF_ENDPOINT": _NOWHERE,
    "HF_HOME": f"{os.environ['EFFNETV2_TEST_CACHES']}/huggingface",
    "HF_HUB_CACHE": f"{os.environ['EFFNETV2_TEST_CACHES']}/huggingface/hub",
    "HF_HUB_DISABLE_XET": "1",  # so that uploads use LFS, which ``hub_server`` implements
    "EFFNETV2_CACHE": f"{os.environ['EFFNETV2_TEST_CACHES']}/efficientnetv2",
    "TORCH_HOME": f"{os.environ['EFFNETV2_TEST_CACHES']}/torch",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
} | dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _NOWHERE)
_COLORS = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PY_COLORS", "GITHUB_ACTIONS")  # read by rich and typer
for _variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", *_COLORS):
    os.environ.pop(_variable, None)

# A shell without job control ignores Ctrl-C in background processes, and child processes inherit this.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The duration of an example depends on the machine more than on the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# A killed process does not lose written data in the cache of the operating system, so no file must be flushed to disk.
os.fsync = lambda _: None

# Tests and data workers run at the same time: one thread each is fastest, and reproducible. Child processes use one
# thread too, because all workers of a study must have the same number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


# The longest modules, which start first. If one of them started last, the other cores would be idle.
LONG = (
    "cli/test_demo", "comparisons/test_land_cover", "faults/test_search_workers", "comparisons/test_paper",
    "faults/test_kill_and_resume", "cli/test_crossval", "cli/test_commands", "cli/test_search",
    "cli/test_bad_input", "comparisons/test_search_record", "comparisons/test_samplers_replay",
    "faults/test_rank_killed", "faults/test_shards_resume", "faults/test_finished", "cli/test_map",
    "nas/test_trial", "training/test_recipes_trained", "cli/test_dry_run_of_recipes", "comparisons/test_search_found",
    "parity/test_parity_table", "workflows/test_results",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long modules first. The others keep their order."""
    order = {Path(__file__).parent / f"{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    """Start the server that forks the commands. Its working directory lets it import ``tests``."""
    if "tests.command_line" in sys.modules:
        forkserver.ensure_running()
    gc.collect()
    gc.freeze()  # imported modules stay in memory, so the collector can skip them


def paint(path: Path, color: tuple[int, int, int], number: int = 0, px: int = 48) -> Path:
    """Save a noisy image of one color: easy to learn, and different for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(abs(hash((color, number))) % 2**32).integers(-40, 40, (px, px, 3))
    Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _log_state() -> tuple:
    """Return the state that decides which lines of the package reach a handler."""
    ours = [one for name, one in logging.root.manager.loggerDict.items() if name.startswith(PACKAGE.name)]
    loggers = [logging.root, *(one for one in ours if isinstance(one, logging.Logger))]
    changed = {one.name: (one.level, one.propagate, one.filters[:]) for one in loggers if one.level or one.disabled}
    filters = [one for handler in logging.root.handlers for one in handler.filters]
    return changed, PACKAGE.handlers[:], filters, logging.root.manager.disable


@pytest.fixture(autouse=True)
def _log_of_each_test():
    """Check that a test restores the log. Otherwise later tests would miss lines."""
    before = _log_state()
    yield
    forget_log()
    assert _log_state() == before


@pytest.fixture
def on_screen():
    """Print the log of the package to stdout, with details, as commands do."""
    with spelling_as({}), Screen(verbose=True) as screen:
        yield screen


COLORS = {"red": (200, 60, 60), "green": (60, 190, 60), "blue": (50, 70, 200)}


@pytest.fixture(scope="session")
def painted_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of 16 images each. Tests may only read or copy them."""
    folder = tmp_path_factory.mktemp("painted")
    for name, color in COLORS.items():
        for number in range(16):
            paint(folder / name / f"{name}_{number:02d}.jpg", color, number)
    return folder


@pytest.fixture
def class_folders(painted_folders: Path, tmp_path: Path) -> Path:
    """A copy of ``painted_folders``, which is faster than new images."""
    return Path(shutil.copytree(painted_folders, tmp_path / "pictures"))
