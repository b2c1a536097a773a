"""Models of timm and torchvision by name: "timm:resnet50", "torchvision:resnet50.IMAGENET1K_V2"."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import nn

from efficientnetv2.models.conversion.timm_config import stated_preprocessing
from efficientnetv2.models.conversion.torchvision_config import preprocessing_of
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.utils.errors import InputError, did_you_mean, error_summary
from efficientnetv2.utils.optional_deps import import_optional, import_torchvision

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

LIBRARIES = ("timm", "torchvision")

# timm leaves stochastic depth out of models built at rate 0, and then no schedule can raise it. So models are built
# with this rate, which is then set to 0; only the proportions of the blocks stay. Ours.
_BUILD_DROP_PATH = 0.1
# Models with auxiliary heads. torchvision warns unless the draw of their weights is given.
_WITH_AUX_HEADS = ("googlenet", "inception_v3")
# torchvision's models that are built for one input size, and their size without weights.
_ONE_SIZE_PREFIX, _DEFAULT_SIZE = "vit_", "224"


def is_library_model(model: str) -> bool:
    """Whether a name has a library before it: "timm:resnet50"."""
    return model.partition(":")[0] in LIBRARIES and ":" in model


def build_library_model(model: str, *, num_classes: int | None = None, in_channels: int | None = None) -> WrappedModel:
    """A model of timm or torchvision: "timm:NAME" or "torchvision:NAME", with a tag for pretrained weights.

    torchvision's vision transformers have one input size: that of the tag, or the one after the name
    ("torchvision:vit_b_16@384"), 224 px by default. Classes and channels are followed as far as the library can build
    them; ``adapt`` does the rest. ``num_classes=0`` for a model without a classifier builds one with a single class, so
    that it is known which layer to remove. Raises InputError for an unknown name, tag or size, a library that is not
    installed, and weights that cannot be downloaded.
    """
    library, _, word = model.partition(":")
    name, _, tag = word.partition(".")
    if library == "timm":
        return _build_timm(name, tag, num_classes=num_classes, in_channels=in_channels)
    return _build_torchvision(name, tag, num_classes=num_classes)


def classifier_count(model: str) -> int:
    """Number of classifiers stated for a library's weights: 0 if they were trained to embed, 1 if unknown."""
    library, _, word = model.partition(":")
    if library != "timm":
        return 1
    timm = import_optional("timm", "timm", f"the model '{model}'")
    try:
        config = timm.get_pretrained_cfg(word)
    except RuntimeError:  # no such tag, which building the model reports
        return 1
    if config is None:
        return 1
    if not config.num_classes:
        return 0
    return len(config.classifier) if isinstance(config.classifier, tuple | list) else 1


def _build_timm(name: str, tag: str, *, num_classes: int | None, in_channels: int | None) -> WrappedModel:
    timm = import_optional("timm", "timm", f"the model 'timm:{name}'")
    from efficientnetv2.models.hub import timm_file  # imports an HTTP client

    if not timm.is_model(name):
        raise InputError(f"timm has no model '{name}'{did_you_mean(name, timm.list_models())}")
    full_name = f"{name}.{tag}" if tag else name
    if tag and full_name not in (tags := timm.list_pretrained(f"{name}.*")):
        raise InputError(
            f"timm has no weights '{full_name}'{did_you_mean(full_name, tags)} Known: {', '.join(tags) or 'none'}."
        )
    classifiers = classifier_count(f"timm:{full_name}")
    if num_classes == 0 and classifiers == 0:
        num_classes = 1
    # Weights with no or several classifiers are loaded as published, and timm replaces the classifier afterwards.
    reset_to = num_classes if tag and classifiers != 1 else None
    options: dict[str, Any] = {"pretrained": bool(tag)}
    if num_classes and not reset_to:
        options["num_classes"] = num_classes
    if in_channels:
        options["in_chans"] = in_channels
    path = timm_file(timm.get_pretrained_cfg(full_name).to_dict(), full_name) if tag else None
    if path:  # timm's repositories have timm's tensor names, whatever format the weights were published in
        options["pretrained_cfg_overlay"] = {"file": str(path), "custom_load": False}
    with _reading(f"timm:{full_name}", path):
        try:
            module = timm.create_model(full_name, **options, drop_path_rate=_BUILD_DROP_PATH)
        except TypeError:  # a model without stochastic depth
            module = timm.create_model(full_name, **options)
    if reset_to:
        module.reset_classifier(reset_to)
    apply_regularization(module, drop_path=0.0)
    config = module.pretrained_cfg
    preprocessing = stated_preprocessing(config, Path(f"timm:{name}"))[0] if config.get("mean") else None
    return WrappedModel(module, source=f"timm:{name}", preprocessing=preprocessing)


@contextmanager
def _reading(title: str, path: Path | None) -> Iterator[None]:
    """Raise an InputError that names the file (None: the library finds it) if a library cannot read its weights."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        if path is not None:
            raise InputError(
                f"{path} does not hold the weights of '{title}' ({error_summary(error)}). Remove it, and try again."
            ) from error
        if isinstance(error, OSError):
            raise InputError(
                f"the weights of '{title}' cannot be downloaded ({error_summary(error)}). Try again with a network, or "
                "copy the library's cache here."
            ) from error
        raise


def _build_torchvision(sized: str, tag: str, *, num_classes: int | None) -> WrappedModel:
    """A torchvision model by its name, with the input size of a vision transformer ("vit_b_16@384")."""
    models = import_torchvision("models")
    from efficientnetv2.models.hub import torchvision_file  # imports an HTTP client

    name, _, size = sized.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(f"torchvision has no model '{name}'{did_you_mean(name, known)}")
    every = models.get_model_weights(name)
    if tag and tag not in every.__members__:
        raise InputError(
            f"torchvision has no weights '{name}.{tag}'{did_you_mean(tag, every.__members__)} "
            f"Known: {', '.join(every.__members__)}."
        )
    weights = every[tag] if tag else None
    image_size, documented = _input_size(name, size, weights, every)
    options: dict[str, Any] = {}
    if not weights:  # pretrained weights keep their classes
        options |= {"num_classes": num_classes} if num_classes else {}
        options |= {"init_weights": True} if name in _WITH_AUX_HEADS else {}
        options |= {"image_size": int(image_size)} if image_size else {}
    path = torchvision_file(weights.url, f"{name}.{tag}") if weights else None
    with _reading(f"torchvision:{name}.{tag}", path):  # torchvision reads the file from its cache
        module = models.get_model(name, weights=weights, **options)
    if name in _WITH_AUX_HEADS:
        # Make fresh models equal to pretrained ones, so that a file of weights shows what to build: no auxiliary heads
        # (our losses read the classifier only), and the input is scaled once more.
        for head in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, head):
                setattr(module, head, None)
        module.aux_logits, module.transform_input = False, True
    source = name if image_size in ("", _DEFAULT_SIZE) else f"{name}@{image_size}"
    network = WrappedModel(module, source=f"torchvision:{source}", preprocessing=preprocessing_of(documented))
    classifier = module.get_submodule(network.classifier_name)
    if classifier.bias is None:  # maxvit_t: so that a new classifier has the same tensors
        classifier.bias = nn.Parameter(classifier.weight.new_zeros(classifier.out_features))
    return network


def _input_size(name: str, size: str, weights: WeightsEnum | None, every: type[WeightsEnum]) -> tuple[str, WeightsEnum]:
    """The input size that a model is built for ("" for any), and weights documented for that size."""
    sizes: dict[str, WeightsEnum] = {}
    if name.startswith(_ONE_SIZE_PREFIX):
        for entry in every:
            sizes.setdefault(str(entry.meta["min_size"][0]), entry)
    if size and (weights or size not in sizes):
        fix = f"Leave '@{size}' out."
        if sizes and not weights:
            fix = f"Known: {', '.join(f'{name}@{known}' for known in sizes)}."
        raise InputError(f"torchvision has no model '{name}@{size}' of this size. {fix}")
    if weights:
        return (str(weights.meta["min_size"][0]) if sizes else ""), weights
    size = (size or _DEFAULT_SIZE) if sizes else ""
    return size, sizes.get(size, every["DEFAULT"])
