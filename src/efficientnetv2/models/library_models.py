"""Models of timm and torchvision by name: "timm:resnet50", "torchvision:resnet50.IMAGENET1K_V2"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efficientnetv2.models.conversion.timm import stated_preprocessing
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.models.torchvision_wrappers import build_torchvision
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.optional_deps import import_optional

LIBRARIES = ("timm", "torchvision")

# timm leaves stochastic depth out of models built at rate 0, and then no schedule can raise it. So models are built
# with this rate, which is then set to 0; only the proportions of the blocks stay. Ours.
_BUILD_DROP_PATH = 0.1


def is_library_model(model: str) -> bool:
    """Whether a name has a library before it: "timm:resnet50"."""
    return model.partition(":")[0] in LIBRARIES and ":" in model


def build_library_model(
    model: str, *, num_classes: int | None = None, in_channels: int | None = None
) -> WrappedModel:
    """A model of timm or torchvision.

    Args:
        model: "timm:NAME" or "torchvision:NAME" for fresh weights; with a tag ("timm:resnet50.a1_in1k") for pretrained
            ones. torchvision's vision transformers have one input size: that of the tag, or the one after the name
            ("torchvision:vit_b_16@384"), 224 px by default.
        num_classes: As far as the library can build it; ``models.adapt.adapt`` does the rest. 0 for a model without a
            classifier builds one with a single class, so that it is known which layer to remove.
        in_channels: As far as the library can build it.

    Raises:
        InputError: No such model, tag or size (names the nearest), the library is not installed, the weights cannot be
            downloaded, or the model comes without a classifier and ``num_classes`` is None.
    """
    library, _, word = model.partition(":")
    name, _, tag = word.partition(".")
    if library == "timm":
        return _build_timm(name, tag, num_classes=num_classes, in_channels=in_channels)
    return build_torchvision(name, tag, num_classes=num_classes)


def classifier_count(model: str) -> int:
    """Number of classifiers stated for a library's weights: 0 if they were trained to embed, 1 if unknown."""
    library, _, word = model.partition(":")
    if library != "timm":
        return 1
    timm = import_optional("timm", "timm", f"the network '{model}'")
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
    timm = import_optional("timm", "timm", f"the network 'timm:{name}'")
    from efficientnetv2.models.library_weights import reading, timm_file  # imports an HTTP client

    if not timm.is_model(name):
        raise InputError(f"timm has no network '{name}'{did_you_mean(name, timm.list_models())}")
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
    options |= {"num_classes": num_classes} if num_classes and num_classes > 0 and not reset_to else {}
    options |= {"in_chans": in_channels} if in_channels and in_channels > 0 else {}
    path = timm_file(timm.get_pretrained_cfg(full_name).to_dict(), full_name) if tag else None
    if path:  # timm's repositories have timm's tensor names, whatever format the weights were published in
        options["pretrained_cfg_overlay"] = {"file": str(path), "custom_load": False}
    with reading(f"timm:{full_name}", path):
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
