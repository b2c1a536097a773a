"""Out-of-memory errors that no retry can avoid: one line, and a hint what to reduce."""

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
def test_out_of_memory_is_a_one_line_error_with_a_hint(error, capsys):
    with pytest.raises(typer.Exit) as ended, ends({}):
        raise error
    assert ended.value.exit_code == 1
    line, hint = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory")
    assert hint.startswith("hint: Reduce")
    assert "--workers" in hint


@pytest.mark.parametrize("error", [RuntimeError("a mistake of ours"), ImportError("no such module"), typer.Exit(3)])
def test_other_errors_are_raised_unchanged(error):
    with pytest.raises(type(error)) as ended, ends({}):
        raise error
    assert ended.value is error
