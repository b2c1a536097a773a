"""Which checkpoint a run goes on from, when reading goes wrong."""

from __future__ import annotations

import errno

import pytest
import torch

from efficientnetv2.base.errors import InputError
from efficientnetv2.training import resume


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ESTALE, "Stale file handle"),
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(error, tmp_path, monkeypatch):
    """Nothing is set aside: an hour of training is not given up for a network share that is away for a moment."""
    for step in (1, 2):
        resume.save(tmp_path, {"step": step}, step)
    real, calls = torch.load, []

    def failing_once(*arguments, **words):
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return real(*arguments, **words)

    monkeypatch.setattr(torch, "load", failing_once)
    with pytest.raises(InputError, match=r"step_00000002\.pt can't be read now .* go on with --resume"):
        resume.load_newest(tmp_path)
    assert resume.load_newest(tmp_path) == ({"step": 2}, [])


def test_checkpoints_that_were_all_damaged_are_no_reason_to_begin_again_unasked(tmp_path):
    """A launcher that starts the run again would have it lose its history."""
    resume.save(tmp_path, {"step": 1}, 1).write_bytes(b"no zip")
    for _ in range(2):
        with pytest.raises(InputError, match=r"step_00000001\..* is damaged.* Start anew with another --out"):
            resume.load_newest(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_checkpoint_that_is_cut_short_is_set_aside_wherever_it_ends(share, tmp_path):
    for step in (1, 2):
        path = resume.save(tmp_path, {"weights": torch.full((5_000,), float(step))}, step)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    kept, damaged = resume.load_newest(tmp_path)
    assert kept["weights"][0] == 1
    assert len(damaged) == 1
    assert resume.steps_saved(tmp_path) == [1]
