"""A search of seconds: 48 images of three colors at 32 px, 128 architectures of some thousand parameters."""

from __future__ import annotations

import json
from pathlib import Path

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import StageChoices

# fmt: off
BACKBONE = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3),            1,       8,      1),
        Stage(fused_mbconv(expand=4, kernel=3),            2,      16,      1),
        Stage(mbconv(expand=4, kernel=3, se=0.25),  2,      24,      1),
    ),
    head_channels=64,
)
# fmt: on
SPACE = Space(
    BACKBONE,
    (
        StageChoices(channels=(8,), layers=(1,), kinds=("fused",), kernels=(3,), expands=(1,)),
        StageChoices(channels=(16,), layers=(1, 2), kernels=(3,), expands=(1, 4)),
        StageChoices(channels=(24,), layers=(1, 2), kernels=(3, 5), expands=(1, 4)),
    ),
)


def words(folder: Path, pictures: Path, *more: object, study: str = "study") -> list[object]:
    """Arguments of ``effnetv2`` for a study of the tiny space with one epoch, followed by ``more``."""
    space = folder / "space.json"
    if not space.exists():
        space.write_text(json.dumps(SPACE.to_json()))
    return [
        "search", "run", folder / study, "--data", pictures, "--space", space, "--epochs", 1, "--image-size", 32,
        "--batch-size", 8, "--workers", 0, "--device", "cpu", "--set", "minival=0.25", "--wait", "0.5", *more,
    ]  # fmt: skip
