"""Memory that runs out where nothing can be done again with less: one line, and what to reduce."""

from __future__ import annotations

import errno

import pyarrow
import pytest
import torch
import typer

from efficientnetv2.cli.console import ends


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 2 GiB for an array\nof floats"),
        pyarrow.lib.ArrowMemoryError("malloc of size 64 failed"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("can't start new thread"),
        ImportError("libx.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_it_is_told_in_a_line_with_what_to_reduce(error, capsys):
    with pytest.raises(typer.Exit) as ended, ends():
        raise error
    assert ended.value.exit_code == 1
    line, hint = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory")
    assert hint.startswith("hint: Reduce")
    assert "--workers" in hint


@pytest.mark.parametrize("error", [RuntimeError("a mistake of ours"), ImportError("no such module"), typer.Exit(3)])
def test_other_errors_are_not_taken_for_it(error):
    with pytest.raises(type(error)) as ended, ends():
        raise error
    assert ended.value is error
