"""``evaluate --sizes``: the same pictures answered at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from efficientnetv2.base.errors import InputError
from efficientnetv2.commands.screen import Screen
from efficientnetv2.evaluation.sizes import SizeCurve
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.inference.sizes import size_points
from efficientnetv2.models.network import Network
from efficientnetv2.progressive import IMAGE_PX, Progressive

# The family halves a picture five times; the most is what a recipe takes.
_LEAST_PX, _MOST_PX = 32, IMAGE_PX[1]
# Of one command. Each takes a pass over the pictures. Ours.
_MOST_SIZES = 32


def one_size(px: int, option: str) -> int:
    """A size that pictures can be seen at.

    Raises:
        InputError: it is too small or too large.
    """
    if not _LEAST_PX <= px <= _MOST_PX:
        raise InputError(
            f"{option} {px}: pictures are seen at no less than {_LEAST_PX} px, the network's stride, and no more than "
            f"{_MOST_PX}. Give a size between."
        )
    return px


def several_sizes(words: str) -> tuple[int, ...]:
    """The sizes of ``--sizes 96,128,160``, growing.

    Raises:
        InputError: no numbers, too many, or one that is too small or too large.
    """
    try:
        given = {int(word) for word in words.split(",")}
    except ValueError as error:
        raise InputError(
            f"--sizes is '{words}', but is whole numbers of pixels with commas between, as 96,128,160."
        ) from error
    if len(given) > _MOST_SIZES:
        raise InputError(
            f"--sizes names {len(given)} sizes, but at most {_MOST_SIZES}: each is a pass over all pictures."
        )
    return tuple(sorted(one_size(px, "--sizes") for px in given))


def size_curve(
    answers: Mapping[int, tuple[Predictions, float]],
    sizes: Sequence[int],
    network: Network,
    *,
    may_choose: bool,
) -> SizeCurve:
    """The figures at each size.

    Args:
        answers: by size, with the seconds that they took.
        sizes: to look at.
        network: that answers.
        may_choose: whether these pictures trained the network, or chose it before.
    """
    points = size_points(answers.__getitem__, sizes, network.class_names)
    return SizeCurve(
        points, network.preprocessing.image_px, _trained_px(network), "may choose" if may_choose else "shown"
    )


def tell_sizes(curve: SizeCurve, screen: Screen) -> None:
    """The curve as a table, and what it may be used for."""
    rows = [
        [str(point.image_px), f"{point.top1:.3f}", f"{point.low:.3f}", f"{point.high:.3f}",
         f"{point.macro_f1:.3f}", f"{point.images_per_s:.0f}"]
        for point in curve.points
    ]  # fmt: skip
    screen.table("By size", ["px", "top-1", "low", "high", "macro-F1", "images/s"], rows)
    screen.say(curve.advice)


def _trained_px(network: Network) -> int | None:
    """The size of the last training step, where the model file says it."""
    try:
        plan = TypeAdapter(Progressive).validate_python(network.recipe.get("progressive"))
    except ValidationError:  # of another project, or without a recipe
        return None
    return plan.last.image_px
