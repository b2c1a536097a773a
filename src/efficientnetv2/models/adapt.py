"""Adapt a model to a task: new classes, new channels, frozen stages, parameter groups by depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from efficientnetv2.architectures.spec import GlobalPool
from efficientnetv2.models.blocks import init_weights
from efficientnetv2.models.efficientnet import EfficientNet, Network, check_classes_and_channels, how_to_get_network
from efficientnetv2.models.ensemble import require_single_model
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.utils.errors import InputError

N = TypeVar("N", bound=Network)


def adapt(
    network: N, *, num_classes: int | None = None, in_channels: int | None = None, global_pool: GlobalPool | None = None
) -> N:
    """Give a model a new classifier, or let it read images of other channels. All other weights stay.

    A new classifier is drawn with PyTorch's generator, uniform within ±1/sqrt(classes), biases 0. The old class names
    are dropped and the activation is softmax again. For other channels see ``adapted_weight``; mean and standard
    deviation of the preprocessing follow (``Preprocessing.with_channels``).

    Args:
        network: Changed in place.
        num_classes: 0 removes the classifier. The present number keeps it: for random weights, remove it first.
        in_channels: None keeps them.
        global_pool: Of the last maps of an ``EfficientNet``; another one needs a new classifier. None keeps it.

    Raises:
        InputError: A number out of range, an unknown ``global_pool``, a grouped first convolution, pooling, several
            classifiers or built-in scaling of a wrapped model, or an ensemble.

    Example::

        import efficientnetv2 as ev2

        network = ev2.adapt(ev2.create("efficientnetv2_s.in21k"), num_classes=10)
    """
    _require_network(network)
    check_classes_and_channels(num_classes, in_channels)
    present_pool = network.architecture.global_pool if isinstance(network, EfficientNet) else "avg"
    if global_pool is not None and global_pool != present_pool:
        if not isinstance(network, EfficientNet):
            raise InputError(f"`global_pool` is {global_pool}, which only models of this package have. Leave it out.")
        if global_pool not in get_args(GlobalPool):
            raise InputError(f"`global_pool` is {global_pool!r}, but must be {' or '.join(get_args(GlobalPool))}.")
        network.architecture = replace(network.architecture, global_pool=global_pool)
        network.embed_dim = network.architecture.embed_dim
        num_classes = network.num_classes if num_classes is None else num_classes
        _set_head(network, 0)
    if num_classes is not None and num_classes != network.num_classes:
        _set_head(network, num_classes)
    if in_channels is not None and in_channels != network.in_channels:
        _set_channels(network, in_channels)
    return network


def _require_network(network: object) -> None:
    if not isinstance(network, Network):
        raise InputError(f"a {type(network).__name__} is not a classifier. {how_to_get_network(network)}")


def classifier_layers(network: Network) -> list[nn.Module]:
    """The classifier; several in a distilled model. Without classes, an ``nn.Identity``."""
    module, names = _classifiers(network)
    return [module.get_submodule(name) for name in names]


def _classifiers(network: Network) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that holds the classifiers, and their names within it."""
    if isinstance(network, WrappedModel):
        return network.module, network.classifier_names
    return network, ("classifier",)


def reset_classifiers(network: Network, num_classes: int) -> None:
    """Replace every classifier by a random one, as ``adapt`` does for a single classifier; 0 removes them."""
    module, names = _classifiers(network)
    for name in names:
        old = module.get_submodule(name)
        head: nn.Module = nn.Identity()
        if num_classes:
            like = next(weight for weight in network.parameters() if weight.is_floating_point())
            width = old.in_features if isinstance(old, nn.Linear) else network.embed_dim
            head = nn.Linear(width, num_classes, device=like.device, dtype=like.dtype)
            if not like.is_meta:
                init_weights(head)
        module.set_submodule(name, head.train(network.training))
    network.num_classes, network.class_names, network.activation = num_classes, (), "softmax"
    network.metrics, network.calibration, network.unknown = {}, None, None


def set_classifier_weights(network: Network, weight: Tensor, bias: Tensor) -> None:
    """Set the classifier's weight (classes, embed_dim) and bias (classes,). Refuses several classifiers."""
    classifier, *others = classifier_layers(network)
    if others:
        raise InputError(f"{network.display_name()} has {1 + len(others)} classifiers. Use `head_init=random`.")
    assert isinstance(classifier, nn.Linear)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)


def _set_head(network: Network, num_classes: int) -> None:
    """Replace the classifier by a random one; 0 removes it."""
    require_single_model(network)
    if len(classifier_layers(network)) > 1:
        option = "num_classes=N" if num_classes else "features_only=True"
        raise InputError(
            f"{network.display_name()} has several classifiers, which cannot be replaced. Use create(..., {option})."
        )
    reset_classifiers(network, num_classes)


def _set_channels(network: Network, in_channels: int) -> None:
    require_single_model(network)
    wrapped = network if isinstance(network, WrappedModel) else None
    module, names = (wrapped.module, wrapped.stem_names) if wrapped else (network, ("stem.conv",))
    if getattr(module, "transform_input", False) is True:  # GoogLeNet and Inception v3 of torchvision
        raise InputError(f"{network.display_name()} scales three channels itself, so they cannot be changed.")
    stems = [module.get_submodule(name) for name in names]
    for stem in stems:
        assert isinstance(stem, nn.Conv2d)
        if stem.groups != 1:
            raise InputError(f"the first convolution has {stem.groups} groups, so its channels cannot be changed.")
        if stem.in_channels != network.in_channels:
            raise InputError("the first convolution does not read the image itself, so its channels cannot be changed.")
    for stem in stems:
        assert isinstance(stem, nn.Conv2d)
        with torch.no_grad():
            weight = adapted_weight(stem.weight.detach(), in_channels)
            stem.weight = nn.Parameter(weight, requires_grad=stem.weight.requires_grad)
        stem.in_channels = in_channels
    for part in module.modules():  # those of transformers refuse images of another number
        if getattr(part, "num_channels", None) == network.in_channels:
            part.num_channels = in_channels  # type: ignore[assignment]
    network.in_channels = in_channels
    network.preprocessing = network.preprocessing.with_channels(in_channels)
    network.metrics, network.calibration, network.unknown = {}, None, None  # of images of other channels


def adapted_weight(weight: Tensor, in_channels: int) -> Tensor:
    """A convolution's weight (out, channels, k, k) for other channels, scaled so that activations keep their size.

    One channel gets the sum of the old ones, and a gray image gives what three equal channels gave. Otherwise the old
    channels repeat in turn, times old / new, so that the sum over channels stays (nearly, for no multiple).

    Source: timm's ``adapt_input_conv``, which expects three old channels.
    """
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = torch.arange(in_channels, device=weight.device) % old
    return weight[:, repeated] * (old / in_channels)


def freeze(network: Network, *, stages: int | Literal["all"] = 0, statistics: bool = False) -> None:
    """Freeze a part of a model: no gradients, and evaluation mode even after ``network.train()``.

    Batch-norms in evaluation mode neither use nor update batch statistics; dropout and stochastic depth are off. A
    second call replaces the first.

    Example::

        import efficientnetv2 as ev2

        network = ev2.create("efficientnetv2_b0", num_classes=3)
        ev2.freeze(network, stages="all")  # trains the classifier alone

    Args:
        network: Changed in place.
        stages: 0 freezes nothing, n the stem and the first n stages (see ``layer_groups``), "all" everything except the
            classifier. The head of an ``EfficientNet`` (last convolution and classifier) is not a stage.
        statistics: Freeze the running statistics of every batch-norm. Scale and shift still train outside of the
            frozen stages.

    Raises:
        InputError: More stages than there are, "all" without a classifier, or an ensemble.
    """
    groups = layer_groups(network)
    most = max(0, len(groups) - 2)  # without stem and head
    if stages == "all":
        if network.num_classes == 0:
            raise InputError('stages to freeze are "all", but the model has no classifier left to train.')
        head = {id(weight) for layer in classifier_layers(network) for weight in layer.parameters()}
        frozen = {id(weight) for weight in network.parameters()} - head
    elif isinstance(stages, bool) or not isinstance(stages, int | np.integer) or not 0 <= stages <= most:
        raise InputError(f'stages to freeze are {stages!r}, but must be 0 to {most}, or "all".')
    else:
        frozen = {id(weight) for group in groups[: stages + 1] for weight in group} if stages else set()
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    names = []
    for name, module in network.named_modules():
        weights = [id(weight) for weight in module.parameters()]
        all_frozen = bool(weights) and frozen.issuperset(weights)
        if name and (all_frozen or (statistics and isinstance(module, _NormBase))):
            names.append(name)
    network.frozen = tuple(names)
    network.train(network.training)


def layer_groups(network: Network) -> list[list[nn.Parameter]]:
    """All parameters in groups from the image to the classes, for layer-wise learning rate decay.

    With L groups and a decay d, group i takes ``lr * d ** (L - 1 - i)`` (arXiv:1801.06146, section 3.2). There are at
    least two groups, or one for a module of one part; only the last can be empty, if there are no classes.

    ``EfficientNet``: the stem, each stage of the table, and the head convolution with the classifier.

    Other models: the children of the module in order of definition. A normalization joins the child before it, and the
    last group starts at the (first) classifier. Containers count child by child: those of ``_CONTAINERS``, and the
    first child if it is an ``nn.Sequential`` with most of the weights outside the head (torchvision's ``features``). So
    a ResNet has a stem and four stages, and a transformer a stem and its blocks.
    """
    _require_network(network)
    require_single_model(network)
    if isinstance(network, EfficientNet):
        rest = iter(network.blocks)
        stages = [[next(rest) for _ in range(stage.layers)] for stage in network.architecture.stages]
        parts: list[list[nn.Module]] = [[network.stem], *stages, [network.head, network.classifier]]
    else:
        assert isinstance(network, WrappedModel), "a single model is one of the two"
        parts = _wrapped_parts(network)
    groups: list[list[nn.Parameter]] = []
    seen: set[int] = set()
    for part in parts:
        group = [weight for module in part for weight in module.parameters() if id(weight) not in seen]
        seen.update(map(id, group))
        groups.append(group)
    # Parameters outside of all parts, such as a transformer's class token, come first.
    groups[0] = [weight for weight in network.parameters() if id(weight) not in seen] + groups[0]
    return groups


# Names of containers of stages or blocks: trunk_output in torchvision's RegNet; in timm transformers in PiT, levels in
# NesT, dense_stages in RDNet, network in VOLO, and features in ReXNet, SelecSLS and VGG.
_CONTAINERS = (
    "blocks", "stages", "layers", "encoder", "encoder.layers", "trunk_output", "transformers", "levels",
    "dense_stages", "network", "features",
)  # fmt: skip

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def _wrapped_parts(network: WrappedModel) -> list[list[nn.Module]]:
    """Parts of a wrapped model, each with the normalizations after it; the last holds the classifiers."""
    parts: list[list[nn.Module]] = []
    in_head = False
    for name, module in _children(network):
        if in_head or (parts and isinstance(module, _NORMS)):
            parts[-1].append(module)
        elif any(f"{classifier}.".startswith(f"{name}.") for classifier in network.classifier_names):
            in_head = True
            parts.append([module])
        elif _size(module):
            parts.append([module])
    return parts


def _children(network: WrappedModel) -> Iterator[tuple[str, nn.Module]]:
    """The module's children by name, containers replaced by their children; modules that only wrap one are skipped."""
    root, start = network.module, ""
    while (only := _only_child(root)) and f"{network.classifier_name}.".startswith(f"{start}{only}."):
        root, start = root.get_submodule(only), f"{start}{only}."
    children = dict(root.named_children())
    head = children.get(network.classifier_name.removeprefix(start).partition(".")[0])
    backbone_size = _size(root) - (_size(head) if head else 0)
    first = next(name for name, child in children.items() if _size(child))
    containers = set(_CONTAINERS)
    if (
        type(children[first]) is nn.Sequential
        and children[first] is not head
        and 2 * _size(children[first]) > backbone_size
    ):
        containers.add(first)

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if prefix + name in containers:
                yield from walk(child, f"{prefix}{name}.")
            else:
                yield start + prefix + name, child

    return walk(root, "")


def _only_child(module: nn.Module) -> str | None:
    """Name of the single child with weights; None if there are several."""
    names = [name for name, child in module.named_children() if _size(child)]
    return names[0] if len(names) == 1 else None


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
