"""What is sent to a device that nobody waits for."""

from __future__ import annotations

import pytest
import torch

from efficientnetv2.utils.device import to_device


class Recorded(torch.Tensor):
    """A tensor that says how it was sent, and stays."""

    def to(self, device, dtype, **how):
        self.sent = (device.type, dtype, how["non_blocking"])
        return self


@pytest.mark.parametrize(("kind", "waits"), [("cuda", False), ("mps", True), ("cpu", True)])
def test_only_an_nvidia_gpu_is_not_waited_for(kind, waits):
    """Apple's would read the memory of a tensor that is gone by then (pytorch/pytorch#139550)."""
    tensor = torch.ones(2).as_subclass(Recorded)
    assert to_device(tensor, torch.device(kind)).sent == (kind, torch.float32, not waits)


def test_type_and_memory_order_are_those_asked_for():
    tensor = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    sent = to_device(tensor, torch.device("cpu"), dtype=torch.float32, memory_format=torch.channels_last)
    assert sent.dtype == torch.float32
    assert sent.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(sent.byte(), tensor)
