"""What allocators really say when memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientnetv2.base.memory import is_out_of_memory

TOO_MUCH = 1 << 60  # bytes: more than any machine has


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), lambda: np.empty(TOO_MUCH, dtype=np.uint8)],
    ids=["torch", "numpy"],
)
def test_a_failed_allocation_is_recognised(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_failed_allocation_on_the_gpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not():
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))
