"""Weights to start from."""

from __future__ import annotations

import torch

from efficientnetv2.base.errors import InputError
from efficientnetv2.models import modelfile
from efficientnetv2.models.network import EfficientNet


def start_from(network: EfficientNet, file: str, class_names: tuple[str, ...]) -> str:
    """Copy a model file's weights into a network of the same architecture.

    The classifier comes along only if the file's classes are these, in this order; else it keeps its fresh
    weights.

    Args:
        network: changed in place.
        file: a model file or a run folder.
        class_names: of the pictures to train on.

    Returns:
        A sentence that says what was taken over.

    Raises:
        InputError: the file can't be read, or is of another architecture.
    """
    donor = modelfile.load(file)
    if donor.architecture != network.architecture or donor.in_channels != network.in_channels:
        raise InputError(
            f"--weights {file}: its network has another architecture than the one to train. Name that network "
            "with --model, or take weights of this one."
        )
    given = donor.state_dict()
    same_classes = donor.class_names == class_names
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if same_classes or not name.startswith("classifier."):
                tensor.copy_(given[name])
    head = "its classifier too" if same_classes else f"a fresh classifier for {len(class_names)} classes"
    return f"Weights: from {file}, {head}."
