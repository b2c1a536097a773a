"""A word that names no network here may name one elsewhere: what to say then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

from efficientnetv2.arch.published import NAMES
from efficientnetv2.base.errors import InputError, did_you_mean
from efficientnetv2.base.extras import needed, of_torchvision
from efficientnetv2.models import pretrained
from efficientnetv2.models.interop import keras_layers, torchvision
from efficientnetv2.models.interop import timm as timm_names


def unknown(model: str) -> InputError:
    """The error for a word that names no network: by which words others have it, and ours of that name.

    Args:
        model: without "timm:" and the like; perhaps with a tag.
    """
    name, dot, tag = model.partition(".")
    meant = _ours(name)
    if meant is not None and f"{meant}.{tag}" in pretrained.names():
        meant += dot + tag
    there = [f"'{word}'" for word in [*_libraries(name, tag)] or _libraries(name, "")]
    if meant is not None:
        also = f" The one of the library itself: {' or '.join(there)}." if there else ""
        return InputError(f"there is no network '{model}'; did you mean '{meant}'?{also}")
    if there:
        return InputError(
            f"there is no network '{model}' of ours, but others have it: {' or '.join(there)}. Say it so, with the "
            "library before it."
        )
    return InputError(
        f"there is no network '{model}'{did_you_mean(model, NAMES)} Known: {', '.join(NAMES)}. Networks of other "
        "libraries: timm:NAME, torchvision:NAME."
    )


def _ours(name: str) -> str | None:
    """The published network that another library means by a name."""
    for published_name in (lambda word: timm_names.published_name(word)[0], torchvision.published_name):
        try:
            return published_name(name)
        except InputError:
            continue
    try:
        return keras_layers.published_name(name)
    except InputError:
        return None


def _libraries(name: str, tag: str) -> Iterator[str]:
    """The words for the networks of that name, with weights of that tag if one is given."""
    word = f"{name}.{tag}" if tag else name
    timm = _at_hand(lambda: needed("timm", "timm", f"the network 'timm:{name}'"))
    if timm and timm.is_model(name) and (not tag or word in timm.list_pretrained(f"{name}.*")):
        yield f"timm:{word}"
    models = _at_hand(lambda: of_torchvision("models"))
    if (
        models
        and name in models.list_models(module=models)
        and (not tag or tag in models.get_model_weights(name).__members__)
    ):
        yield f"torchvision:{word}"


def _at_hand(imported: Callable[[], ModuleType]) -> ModuleType | None:
    """A library; None of one that is not installed or can't be imported, for a word may have been meant otherwise."""
    try:
        return imported()
    except InputError:
        return None
