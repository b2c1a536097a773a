"""What training runs need, checked before the first of them: other libraries, standard sets, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from efficientnetv2.data import builtin_datasets
from efficientnetv2.models import hub, pretrained
from efficientnetv2.models.library_models import is_library_model
from efficientnetv2.training.initial_weights import load_weights
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_optional, import_torchvision


def refuse_missing(runs: Iterable[tuple[object, str, str | None]]) -> None:
    """Check what runs need, each given by its model, data and weights; downloads published weights into the cache.

    Raises:
        InputError: something is missing; names all of it.
    """
    needs: dict[tuple[Callable[[str], object], str], None] = {}
    for model, data, weights in runs:
        if isinstance(model, str) and is_library_model(model):
            needs[_library, model] = None
        if data in builtin_datasets.BUILTIN_NAMES and not Path(data).exists():
            needs[builtin_datasets.read_builtin, data] = None
        if weights is not None and weights not in ("none", "auto"):
            needs[_weights, weights] = None
    missing: dict[str, None] = {}
    for require, name in needs:
        try:
            require(name)
        except InputError as error:
            missing[str(error)] = None
    if missing:
        raise InputError(f"Before the first run: {' '.join(missing)}")


def _library(model: str) -> None:
    if model.startswith("timm:"):
        import_optional("timm", "timm", f"the network '{model}'")
    else:
        import_torchvision("models")


def _weights(weights: str) -> None:
    if weights in pretrained.weight_names():
        hub.fetch(weights)
    elif not Path(weights).exists():
        load_weights(weights)
