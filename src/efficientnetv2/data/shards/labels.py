"""Where the pictures of tars without an index have their labels: all of a set in one place, or they are lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from efficientnetv2.base.errors import count_of, some
from efficientnetv2.data.shards.index import LIST

# Faults of a shard that are told one by one. Ours.
_TOLD = 3

Place = Literal["json", "cls", "nowhere"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What members of one key tell.

    Args:
        key: theirs.
        facts: by the columns that they are of, the label aside.
        in_json: the label that ``.json`` gives, or a list of several; None where it gives none.
        in_cls: the label that ``.cls`` gives, '' if it is empty, None if there is none or it is not asked for.
        has_json: whether there is a ``.json``.
    """

    key: str
    facts: dict[str, Any]
    in_json: Any
    in_cls: str | None
    has_json: bool


@dataclass
class Scanned:
    """What one tar holds.

    Args:
        samples: with a picture each.
        damage: what is wrong with the tar, each in words that follow its name.
        lacks: why pictures of it have no label, in a sentence without its end; '' if all have one.
        unread: it is there, but could not be read to its end; perhaps it can another time.
    """

    samples: list[Sample] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    lacks: str = ""
    unread: bool = False

    @property
    def told(self) -> str:
        """The damage in a sentence without beginning and end, '' if there is none."""
        more = len(self.damage) - _TOLD
        return "; ".join(self.damage[:_TOLD]) + (
            f"; and has {count_of(more, 'more fault')}" if more > 0 else ""
        )


def place_of_labels(tars: Sequence[Scanned]) -> Place:
    """Where the pictures of a set have their labels.

    Anywhere a ``.json`` gives one, that is the place for all: our own tars have the number of the class in ``.cls``
    beside its name in ``.json``, and a picture that lost the one member must not get the other's for a label.
    """
    samples = [sample for tar in tars for sample in tar.samples]
    if any(sample.in_json is not None for sample in samples):
        return "json"
    return "cls" if any(sample.in_cls for sample in samples) else "nowhere"


def labelled(tar: Scanned, place: Place, label_field: str) -> list[dict[str, Any]]:
    """The facts of a tar's pictures, the label among them; None where it has none, or a list of labels instead.

    In a damaged tar a picture without its label has lost it, and is left out; ``tar.damage`` then says so. In a whole
    one it never had one, which ``tar.lacks`` says.

    Args:
        tar: as it was read.
        place: of the labels of the set.
        label_field: of ``.json``, that gives the label.
    """
    rows, without = [], list[Sample]()
    for sample in tar.samples:
        label = sample.in_json if place == "json" else sample.in_cls or None
        if label is None:
            without.append(sample)
        if label is not None or not tar.damage or place == "nowhere":
            rows.append(sample.facts | _told(label))
    if without:
        why = _why(without[0], place, label_field)
        if tar.damage and place != "nowhere":
            tar.damage.insert(0, f"has lost the labels of {some((one.key for one in without), 3)} ({why})")
        else:
            tar.lacks = why + (f" ({len(without)} such pictures)" if len(without) > 1 else "")
    return rows


def _told(label: Any) -> dict[str, str | None]:
    """A label as columns of an index have it."""
    if isinstance(label, list):
        return {"label": None, LIST: json.dumps(label)}
    return {"label": None if label is None else str(label)}


def _why(sample: Sample, place: Place, label_field: str) -> str:
    """Why a picture has no label."""
    if place == "cls":
        what = f"{sample.key}.cls is empty" if sample.in_cls == "" else f"there is no {sample.key}.cls"
    elif sample.has_json:
        what = f"{sample.key}.json has no field '{label_field}'"
    else:
        what = f"there is no {sample.key}.json"
    return what if place == "nowhere" else f"{what}, where the others have theirs"
