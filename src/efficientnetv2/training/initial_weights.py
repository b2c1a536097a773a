"""The model that a run starts with: from scratch, or from weights by name, from a file, or the best available."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import torch
from torch import nn

from efficientnetv2.architectures.registry import NAMES, get_architecture, is_architecture_file, published_shape
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models import hub, model_file, pretrained
from efficientnetv2.models.adapt import adapt, classifier_layers, freeze, reset_classifiers
from efficientnetv2.models.blocks import zero_init_residual
from efficientnetv2.models.conversion import convert
from efficientnetv2.models.conversion.weight_reader import is_model_file
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.ensemble import ensemble_members
from efficientnetv2.models.factory import create, unknown_model_error
from efficientnetv2.models.library_models import classifier_count, is_library_model
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError, did_you_mean, pluralize
from efficientnetv2.utils.random_key import Key

# Preprocessing that comes with weights. Size and crop mode are the recipe's.
_USED = ("interpolation", "mean", "std")
# Names of pretrained weights in Keras, torchvision and Ultralytics, and of their datasets, by ours.
_SYNONYMS = {
    **dict.fromkeys(("default", "pretrained", "true", "yes"), "auto"),
    **dict.fromkeys(("random", "scratch", "false", "no"), "none"),
    **dict.fromkeys(("imagenet", "imagenet1k", "in1k"), "efficientnetv2_b0.in1k"),
    **dict.fromkeys(("imagenet21k", "imagenet22k", "in21k", "in22k"), "efficientnetv2_s.in21k"),
}
_PACKAGE = Path(__file__).parents[1]
# In the package where it was installed from a wheel (pyproject.toml), else in the clone.
EXAMPLES = _PACKAGE / "examples" if (_PACKAGE / "examples").is_dir() else _PACKAGE.parents[1] / "examples"
BUNDLED = EXAMPLES / "weights"
NOTHING_FROZEN = {"freeze_stages": 0, "freeze_bn": False}  # fields of a recipe


@dataclass(frozen=True)
class WeightsCandidate:
    """Weights that are available for a model."""

    word: str  # Argument of ``load_weights``, or "none" for random weights
    note: str  # Which weights and from where, or why none
    title: str = "random weights"
    lacking: str = ""  # Why better weights are not available; empty if there are none


def validate_model_name(model: str | Architecture) -> None:
    """Check that a recipe's model is a known model, not weights."""
    if not isinstance(model, str) or model == "auto" or model in NAMES:
        return
    if model.endswith(".py"):
        raise InputError(
            f"`model={model}`: your own model trains in your own loop, see docs/how-to/own-training-loop.md."
        )
    if is_architecture_file(model):
        raise InputError(f"the field model of a recipe is {model}, but takes no file. Pass the file as `model`.")
    is_weights = (is_library_model(model) and "." in model) or model in pretrained.weight_names()
    if is_weights or Path(model).exists():
        raise InputError(f"`model={model}`: that names weights, which include the model. Use `weights={model}`.")
    if not is_library_model(model):
        raise unknown_model_error(model)


def default_model(device: torch.device) -> str:
    """The default model of a device. Ours: one that trains within minutes there."""
    return "efficientnetv2_s" if device.type == "cuda" else "efficientnetv2_b0"


def stride_of(model: str | Architecture) -> int | None:
    """Total stride of a model of this package; None for others, which must be built to know."""
    if isinstance(model, str):
        return get_architecture(model).stride if model in NAMES else None
    return model.stride


def weights_candidates(model: str | Architecture) -> tuple[WeightsCandidate, ...]:
    """All available weights of a model, the most promising first, "none" last. May download the best."""
    reason = f"None are published for {model_title(model)}."
    found = []
    if isinstance(model, str) and is_library_model(model):
        reason = f"Those of {model} have a tag: `weights={model.partition('@')[0]}.TAG`."
    elif isinstance(model, str) and model in NAMES:
        published, reason = _published(model)
        found = [] if published is None else [published]
        file = BUNDLED / f"{model}.safetensors"
        if file.is_file():
            others = f"; others: {reason}" if published is None else "."
            note = f"Weights: {file}, which come with the repository{others}"
            lacking = "" if published is not None else reason
            found.append(WeightsCandidate(str(file), note, f"the shipped {file.name}", lacking))
    none = WeightsCandidate("none", f"Weights: none, training from scratch. {reason}".rstrip())
    return (*found, none)


def _published(model: str) -> tuple[WeightsCandidate | None, str]:
    """The best available published weights, and why better ones are not available."""
    reason = ""
    for number, name in enumerate(pretrained.ranked_weights(model)):
        where = "the cache" if hub.cached(name) else hub.url(name)
        if number and where != "the cache":
            continue  # the download failed once
        try:
            hub.fetch(name)
        except hub.DownloadError as error:  # one line; the command says the rest
            reason = reason or f"{error.state}. To get them: effnetv2 models --fetch {name}"
            continue
        except InputError as error:
            reason = reason or str(error)
            continue
        note = f"Weights: {name}, from {where}."
        if reason:
            note = f"Weights: {name}, from the cache; better ones are not available: {reason}"
        return WeightsCandidate(name, note, name, reason), reason
    return None, reason


def is_bundled(word: str) -> bool:
    """Whether weights are those of ``examples/weights``, here or in another installation."""
    parts = PureWindowsPath(word).parts  # which knows the separators of every system
    if parts[-3:-1] == ("examples", "weights") and (bundled := BUNDLED / parts[-1]).is_file():
        file = Path(word)  # of another installation or a copy, not a user's own file of that name
        if not file.is_file() or file.stat().st_size == bundled.stat().st_size:
            return True
    return word != "none" and Path(word).resolve().parent == BUNDLED.resolve()


def _here(word: str) -> str:
    """Bundled weights of another installation, from this one; any other word unchanged."""
    here = BUNDLED / PureWindowsPath(word).name
    return str(here) if here.is_file() and not _is_file(word) and is_bundled(word) else word


def better_weights(model: str | Architecture, word: str) -> str | None:
    """Name of ImageNet weights that promise more than the repository's (``word``) or "none"; None if there are none."""
    if not isinstance(model, str) or model not in NAMES:
        return None
    if word != "none" and not is_bundled(word):
        return None
    return next(iter(pretrained.ranked_weights(model)), None)


def load_weights(word: str, *, num_classes: int | None = None) -> tuple[Network, tuple[str, ...]]:
    """Load a model with weights, and notes on how the file was read.

    ``word`` is a model file or run directory; a weights file of timm, torchvision, Keras or the official code; a name
    such as ``efficientnetv2_s.in1k``; or weights of another library, ``timm:resnet50.a1_in1k``. ``num_classes`` is for
    another library's weights without a classifier, or with several: None adds none, and keeps several.
    """
    word = _here(word)
    path = Path(word)
    if _is_file(word):
        if members := ensemble_members(path):
            raise InputError(
                f"`weights={word}`: this is an ensemble of {len(members)} models. Use one of them: "
                f"`weights={members[0].parent}`"
            )
        if is_model_file(path) or (path / "recipe.yaml").is_file():
            return model_file.load(path), ()
        if (name := convert.name_of_download(path)) is not None:
            return convert.read_pretrained(path, name), ()
        imported = convert.read(path, used=_USED)
        return imported.network, (f"recognized as {imported.theirs} of {imported.title}", *imported.notes)
    if is_library_model(word) and "." in word:
        come_with = classifier_count(word)
        if come_with == 0:
            return create(word, num_classes=num_classes or 0), ()
        return create(word, num_classes=num_classes if come_with > 1 else None), ()
    if is_library_model(word):
        raise InputError(f"`weights={word}`: that is a model. Use `weights={word.partition('@')[0]}.TAG`.")
    if "." in word and word.partition(".")[0] in NAMES:
        return convert.read_pretrained(hub.fetch(word), word), ()
    raise _unknown_weights_error(word)


def validate_weights_name(word: str) -> None:
    """Check that weights exist, without reading or downloading them."""
    word = _here(word)
    if word in ("auto", "none") or _is_file(word) or is_library_model(word):
        return
    if word.partition(".")[0] not in NAMES or "." not in word:
        raise _unknown_weights_error(word)
    pretrained.get_weights(word)


def _unknown_weights_error(word: str) -> InputError:
    if word in NAMES:
        tags = ", ".join(pretrained.ranked_weights(word)) or "none"
        return InputError(f"`weights={word}`: that is a model. Its weights: {tags}.")
    hint = did_you_mean(word, ["auto", "none", *pretrained.weight_names()])
    if word.casefold() in ("bundled", "shipped", "demo"):
        hint = f"; did you mean `weights={BUNDLED / 'efficientnetv2_b0.safetensors'}`?"
    elif meant := _SYNONYMS.get(re.sub(r"[-_]|v\d$", "", word.casefold())):
        hint = f"; did you mean `weights={meant}`?"
    return InputError(
        f"`weights={word}`: there is no such file, and no weights of that name{hint} All names: effnetv2 models "
        "--pretrained"
    )


def absolute_weights_path(word: str) -> str:
    """The absolute path of local weights, links unresolved, as names matter; any other word unchanged."""
    return os.path.abspath(word) if word not in ("auto", "none") and _is_file(word) else word


def _is_file(word: str) -> bool:
    """Whether it is a file, a folder, or a TensorFlow checkpoint, which is several files."""
    return Path(word).exists() or Path(f"{word}.index").exists()


def model_title(model: str | Architecture) -> str:
    """Name of a recipe's model for users."""
    if isinstance(model, str):
        return model
    near = published_shape(replace(model, global_pool="avg"))
    if near is None:
        return f"a custom architecture ({pluralize(len(model.stages), 'stage')})"
    return f"{near} with {model.padding} padding and batch-norm epsilon {model.batch_norm_epsilon:g}"


def weights_shape(model: str | Architecture) -> Architecture | str:
    """Equal for models that the same weights fit; padding, epsilon and pooling come with the weights."""
    if isinstance(model, str) and is_library_model(model):
        return model.partition(".")[0].partition("@")[0]
    table = get_architecture(model) if isinstance(model, str) else model
    return replace(table, padding="same", batch_norm_epsilon=1e-3, global_pool="avg")


@dataclass(frozen=True, eq=False)
class InitialModel:
    """The model that a run starts with."""

    model: str | Architecture  # Value for the recipe: ``build_model`` makes a model of the same shape from it
    weights: str  # Value for the recipe: "none", or an argument of ``load_weights``
    network: Network  # Model for the classes, frozen as in the recipe
    notes: tuple[str, ...]  # A sentence for each choice
    weights_classes: tuple[str, ...] = ()  # Classes that the weights were trained for, as far as known


def build_initial_model(
    recipe: Recipe, *, class_names: tuple[str, ...], device: torch.device, in_channels: int = RGB
) -> InitialModel:
    """Build the model to train; model and weights of the recipe may be "auto", which the device decides.

    Weights for images of other channels are adapted (``models.adapt``).
    """
    validate_model_name(recipe.model)
    notes: list[str] = []
    word = _here(recipe.weights)
    if word == "auto":
        found = weights_candidates(default_model(device) if recipe.model == "auto" else recipe.model)[0]
        word = found.word
        notes.append(found.note)
    if word != "none":
        return _from_weights(recipe, word, class_names, in_channels, notes)
    if recipe.freeze_stages or recipe.freeze_bn:
        recipe = recipe.model_copy(update=NOTHING_FROZEN)
        notes.append("Nothing is frozen, as there are no pretrained weights.")
    model = recipe.model
    if model == "auto":
        model = default_model(device)
        notes.append(f"Model: {model} (with a GPU efficientnetv2_s, without one efficientnetv2_b0).")
    network = build_model(recipe, model, num_classes=len(class_names), in_channels=in_channels)
    return InitialModel(model, "none", network, tuple(notes))


def build_model(recipe: Recipe, model: str | Architecture, *, num_classes: int, in_channels: int = RGB) -> Network:
    """A model with random weights. The same recipe gives the same weights."""
    _seed(recipe)
    made = create(model, num_classes=num_classes, in_channels=in_channels)
    network = adapt(made, global_pool=recipe.global_pool)
    if recipe.init == "zero_residual":
        if isinstance(network, EfficientNet):
            zero_init_residual(network)
        else:
            _zero_classifiers(network)
    _freeze(recipe, network)
    return network


def _from_weights(
    recipe: Recipe, word: str, class_names: tuple[str, ...], in_channels: int, notes: list[str]
) -> InitialModel:
    _seed(recipe)  # another library may draw the classifier
    classes = len(class_names)
    network, read_notes = load_weights(word, num_classes=classes)
    network.calibration = network.unknown = None  # training makes them invalid
    notes += [f"Weights {word}: {note}." for note in read_notes]
    model = _recipe_model(network)
    if recipe.model == "auto":
        notes.append(f"Model: {model_title(model)} (from the weights).")
    elif weights_shape(recipe.model) != weights_shape(model):
        raise InputError(
            f"`weights={word}`: the model is {model_title(model)}, not {model_title(recipe.model)}. Use `model=auto` "
            "to train the model of the weights, or other weights."
        )
    if isinstance(recipe.model, Architecture) and isinstance(network, EfficientNet) and recipe.global_pool is None:
        pool, theirs = recipe.model.global_pool, network.architecture.global_pool
        if pool != theirs:
            raise InputError(
                f"`model`: its global_pool is {pool}, but that of `weights={word}` is {theirs}. Choose one with "
                f"`global_pool={pool}` or `global_pool={theirs}`."
            )
    if network.in_channels != in_channels:
        notes.append(_adapt_channels(network, word, in_channels))
    _seed(recipe)
    known = network.class_names
    same_classes = known == class_names
    if not same_classes and isinstance(network, WrappedModel) and len(classifier_layers(network)) > 1:
        reset_classifiers(network, classes)
    elif not same_classes:
        adapt(network, num_classes=0)
    adapt(network, global_pool=recipe.global_pool)
    if network.num_classes != classes:
        adapt(network, num_classes=classes)
    head = "its classifier too"
    if not (same_classes and network.class_names):
        if recipe.init == "zero_residual":
            _zero_classifiers(network)
        head = f"a new classifier for {pluralize(classes, 'class')}"
    notes.append(f"Weights: from {word}, {head}.")
    _freeze(recipe, network)
    if network.frozen:
        every = sum(weight.numel() for weight in network.parameters())
        train = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
        fields = f"freeze_stages={recipe.freeze_stages}, freeze_bn={str(recipe.freeze_bn).lower()}"
        notes.append(f"Frozen: {fields}; {train:,} of {every:,} weights train.")
    return InitialModel(model, word, network, tuple(notes), known)


def _adapt_channels(network: Network, word: str, in_channels: int) -> str:
    """Adapt a model to the channels of the images, and describe the change."""
    had = network.in_channels
    ours = "RGB" if in_channels == RGB else pluralize(in_channels, "channel")
    try:
        adapt(network, in_channels=in_channels)
    except InputError as error:
        raise InputError(
            f"`weights={word}`: its model takes images of {pluralize(had, 'channel')}; {error}. Use weights for {ours}."
        ) from error
    weights = f"its weights in turn, scaled by {had}/{in_channels}" if in_channels > 1 else "the sum of its weights"
    return f"The first convolution takes {pluralize(had, 'channel')}: {ours} get {weights}."


def _seed(recipe: Recipe) -> None:
    torch.manual_seed(Key.of(recipe.seed).fold("initialisation").torch_seed())


def _zero_classifiers(network: Network) -> None:
    for classifier in classifier_layers(network):
        assert isinstance(classifier, nn.Linear)
        nn.init.zeros_(classifier.weight)
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)


def _recipe_model(network: Network) -> str | Architecture:
    """Value of a recipe's ``model`` for a model. Its pooling is another field."""
    if isinstance(network, EfficientNet):
        table = replace(network.architecture, global_pool="avg")
        return next((name for name in NAMES if get_architecture(name) == table), table)
    assert isinstance(network, WrappedModel)
    if network.source is None:
        raise InputError("The weights are of another module: pass this module in a RunSetup.")
    return network.source


def _freeze(recipe: Recipe, network: Network) -> None:
    """Freeze and recompute the stages of the recipe."""
    freeze(network, stages=recipe.freeze_stages, statistics=recipe.freeze_bn)
    if isinstance(network, EfficientNet):
        network.checkpoint_stages(recipe.checkpoint_stages)
    elif recipe.checkpoint_stages:
        raise InputError(
            f"checkpoint_stages is {recipe.checkpoint_stages}, but only models of this package have known stages. "
            "Use a smaller `ghost_batch_size`."
        )
