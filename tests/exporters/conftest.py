"""Small models and photos to export. Each graph is traced once, because tracing takes longest."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import Preprocessing

NAMES = ("forest", "pasture of cows", "maize")
SMALL = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=2, kernel=3), stride=2, channels=8, layers=1),
        Stage(mbconv(expand=2, kernel=3, se=0.25), stride=2, channels=16, layers=2),
    ),
    head_channels=16,
    padding="same",
)


def small_model(seed=0, *, activation="softmax", preprocessing=None, temperature=None):
    """Return a model whose predictions differ between images, with its own statistics of batch norm."""
    own = preprocessing or Preprocessing(image_size=32)
    torch.manual_seed(seed)
    model = EfficientNet(SMALL, num_classes=3, in_channels=own.channels)
    model.train()
    for _ in range(3):
        model(torch.randn(8, own.channels, 32, 32))
    model.eval()
    torch.nn.init.normal_(next(m for m in model.modules() if isinstance(m, torch.nn.Linear)).weight, std=3.0)
    model.preprocessing, model.class_names, model.activation = own, NAMES, activation
    if temperature is not None:
        model.calibration = Calibration(temperature, 100, "minival")
    return model


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Colored gradients with noise, in the formats and orientations of cameras."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(12):
        height, width = int(rng.integers(150, 300)), int(rng.integers(150, 300))
        ramp = np.linspace(0, 1, width)[None, :, None] * rng.uniform(0, 255, 3) + rng.uniform(0, 60, (height, 1, 1))
        image = Image.fromarray(np.clip(ramp + rng.normal(0, 10, (height, width, 3)), 0, 255).astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        image.save(folder / f"{number}.{'jpg' if number % 3 else 'png'}", exif=exif, quality=90)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _traced_once():
    """Trace equal graphs once: formats, precisions and preprocessing share the trace."""
    onnx = pytest.importorskip("onnx")
    from efficientnetv2.exporters import onnx as module

    trace, traces = module._traced, {}

    def traced(graph):
        own = graph.preprocessing
        weights = {name: weight.numpy().tobytes() for name, weight in graph.state_dict().items()}
        calibrations = [getattr(part, "calibration", None) for part in graph.modules()]
        detector = graph.network.unknown.to_json() if graph.for_engine and graph.network.unknown else None
        own_parts = own.image_size, own.tta, graph.for_engine and (own.mean, own.std)
        parts = weights, repr(graph), *own_parts, graph.network.activation, repr(calibrations), detector
        key = hashlib.blake2b(pickle.dumps(parts)).digest()
        if key not in traces:
            traces[key] = trace(graph).SerializeToString()
        return onnx.ModelProto.FromString(traces[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_traced", traced)
        yield
