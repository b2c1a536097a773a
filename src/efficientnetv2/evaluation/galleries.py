"""Pictures that say most about a network: what it confuses, is unsure of, is surprised by; and where it looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.evaluation import seeing
from efficientnetv2.evaluation.explain import overlaid
from efficientnetv2.evaluation.page import thumbnail
from efficientnetv2.evaluation.sections import Part

# Pairs of classes, pictures of each, and of the other galleries: with two copies of each well below 1 MB. Ours.
_PAIRS, _OF_A_PAIR, _OF_OTHERS = 3, 4, 8
_PX, _QUALITY = 144, 75

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Gallery:
    """Some pictures with something in common.

    Args:
        title: what.
        places: in the predictions.
    """

    title: str
    places: Ints


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture as the network saw it.

    Args:
        image: (H, W, 3) uint8; None where it can no longer be read.
        heat: (H, W), what speaks for the class that it was given; None where that is not known.
    """

    image: npt.NDArray[np.uint8] | None
    heat: npt.NDArray[np.float32] | None = None


def chosen(
    labels: Ints, probabilities: npt.NDArray[np.floating], class_names: Sequence[str]
) -> list[Gallery]:
    """Which pictures to show.

    Args:
        labels: (N,) class ids, none missing.
        probabilities: (N, K).
        class_names: K names.
    """
    best = probabilities.argmax(axis=1)
    sure = probabilities.max(axis=1)
    galleries = []
    wrong = np.flatnonzero(best != labels)
    pairs, counts = np.unique(np.stack([labels[wrong], best[wrong]], axis=1), axis=0, return_counts=True)
    for at in np.argsort(-counts, kind="stable")[:_PAIRS]:
        true, called = pairs[at]
        places = wrong[(labels[wrong] == true) & (best[wrong] == called)]
        surest = places[np.argsort(-sure[places], kind="stable")][:_OF_A_PAIR]
        more = f": the most confident of {counts[at]}" if counts[at] > len(surest) else ""
        galleries.append(Gallery(f"{class_names[true]}, predicted as {class_names[called]}{more}", surest))
    galleries.append(Gallery("Least confident", np.argsort(sure, kind="stable")[:_OF_OTHERS]))
    of_label = probabilities[np.arange(len(labels)), labels]
    surprising = np.argsort(of_label, kind="stable")[:_OF_OTHERS]
    galleries.append(Gallery("Least probable labels", surprising))
    return galleries


def shown(
    galleries: Sequence[Gallery],
    labels: Ints,
    probabilities: npt.NDArray[np.floating],
    class_names: Sequence[str],
    paths: Sequence[str],
    seen: Callable[[int], Seen],
    *,
    whose: str = "",
) -> Part:
    """The section.

    Args:
        galleries: as ``chosen`` gives them.
        labels: (N,) class ids.
        probabilities: (N, K).
        class_names: K names.
        paths: (N,) as in the manifest.
        seen: of a place in the predictions.
        whose: a sentence on which network looked, where that is not plain.
    """
    best = probabilities.argmax(axis=1)
    looked = {int(place): seen(int(place)) for one in galleries for place in one.places}
    dim = seeing.hard_to_see(one.image for one in looked.values())
    addresses: dict[int, tuple[str | None, str | None]] = {}

    def picture(place: int) -> dict[str, object]:
        if place not in addresses:
            one = looked[place]
            heat = None if one.image is None or one.heat is None else overlaid(one.image, one.heat)
            plain = seeing.shown(one.image, dim=dim, px=_PX, quality=_QUALITY)
            addresses[place] = (plain, thumbnail(heat, _PX, _QUALITY))
        address, map_address = addresses[place]
        return {
            "address": address,
            "map": map_address,
            "true": class_names[labels[place]],
            "called": class_names[best[place]],
            "right": bool(best[place] == labels[place]),
            "probability": float(probabilities[place, best[place]]),
            "path": paths[place],
        }

    values = [(one.title, [picture(int(place)) for place in one.places]) for one in galleries]
    mapped = any(each["map"] for _, pictures in values for each in pictures)
    told = {
        "galleries": [
            {"title": one.title, "paths": [paths[int(place)] for place in one.places]} for one in galleries
        ]
    }
    return Part(
        "galleries.html.j2",
        {
            "galleries": values,
            "mapped": mapped,
            "stretched": seeing.NOTE if dim else None,
            "whose": whose,
        },
        told,
    )
