"""Our networks give torchvision's logits on torchvision's weights, with its padding and epsilons."""

from dataclasses import replace

import pytest
import torch
import torchvision

from efficientnetv2.arch.published import architecture
from efficientnetv2.arch.spec import blocks
from efficientnetv2.models.create import create

EVEN_PX, ODD_PX = 64, 75
TOLERANCE = 1e-4


def torchvision_names(table):
    """Our modules with weights -> torchvision's."""
    last = len(table.stages) + 1
    names = {
        "stem.conv": "features.0.0",
        "stem.norm": "features.0.1",
        "head.conv": f"features.{last}.0",
        "head.norm": f"features.{last}.1",
        "classifier": "classifier.1",
    }
    before = {}
    for index, block in enumerate(blocks(table)):
        layer = before[block.stage] = before.get(block.stage, -1) + 1
        ours, theirs = f"blocks.{index}", f"features.{block.stage + 1}.{layer}.block"
        parts = ["expand"] * (block.kind == "mbconv" and block.expands) + ["spatial"]
        parts += ["se"] * (block.se_channels is not None) + ["project"] * block.projects
        for number, part in enumerate(parts):
            pairs = {"reduce": "fc1", "expand": "fc2"} if part == "se" else {"conv": "0", "norm": "1"}
            for here, there in pairs.items():
                names[f"{ours}.{part}.{here}"] = f"{theirs}.{number}.{there}"
    return names


def ours_with(table, theirs):
    """Our network of a table with the weights of torchvision's: a pure renaming, no tensor left over."""
    with torch.device("meta"):
        network = create(table)
    names, weights = torchvision_names(table), theirs.state_dict()
    renamed = {
        key: weights.pop(f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}")
        for key in network.state_dict()
    }
    assert not weights
    network.load_state_dict(renamed, assign=True)
    return network


@pytest.mark.parametrize(
    ("name", "theirs", "epsilon", "wrong_epsilon"),
    [
        ("efficientnetv2_s", "efficientnet_v2_s", 1e-3, 1e-5),
        ("efficientnet_b0", "efficientnet_b0", 1e-5, 1e-3),
    ],
)
def test_logits_are_torchvisions_with_its_padding_and_epsilon_alone(
    name, theirs, epsilon, wrong_epsilon, randomise, distance
):
    right = replace(architecture(name), padding="symmetric", batch_norm_epsilon=epsilon)
    theirs = randomise(torchvision.models.get_model(theirs, weights=None))
    ours = ours_with(right, theirs)
    assert distance(ours, theirs, EVEN_PX) < TOLERANCE
    assert distance(ours, theirs, ODD_PX) < TOLERANCE
    for wrong in (replace(right, padding="same"), replace(right, batch_norm_epsilon=wrong_epsilon)):
        ours = ours_with(wrong, theirs)
        assert distance(ours, theirs, EVEN_PX) > 10 * TOLERANCE
        assert distance(ours, theirs, ODD_PX) > 10 * TOLERANCE
