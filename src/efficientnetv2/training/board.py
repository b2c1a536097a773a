"""TensorBoard's log of a run, without TensorFlow."""

from __future__ import annotations

import sys
from types import ModuleType

# Where TensorFlow is installed TensorBoard imports it, which takes seconds and does not go well beside PyTorch in every
# process. A module of this name is its own switch against that, and has to be there before the writer is imported.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

from torch.utils.tensorboard import SummaryWriter  # noqa: E402 - see above

__all__ = ["SummaryWriter"]
