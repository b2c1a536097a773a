"""The network that a run begins with: with fresh weights or given ones, fitted to its classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from efficientnetv2.arch.published import NAMES, architecture
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError, count_of
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import RGB
from efficientnetv2.models.blocks import calm
from efficientnetv2.models.create import create
from efficientnetv2.models.fit import fit, freeze
from efficientnetv2.models.foreign import Foreign
from efficientnetv2.models.heads import classifiers_of, renew_classifiers
from efficientnetv2.models.network import EfficientNet, Network
from efficientnetv2.training.named import (
    best_weights,
    default_model,
    load_weights,
    refuse_weights_as_model,
    same_shape,
    title,
)
from efficientnetv2.training.recipe import Recipe

NOTHING_FROZEN = {"freeze_stages": 0, "frozen_statistics": False}  # fields of a recipe


@dataclass(frozen=True, eq=False)
class Start:
    """Where a run begins.

    Args:
        model: as the recipe names it from now on: ``build`` makes a network of the same shape from it.
        weights: as the recipe names them from now on: "none", or what ``load_weights`` takes.
        network: fitted to the classes, frozen as the recipe says.
        notes: what was chosen, a sentence each.
    """

    model: str | Architecture
    weights: str
    network: Network
    notes: tuple[str, ...]


def start(
    recipe: Recipe, *, class_names: tuple[str, ...], device: torch.device, in_channels: int = RGB
) -> Start:
    """The network to train, and where its weights are from.

    Args:
        recipe: model and weights may be "auto".
        class_names: of the pictures to train on.
        device: to train on; which network is the default depends on it.
        in_channels: of these pictures; weights for others are adapted (``models.fit``).

    Raises:
        InputError: weights that can't be had or are of another network, or a recipe that does not fit the network.
    """
    refuse_weights_as_model(recipe.model)
    notes: list[str] = []
    word = recipe.weights
    if word == "auto":
        found = best_weights(default_model(device) if recipe.model == "auto" else recipe.model)
        word = found.word
        notes.append(found.note)
    if word != "none":
        return _from_weights(recipe, word, class_names, in_channels, notes)
    if recipe.freeze_stages or recipe.frozen_statistics:
        recipe = recipe.model_copy(update=NOTHING_FROZEN)
        notes.append("Nothing is frozen, for there are no weights worth keeping.")
    model = recipe.model
    if model == "auto":
        model = default_model(device)
        notes.append(f"Network: {model} (with a GPU efficientnetv2_s, without one efficientnetv2_b0).")
    network = build(recipe, model, num_classes=len(class_names), in_channels=in_channels)
    return Start(model, "none", network, tuple(notes))


def build(recipe: Recipe, model: str | Architecture, *, num_classes: int, in_channels: int = RGB) -> Network:
    """A network with fresh weights, as the recipe wants it. The same recipe gives the same weights.

    Args:
        recipe: its seed, initialisation, pooling and freezing are used.
        model: a name or an architecture.
        num_classes: of its classifier.
        in_channels: of the pictures.

    Raises:
        InputError: no such network, or one that the recipe does not fit.
    """
    _seed(recipe)
    made = create(model, num_classes=num_classes, in_channels=in_channels)
    network = fit(made, pooling=recipe.pooling)
    if recipe.initialisation == "calm":
        if isinstance(network, EfficientNet):
            calm(network)
        else:
            _zero_classifiers(network)
    freeze(network, stages=recipe.freeze_stages, statistics=recipe.frozen_statistics)
    _recompute(network, recipe.recompute_stages)
    return network


def _from_weights(
    recipe: Recipe, word: str, class_names: tuple[str, ...], in_channels: int, notes: list[str]
) -> Start:
    _seed(recipe)  # where another library draws the classifier
    network, said = load_weights(word, num_classes=len(class_names))
    network.calibration = None  # of the answers that it gave before
    notes += [f"--weights {word}: {note}." for note in said]
    model = _name(network)
    if recipe.model == "auto":
        notes.append(f"Network: {title(model)}, which the weights are of.")
    elif not same_shape(recipe.model, model):
        raise InputError(
            f"--weights {word}: its network is {title(model)}, not {title(recipe.model)}. Say --model auto to train "
            "the network that the weights are of, or take weights of the other."
        )
    if network.in_channels != in_channels:
        notes.append(_adapted(network, word, in_channels))
    _seed(recipe)
    same_classes = network.class_names == class_names
    if not same_classes and isinstance(network, Foreign) and len(classifiers_of(network)) > 1:
        renew_classifiers(network, len(class_names))
    elif not same_classes:
        fit(network, num_classes=0)
    fit(network, pooling=recipe.pooling)
    if network.num_classes != len(class_names):
        fit(network, num_classes=len(class_names))
    fresh_head = not (same_classes and network.class_names)
    if fresh_head and recipe.initialisation == "calm":
        _zero_classifiers(network)
    head = _head(recipe, network, len(class_names)) if fresh_head else "its classifier too"
    notes.append(f"Weights: from {word}, {head}.")
    freeze(network, stages=recipe.freeze_stages, statistics=recipe.frozen_statistics)
    _recompute(network, recipe.recompute_stages)
    if network.frozen:
        notes.append(_frozen(recipe, network))
    return Start(model, word, network, tuple(notes))


def _head(recipe: Recipe, network: Network, classes: int) -> str:
    """How a classifier begins that the weights have not brought, in words: one alone gets the values of the probe."""
    if recipe.classifier == "probe" and len(classifiers_of(network)) == 1:
        return f"with a classifier for {count_of(classes, 'class')} that begins as the linear probe"
    return f"a fresh classifier for {count_of(classes, 'class')}"


def _adapted(network: Network, word: str, in_channels: int) -> str:
    """Let a network for pictures of other channels read those of the run; says how."""
    had = network.in_channels
    ours = "RGB" if in_channels == RGB else count_of(in_channels, "channel")
    try:
        fit(network, in_channels=in_channels)
    except InputError as error:
        raise InputError(
            f"--weights {word}: its network takes pictures of {count_of(had, 'channel')}, and pictures are read as "
            f"{ours}; {error}. Take weights for {ours}."
        ) from error
    read = f"Its first convolution read {count_of(had, 'channel')}"
    if in_channels == 1:
        return f"{read}, and pictures have one: it gets the sum of their weights."
    each = "red, green and blue get" if in_channels == RGB else f"the {in_channels} get"
    if had == 1:
        return f"{read}; {each} its weights, scaled by 1/{in_channels}."
    return (
        f"{read}, and pictures are read as {ours}: {each} the weights of the first {min(had, in_channels)} in turn, "
        f"scaled by {had}/{in_channels}."
    )


def _frozen(recipe: Recipe, network: Network) -> str:
    """What keeps the weights given, in a sentence."""
    if recipe.freeze_stages == 0:
        return (
            "Batch-norm keeps the statistics of the weights (--set frozen_statistics=false lets them adapt)."
        )
    kept = {
        1: "the stem and the first stage",
        "all": "everything but the classifier",
    }.get(recipe.freeze_stages, f"the stem and the first {recipe.freeze_stages} stages")
    # With "all" they are among what is kept.
    also = recipe.frozen_statistics and recipe.freeze_stages != "all"
    statistics = "the statistics of all batch-norms" if also else ""
    every = sum(weight.numel() for weight in network.parameters())
    train = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    return f"Frozen: {' and '.join(filter(None, (kept, statistics)))}; {train:,} of {every:,} weights train."


def _seed(recipe: Recipe) -> None:
    torch.manual_seed(Key.of(recipe.seed).fold("initialisation").torch_seed())


def _zero_classifiers(network: Network) -> None:
    for classifier in classifiers_of(network):
        assert isinstance(classifier, nn.Linear)
        nn.init.zeros_(classifier.weight)
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)


def _name(network: Network) -> str | Architecture:
    """As a recipe names the network of given weights; its pooling is another field of the recipe."""
    if isinstance(network, EfficientNet):
        table = replace(network.architecture, pooling="mean")
        return next((name for name in NAMES if architecture(name) == table), table)
    assert isinstance(network, Foreign), "there are two kinds of networks"
    if network.source is None:
        raise InputError("The weights are of a module that only its own code can make: begin a Job with it.")
    return network.source


def _recompute(network: Network, stages: int) -> None:
    if isinstance(network, EfficientNet):
        network.recompute_stages(stages)
    elif stages:
        raise InputError(
            f"recompute_stages is {stages}, but only of this project's networks it is known what a stage is. Leave it "
            "out, or make the groups smaller (--set group_images=...)."
        )
