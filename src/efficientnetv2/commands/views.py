"""``--views``: how each picture is looked at, and what other views than the model's own bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

from efficientnetv2.base.errors import InputError, did_you_mean
from efficientnetv2.base.preprocessing import Preprocessing, Views
from efficientnetv2.commands.findings import by_picture
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.answered import Over, over
from efficientnetv2.evaluation.hanging import Whole
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models.ensemble import leave_temperature_out
from efficientnetv2.models.network import Network

_VIEWS: tuple[Views, ...] = get_args(Views)


def views_asked(word: str | None, own: Views) -> Views:
    """The views of ``--views``.

    Args:
        word: as given; None takes the model's own.
        own: of the model.

    Raises:
        InputError: there are no such views.
    """
    if word is None:
        return own
    found = next((one for one in _VIEWS if one == word), None)
    if found is None:
        raise InputError(
            f"--views is '{word}', but is one of {', '.join(_VIEWS)}{did_you_mean(word, _VIEWS)}"
        )
    return found


def for_own_views(network: Network, looking: Preprocessing, say: Callable[[str], object]) -> None:
    """Leave a temperature out that was fitted to pictures looked at otherwise, and say so.

    Args:
        network: as loaded; changed in place where it has one.
        looking: how the pictures are looked at.
        say: gets a line if one is left out.
    """
    own = network.preprocessing
    if (looking.views, looking.image_px) == (own.views, own.image_px) or not leave_temperature_out(network):
        return
    px, views = looking.image_px, looking.views
    say(
        f"The temperature was fitted at {own.image_px} px with views '{own.views}', and the pictures are looked at at "
        f"{px} px with views '{views}': it is left out. To fit another to a single model: effnetv2 convert MODEL "
        f"OUT.safetensors --image-px {px} --views {views}, and effnetv2 evaluate OUT.safetensors DATA --calibrate "
        "NEW.safetensors"
    )


def over_own(
    predictions: Predictions,
    own: Predictions | None,
    manifest: Manifest,
    class_names: Sequence[str],
    whole: Whole | None = None,
) -> Over | None:
    """What answers with other views have over those with the model's own, picture by picture.

    Args:
        predictions: with other views, of labelled pictures of one label each.
        own: of the same network with its own; None where they were not looked at so.
        manifest: of both.
        class_names: of the network.
        whole: what hangs together among the pictures with other views; None where nothing does.
    """
    if own is None:
        return None
    mine, theirs = (by_picture(one, manifest, class_names) for one in (predictions, own))
    clusters = None if whole is None else whole.by_path(list(mine.index))
    return over(mine, theirs, clusters=clusters)
