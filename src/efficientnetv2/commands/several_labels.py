"""How a run learns pictures of several labels: what does not go with that, and what is said of it."""

from __future__ import annotations

from efficientnetv2.base.errors import InputError
from efficientnetv2.commands.words import Words, field_of
from efficientnetv2.training.recipe import Recipe

_FIELD = "several_labels"


def refuse_unlike(recipe: Recipe, words: Words, separator: str | None) -> None:
    """Refuse what would be of no effect on these pictures.

    Args:
        recipe: of the run.
        words: that asked for it.
        separator: of the labels of a picture; None where each has one.

    Raises:
        InputError: the words say how several labels are learnt, but each picture has one; or fields that are for
            classes which exclude each other, of a recipe that answers each class by itself.
    """
    said = [setting for setting in words.settings if field_of(setting) == _FIELD]
    if said and separator is None:
        raise InputError(
            f"--set {said[-1]} says how several labels of a picture are learnt, but each of these has one. Leave it "
            "out, or say what stands between labels, as --label-separator ';'."
        )
    if recipe.answer(separator) == "softmax":
        return
    for name in ("class_weights", "logit_adjustment"):
        value = getattr(recipe, name)
        if value is not None:
            raise InputError(
                f"{name} is {value}, which weighs classes against each other, but with {_FIELD} sigmoid each is "
                f"answered by itself: set {name} to null, or {_FIELD} to softmax. Rare labels are drawn more often by "
                "--set balance=sqrt."
            )


def learnt_so(recipe: Recipe, separator: str | None) -> list[str]:
    """How several labels are learnt, in a sentence; none where pictures have one.

    Args:
        recipe: of the run.
        separator: of the labels of a picture; None where each has one.
    """
    if separator is None:
        return []
    if recipe.answer(separator) == "sigmoid":
        return [
            "Several labels: each class is a yes or no of its own (sigmoid), given from a probability of 0.5 on; "
            f"--set {_FIELD}=softmax has labels share 1."
        ]
    return [
        "Several labels: those of a picture share a probability of 1 (softmax); "
        f"--set {_FIELD}=sigmoid answers each class by itself."
    ]
