"""A network as a graph of tensors, how it is written, and the metadata that travels in exported files."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from efficientnetv2.data.image_io import Pixels
from efficientnetv2.inference.predict import calibrated_outputs
from efficientnetv2.models.efficientnet import Network, output_names, require_classes
from efficientnetv2.models.ensemble import Ensemble
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.probability import probabilities

Floats = npt.NDArray[np.float32]
#: ``float``: normalized images (N, C, S, S). ``uint8``: images of any size (N, H, W, C), preprocessed in the graph.
InputKind = Literal["float", "uint8"]
Precision = Literal["float32", "float16", "int8"]
OUTPUTS = ("logits", "probabilities")


@dataclass(frozen=True, eq=False)
class Encoding:
    """How a graph is written."""

    input: InputKind = "float"
    precision: Precision = "float32"  # of the weights; with int8 also of the activations
    calibration: Pixels | None = None  # (n, S, S, C), as the model sees them: ranges of the activations for int8


class ExportGraph(nn.Module):
    """Normalized images (N, C, S, S) float32 to calibrated logits and probabilities, (N, num_classes) each.

    Test-time augmentation and the members of an ensemble are part of the graph, so that it predicts as `Predictor`.
    As the graph of an engine it takes levels (N, S, S, C) uint8, and gives the scores of unknown images, if the network
    has them, as a further column of the logits; see ``inference.predict.predict``.
    """

    def __init__(
        self, network: Network, preprocessing: Preprocessing | None = None, *, for_engine: bool = False
    ) -> None:
        super().__init__()
        require_classes(network)
        self.network = network.eval()
        self.preprocessing = preprocessing or network.preprocessing
        self.for_engine = for_engine

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities."""
        network, own = self.network, self.preprocessing
        if self.for_engine:
            images = normalize(images.permute(0, 3, 1, 2), mean=own.mean, std=own.std)
        logits = calibrated_outputs(network, images, own.tta, unknown=self.for_engine)
        return logits, probabilities(logits[:, : network.num_classes], network.activation)

    def contiguous(self) -> ExportGraph:
        """A copy in PyTorch's default memory format, as files have it. The caller's model keeps its own, faster one."""
        return copy.deepcopy(self).eval().to(memory_format=torch.contiguous_format)

    def sample(self, images: int = 2) -> Tensor:
        """An input to trace the graph with."""
        own = self.preprocessing
        if self.for_engine:
            return torch.zeros(images, own.image_size, own.image_size, own.channels, dtype=torch.uint8)
        return torch.zeros(images, own.channels, own.image_size, own.image_size)


def to_batch(pixels: Pixels) -> Tensor:
    """(n, S, S, C) levels as (n, C, S, S)."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def model_input(batch: Tensor, own: Preprocessing) -> Floats:
    """(n, C, S, S) uint8 levels as an exported file with float input takes them."""
    return normalize(batch, mean=own.mean, std=own.std).contiguous().numpy()


def metadata(network: Network, input_kind: InputKind) -> dict[str, str]:
    """What a reader of the file needs, as text: names and preprocessing, in the words of timm's configurations."""
    own = network.preprocessing
    plain: dict[str, Any] = {
        "names": list(output_names(network)),
        "input": input_kind,
        "image_size": own.image_size,
        "crop_mode": own.crop_mode,
        "crop_pct": own.crop_pct,
        "interpolation": own.interpolation,
        "mean": list(own.mean),
        "std": list(own.std),
        "problem_type": "multi_label_classification"
        if network.activation == "sigmoid"
        else "single_label_classification",
        "architecture": _architecture(network),
    }
    if own.bands is not None:
        plain["bands"] = Preprocessing.to_json(own)["bands"]
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in plain.items()}


def _architecture(network: Network) -> str:
    if isinstance(network, Ensemble):
        return f"ensemble of {len(network.members)} models"
    return (network.source or "") if isinstance(network, WrappedModel) else network.display_name()
