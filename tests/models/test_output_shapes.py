"""Memory of activations, strides and shapes, computed without values."""

import pytest
import torch
from tests.messages import mentioning
from torch import nn

from efficientnetv2.models.adapt import freeze
from efficientnetv2.models.factory import create
from efficientnetv2.models.output_shapes import activation_bytes, infer_shapes, stride
from efficientnetv2.utils.errors import InputError


def test_activation_memory_of_a_small_model_by_hand():
    """Per image: the image 3*8*8, the output of ReLU 4*8*8, and 4 pooled values, of 4 bytes each."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert activation_bytes(create(module), 8) == 4 * (3 * 64 + 4 * 64 + 4)


def test_frozen_stages_store_no_activations():
    """The first four stages have almost half of the memory."""
    network = create("efficientnetv2_b0")
    unfrozen = activation_bytes(network, 224)
    freeze(network, stages=4)
    assert activation_bytes(network, 224) < 0.6 * unfrozen


def test_model_is_unchanged():
    network = create("timm:resnet10t").eval()
    network.module.layer1.train()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert activation_bytes(network, 64) > 0
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_size_that_the_model_does_not_support_is_rejected():
    with pytest.raises(InputError, match=mentioning("3", "100")):
        activation_bytes(create("timm:vit_tiny_patch16_224"), 100)


@pytest.mark.parametrize("fault", [IndexError("index 2 is out of bounds"), TypeError("no such part")])
def test_error_of_a_module_becomes_a_message(fault):
    """As in a module that selects its channels by number."""

    class Picky(nn.Conv2d):
        def forward(self, x):
            if x.shape[1] != 3:
                raise fault
            return super().forward(x)

    with pytest.raises(InputError, match=rf"Picky cannot take 1 x 16 x 16 px \({fault}\)"):
        infer_shapes(Picky(3, 4, 1), in_channels=1, image_size=16)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 32), ("resnet50", 32), ("efficientnet_b0", 32), ("densenet121", 32), ("inception_v3", 32),
        ("googlenet", 32), ("vgg11_bn", 32), ("convnext_tiny", 32), ("swin_t", 32), ("mobilenet_v3_small", 32),
        ("vit_b_32", None),
    ],
)  # fmt: skip
def test_stride_is_that_of_the_smallest_maps_that_scale_with_the_image(name, side):
    """Published strides of torchvision's models. A transformer of a fixed size has none."""
    models = pytest.importorskip("torchvision.models")
    quick = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    with torch.device("meta"):
        network = create(models.get_model(name, weights=None, num_classes=2, **quick))
    assert stride(network) == side
    assert not any(module._forward_hooks for module in network.modules())


def test_stride_of_this_package_equals_the_architecture():
    with torch.device("meta"):
        network = create("efficientnetv2_b0", num_classes=2)
    assert stride(network) == network.architecture.stride == 32
