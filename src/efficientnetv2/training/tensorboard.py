"""TensorBoard's writer, without TensorFlow. Importing this takes half a second."""

from __future__ import annotations

import sys
from types import ModuleType

# TensorBoard imports TensorFlow if there is one: slow, and it may clash with PyTorch. This module turns that off.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

from torch.utils.tensorboard import SummaryWriter as SummaryWriter  # noqa: E402
