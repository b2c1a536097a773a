"""A network as a backbone: it answers with a list of maps, for detectors and segmenters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.memory_profile import infer_shapes
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.utils.errors import InputError

_EVEN = 64


class Backbone(nn.Module):
    """The maps of a network, from large to small, without what comes after the last.

    ``torchvision.ops.FeaturePyramidNetwork(backbone.channels, 256)`` takes them as an ordered dict.

    Args:
        network: used up: its classifier is taken off, and of ours the head's convolution too. The backbone is in its
            mode: that of evaluation, where the weights were loaded.
        out_strides: sides of the picture over sides of the maps to give; None is all that there are: 2, 4, 8, 16
            and 32 of every published network.

    Attributes:
        strides: of the maps.
        channels: of the maps.
        preprocessing: of the network.

    Raises:
        InputError: the network has no map of such a stride, or gives none away.
    """

    def __init__(self, network: Network, out_strides: Sequence[int] | None = None) -> None:
        super().__init__()
        self.training = network.training
        self.preprocessing = network.preprocessing
        if isinstance(network, WrappedModel) and len(network.classifier_names) > 1:
            # They can't be swapped as one, but none of them is called here.
            for name in network.classifier_names:
                network.module.set_submodule(name, nn.Identity())
        else:
            adapt(network, num_classes=0)
        if isinstance(network, EfficientNet):
            network.head = nn.Identity()
            network.frozen = tuple(name for name in network.frozen if not name.startswith("head."))
        self.network = network
        self._places: tuple[int, ...] | None = None
        there, widths = _strides_and_channels(self, network)
        wanted = there if out_strides is None else list(out_strides)
        if not wanted or not set(wanted) <= set(there):
            raise InputError(
                f"out_strides are {wanted}, but this network has maps of the strides {there}. Choose from those."
            )
        self._places = tuple(there.index(stride) for stride in wanted)
        self.strides = tuple(wanted)
        self.channels = tuple(widths[place] for place in self._places)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, channels[i], H / strides[i], W / strides[i]) each, sides rounded up.
        """
        maps = self.network.features(x)
        return maps if self._places is None else [maps[place] for place in self._places]


def _strides_and_channels(backbone: Backbone, network: Network) -> tuple[list[int], list[int]]:
    """Of every map that the network gives."""
    px = network.preprocessing.image_px
    training = backbone.training
    backbone.eval()
    try:
        # Sides that halve without a remainder tell the strides exactly; but a transformer takes its own alone.
        even_px = -(-px // _EVEN) * _EVEN
        maps: list[Tensor] = infer_shapes(backbone, in_channels=network.in_channels, image_px=even_px)
        px = even_px
    except InputError:
        maps = infer_shapes(backbone, in_channels=network.in_channels, image_px=px)
    finally:
        backbone.train(training)
    return [round(px / m.shape[-1]) for m in maps], [m.shape[1] for m in maps]
