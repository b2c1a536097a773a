"""What does not go together: a study with another space, pictures with networks that shrink them to nothing."""

from __future__ import annotations

from efficientnetv2.base.errors import InputError
from efficientnetv2.nas.choices import FIELDS, listed
from efficientnetv2.nas.space import Space


def difference(here: Space, there: Space) -> str | None:
    """Where two spaces part, in words; None if they are equal.

    Args:
        here: what is asked for.
        there: what a study has.
    """
    for field in (name for name in here.backbone.to_json() if name != "stages"):
        mine, other = getattr(here.backbone, field), getattr(there.backbone, field)
        if mine != other:
            return f"the backbone's {field} is {mine} here and {other} there"
    if len(here.stages) != len(there.stages):
        return f"{len(here.stages)} stages here and {len(there.stages)} there"
    for number, (mine, other) in enumerate(zip(here.stages, there.stages, strict=True), 1):
        for field in FIELDS:
            if mine.options[field] != other.options[field]:
                return (
                    f"stage {number}: {field} is one of {listed(mine.options[field])} here and "
                    f"{listed(other.options[field])} there"
                )
    return None if here == there else "the backbone's own stages differ"


def require_room(space: Space, image_px: int) -> None:
    """Refuse pictures that the networks of a space would shrink to nothing.

    Args:
        space: to search.
        image_px: side of the smallest pictures that a trial shows its network.

    Raises:
        InputError: the picture is smaller than the networks' stride.
    """
    stride = space.backbone.stride
    if image_px < stride:
        raise InputError(
            f"pictures of {image_px} px are smaller than the stride of this space's networks, {stride}: their last "
            f"maps would be less than one pixel. Take pictures of {stride} px or more, or a backbone with fewer "
            "strides of 2."
        )


def other_version(begun: str | None, here: str) -> str | None:
    """What to say where a study goes on with another version of the package; None if it is the same.

    Args:
        begun: the version that measured the backbone; None where it was not written down.
        here: this one.
    """
    if begun == here:
        return None
    return (
        f"The study was begun with efficientnetv2 {begun or 'of an earlier version'} and goes on with {here}; steps "
        "are told at the pace of the backbone's as it was then. If some blocks have become faster or slower since and "
        "others not, rewards of before and after do not compare: begin another study for those that do."
    )
