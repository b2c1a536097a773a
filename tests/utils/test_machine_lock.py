"""A measurement is alone on the machine, while other work pauses."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tests.command_line import SERVER
from tests.messages import mentioning

from efficientnetv2.utils.benchmark import MachineLock
from efficientnetv2.utils.errors import InputError


def test_work_pauses_during_a_measurement(tmp_path):
    steps: list[float] = []
    enough = threading.Event()

    def work() -> None:
        quiet = MachineLock(tmp_path)
        with quiet.working():
            while not enough.is_set():
                quiet.pause()
                steps.append(time.monotonic())
                time.sleep(0.01)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    while len(steps) < 4:
        time.sleep(0.01)
    with MachineLock(tmp_path).exclusive():
        begun = time.monotonic()
        time.sleep(0.3)
        ended = time.monotonic()
    while not steps or steps[-1] < ended:
        time.sleep(0.01)
    enough.set()
    for worker in workers:
        worker.join()
    assert not [step for step in steps if begun < step < ended]
    assert [step for step in steps if step > ended]
    assert not list(tmp_path.glob("busy_*"))


def _work_for_ever(folder: Path, begun: Path) -> None:
    with MachineLock(folder).working():
        begun.touch()
        time.sleep(600)


def test_killed_worker_does_not_block_a_measurement(tmp_path):
    worker = SERVER.Process(target=_work_for_ever, args=(tmp_path / "quiet", tmp_path / "begun"))
    worker.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    worker.kill()
    worker.join()
    with MachineLock(tmp_path / "quiet").exclusive():
        pass


def test_folder_that_cannot_be_made_names_the_variable_for_another(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=mentioning("EFFNETV2_CACHE")):
        MachineLock(tmp_path / "cache/quiet")
