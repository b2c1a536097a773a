"""Number of parameters and multiply-adds against published numbers and PyTorch."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from efficientnetv2.architectures.flops import Cost, count_flops
from efficientnetv2.architectures.registry import NAMES, get_architecture, get_model_info
from efficientnetv2.architectures.spec import Architecture, Stage, blocks, fused_mbconv, mbconv
from efficientnetv2.models.factory import create
from efficientnetv2.utils.errors import InputError

# Trainable parameters with 1,000 classes, and multiply-adds of all convolutions and linear layers at the
# evaluation size, of the released models.
GOLDEN = {
    #                     parameters, eval px, multiply-adds
    "efficientnetv2_b0": (7139704, 224, 718086176),
    "efficientnetv2_b1": (8141052, 240, 1196819360),
    "efficientnetv2_b2": (10096086, 260, 1697542832),
    "efficientnetv2_b3": (14358406, 300, 3011458816),
    "efficientnetv2_s": (21458488, 384, 8365617152),
    "efficientnetv2_m": (54139356, 480, 24582460384),
    "efficientnetv2_l": (118515272, 480, 56079699008),
    "efficientnetv2_xl": (208119808, 512, 93353451520),
    "efficientnet_b0": (5288548, 224, 385814752),
    "efficientnet_b1": (7794184, 240, 686802832),
    "efficientnet_b2": (9109994, 260, 993561872),
    "efficientnet_b3": (12233232, 300, 1827141392),
    "efficientnet_b4": (19341616, 380, 4393771024),
    "efficientnet_b5": (30389784, 456, 10266384752),
    "efficientnet_b6": (43040704, 528, 19067593536),
    "efficientnet_b7": (66347960, 600, 37745884192),
    "efficientnet_b8": (87413142, 672, 62597461568),
    "efficientnet_l2": (480309308, 800, 475703653280),
}

EVERY_KIND = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 2),
        Stage(fused_mbconv(expand=1, kernel=3, se=0.5), 2, 16, 2),
        Stage(fused_mbconv(expand=2, kernel=3), 2, 24, 2),
        Stage(mbconv(expand=1, kernel=5, se=0.25), 1, 24, 2),
        Stage(mbconv(expand=3, kernel=3, se=None), 2, 32, 2),
    ),
    head_channels=48,
)


def test_golden_table_has_every_architecture():
    assert tuple(GOLDEN) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_counts_equal_published_counts(name):
    parameters, eval_image_size, multiply_adds = GOLDEN[name]
    total = count_flops(get_architecture(name), image_size=eval_image_size).total
    assert get_model_info(name).eval_image_size == eval_image_size
    assert (total.parameters, total.multiply_adds) == (parameters, multiply_adds)


@pytest.mark.parametrize("name", NAMES)
def test_counts_equal_those_of_the_module(name):
    """Parameters, and multiply-adds from hooks on each convolution and linear layer, per block."""
    eval_image_size = GOLDEN[name][1]
    counted = count_flops(get_architecture(name), image_size=eval_image_size)
    with torch.device("meta"):
        network = create(name).eval()
        parts = {"stem": network.stem, "head": network.head, "classifier": network.classifier}
        parts |= {f"blocks.{i}": block for i, block in enumerate(network.blocks)}
        seen = dict.fromkeys(parts, 0)
        for part, module in parts.items():
            watch(module, seen, part)
        network(torch.empty(1, 3, eval_image_size, eval_image_size))
    expected = {"stem": counted.stem, "head": counted.head, "classifier": counted.classifier}
    expected |= {f"blocks.{i}": row for i, row in enumerate(counted.blocks)}
    assert seen == {part: row.multiply_adds for part, row in expected.items()}
    assert {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()} == {
        part: row.parameters for part, row in expected.items()
    }


def watch(module, seen, part):
    def add(layer, _inputs, out):
        seen[part] += layer.weight.numel() * out[0, 0].numel()

    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add)


def test_one_block_by_hand():
    """A fused block 8 to 8 at 4 px: 3*3*8*8 weights, 16 of batch norm; 576 * 16 multiply-adds."""
    one = Architecture(8, (Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1),), 8)
    assert count_flops(one, image_size=8).blocks == (Cost(592, 9216),)


def test_counts_without_a_classifier_and_with_other_channels():
    s = get_architecture("efficientnetv2_s")
    full = count_flops(s, image_size=64)
    assert count_flops(s, image_size=64, num_classes=0).total.parameters == full.total.parameters - 1281 * 1000
    assert count_flops(s, image_size=64, in_channels=13).stem.parameters == full.stem.parameters + 10 * 9 * 24
    assert len(full.blocks) == len(blocks(s)) == 40


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"in_channels": 0}, {"num_classes": -1}])
def test_invalid_sizes_are_rejected(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        count_flops(EVERY_KIND, **{"image_size": 32, **wrong})


def test_counting_does_not_import_torch():
    program = (
        "import sys; from efficientnetv2.architectures.flops import count_flops; "
        "from efficientnetv2.architectures.registry import get_architecture; "
        "count_flops(get_architecture('efficientnetv2_s'), image_size=300); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_avg_and_center_pooling_doubles_the_classifier():
    wide = replace(EVERY_KIND, global_pool="avg+center")
    counted = count_flops(wide, image_size=64, num_classes=10).total.parameters
    assert counted == sum(weight.numel() for weight in create(wide, num_classes=10).parameters())
    assert counted - count_flops(EVERY_KIND, image_size=64, num_classes=10).total.parameters == 48 * 10
