"""What tests share: small images on disk, no network; the command line is in ``command_line``."""

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

# No test reaches a network, nor what the user has in his caches; nor does a process that a test starts. This stands
# before anything imports huggingface_hub, which reads it once. Nothing listens on port 9: a refusal takes no time.
_NOWHERE = "http://127.0.0.1:9"
if "EFFNETV2_TEST_CACHES" not in os.environ:  # else a worker of pytest-xdist, which inherits it
    os.environ["EFFNETV2_TEST_CACHES"] = tempfile.mkdtemp(prefix="effnetv2-caches-")
    atexit.register(shutil.rmtree, os.environ["EFFNETV2_TEST_CACHES"], ignore_errors=True)
os.environ |= {
    "HF_ENDPOINT": _NOWHERE,
    "HF_HOME": f"{os.environ['EFFNETV2_TEST_CACHES']}/huggingface",
    "HF_HUB_CACHE": f"{os.environ['EFFNETV2_TEST_CACHES']}/huggingface/hub",
    "HF_HUB_DISABLE_XET": "1",  # uploads by the hub's other protocol, which ``hub_server`` speaks
    "EFFNETV2_CACHE": f"{os.environ['EFFNETV2_TEST_CACHES']}/efficientnetv2",
    "TORCH_HOME": f"{os.environ['EFFNETV2_TEST_CACHES']}/torch",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
} | dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _NOWHERE)
for _variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
    os.environ.pop(_variable, None)

# A shell without job control starts what runs in its background with Ctrl-C ignored, and children inherit that.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Tests and data workers run at the same time: a thread each is fastest, and exact. So has what they start, for
# a study of several workers is of one number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


# The longest modules, which begin first: one that began last would leave the other cores idle.
LONG = (
    "cli/test_demo", "comparisons/test_land_cover", "faults/test_search_workers", "comparisons/test_paper",
    "faults/test_kill_and_resume", "cli/test_crossval", "cli/test_commands", "cli/test_search",
    "cli/test_bad_input", "comparisons/test_search_record", "comparisons/test_samplers_replay",
    "faults/test_rank_killed", "faults/test_shards_resume", "faults/test_finished", "cli/test_map",
    "nas/test_trial", "training/test_recipes_trained", "cli/test_dry_run_of_recipes",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first, the others as they come."""
    place = {Path(__file__).parent / f"{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    """The server that commands are forked off begins here: it finds ``tests`` from where it begins."""
    if "tests.command_line" in sys.modules:
        forkserver.ensure_running()
    gc.collect()
    gc.freeze()  # what is imported stays: the collector need not look at it again and again


def paint(path: Path, color: tuple[int, int, int], number: int = 0, px: int = 48) -> Path:
    """A noisy image of one color: easy to learn, different for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(abs(hash((color, number))) % 2**32).integers(-40, 40, (px, px, 3))
    Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with its length and its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _log_state() -> tuple:
    """What decides whether a line of the package reaches a handler."""
    ours = [one for name, one in logging.root.manager.loggerDict.items() if name.startswith(PACKAGE.name)]
    loggers = [logging.root, *(one for one in ours if isinstance(one, logging.Logger))]
    changed = {one.name: (one.level, one.propagate, one.filters[:]) for one in loggers if one.level or one.disabled}
    filters = [one for handler in logging.root.handlers for one in handler.filters]
    return changed, PACKAGE.handlers[:], filters, logging.root.manager.disable


@pytest.fixture(autouse=True)
def _log_of_each_test():
    """A test leaves the log as it was; else a later one would miss lines, far from the cause."""
    before = _log_state()
    yield
    forget_log()
    assert _log_state() == before


@pytest.fixture
def on_screen():
    """The log of the package on stdout, details too, as commands show it."""
    with spelling_as({}), Screen(verbose=True) as screen:
        yield screen


COLORS = {"red": (200, 60, 60), "green": (60, 190, 60), "blue": (50, 70, 200)}


@pytest.fixture(scope="session")
def painted_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 16 images each, a folder per class; only to be read or copied."""
    folder = tmp_path_factory.mktemp("painted")
    for name, color in COLORS.items():
        for number in range(16):
            paint(folder / name / f"{name}_{number:02d}.jpg", color, number)
    return folder


@pytest.fixture
def class_folders(painted_folders: Path, tmp_path: Path) -> Path:
    """A copy of ``painted_folders``: painting takes longer."""
    return Path(shutil.copytree(painted_folders, tmp_path / "pictures"))
