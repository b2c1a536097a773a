"""A model as a backbone: it returns a list of feature maps, for detectors and segmenters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.memory_profile import infer_shapes
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.utils.errors import InputError

_LARGEST_STRIDE = 64


class Backbone(nn.Module):
    """The feature maps of a model, largest first, without the layers after the last map.

    ``torchvision.ops.FeaturePyramidNetwork(backbone.channels, 256)`` takes them as an ordered dict.

    Args:
        network: Consumed: its classifier is removed, and the head convolution of an ``EfficientNet`` too.
        out_strides: Strides of the maps to return; None is all: 2, 4, 8, 16 and 32 in every published model.

    Attributes:
        strides: Of the maps.
        channels: Of the maps.
        preprocessing: Of the model.

    Raises:
        InputError: The model has no map of such a stride, or gives no maps.
    """

    def __init__(self, network: Network, out_strides: Sequence[int] | None = None) -> None:
        super().__init__()
        self.training = network.training
        self.preprocessing = network.preprocessing
        if isinstance(network, WrappedModel) and len(network.classifier_names) > 1:
            # ``adapt`` refuses to remove several classifiers, but none of them is called here.
            for name in network.classifier_names:
                network.module.set_submodule(name, nn.Identity())
        else:
            adapt(network, num_classes=0)
        if isinstance(network, EfficientNet):
            network.head = nn.Identity()
            network.frozen = tuple(name for name in network.frozen if not name.startswith("head."))
        self.network = network
        self._indices: tuple[int, ...] | None = None
        strides, channels = self._strides_and_channels()
        wanted = strides if out_strides is None else list(out_strides)
        if not wanted or not set(wanted) <= set(strides):
            raise InputError(
                f"out_strides are {wanted}, but this network has maps of the strides {strides}. Choose from those."
            )
        self._indices = tuple(strides.index(stride) for stride in wanted)
        self.strides = tuple(wanted)
        self.channels = tuple(channels[index] for index in self._indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) float, normalized, to (N, channels[i], H / strides[i], W / strides[i]), rounded up."""
        maps = self.network.features(x)
        return maps if self._indices is None else [maps[index] for index in self._indices]

    def _strides_and_channels(self) -> tuple[list[int], list[int]]:
        """Of every map that the model gives."""
        px, training = self.preprocessing.image_size, self.training
        self.eval()
        try:
            # Sides that halve without a remainder give exact strides, but a transformer takes only its own size.
            even_px = -(-px // _LARGEST_STRIDE) * _LARGEST_STRIDE
            maps: list[Tensor] = infer_shapes(self, in_channels=self.network.in_channels, image_size=even_px)
            px = even_px
        except InputError:
            maps = infer_shapes(self, in_channels=self.network.in_channels, image_size=px)
        finally:
            self.train(training)
        return [round(px / m.shape[-1]) for m in maps], [m.shape[1] for m in maps]
