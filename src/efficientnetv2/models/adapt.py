"""A network fitted to a task: other classes, other channels, parts of it frozen, its parts in order of depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from efficientnetv2.architectures.spec import Pooling
from efficientnetv2.models.efficientnet import EfficientNet, Network, check_classes_and_channels
from efficientnetv2.models.ensemble import require_single_model
from efficientnetv2.models.torchvision_wrappers import scale_before_stem, scale_in_stem
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.preprocessing import RGB
from efficientnetv2.utils.errors import InputError


def classifier_layers(network: Network) -> list[nn.Module]:
    """The layers that give the classes: one, or several whose answers the network puts together, as distilled ones do.

    Args:
        network: ours or wrapped; without classes an ``nn.Identity`` stands there.
    """
    if isinstance(network, WrappedModel):
        return [network.module.get_submodule(name) for name in network.classifier_names]
    return [network.get_submodule("classifier")]


def reset_classifiers(network: WrappedModel, num_classes: int) -> None:
    """Give a wrapped network of several classifiers as many new ones, each drawn as ``adapt`` draws one.

    ``adapt`` takes one away and puts another on; between the two, several would leave a network that answers nothing.

    Args:
        network: with classifiers; changed in place.
        num_classes: of each, ≥ 1.
    """
    for name in network.classifier_names:
        there = network.module.get_submodule(name)
        assert isinstance(there, nn.Linear)
        head = _fresh_head(network, there.in_features, num_classes)
        network.module.set_submodule(name, head)
        head.train(network.training)
    _forget_answers(network, num_classes)


def set_classifier_weights(network: Network, weight: Tensor, bias: Tensor) -> None:
    """Give a network's classifier other values.

    Args:
        network: ours or wrapped, with a classifier that has a bias; changed in place.
        weight: (classes, embed_dim).
        bias: (classes,).

    Raises:
        InputError: several classifiers, which read and answer each for itself.
    """
    classifier, *others = classifier_layers(network)
    if others:
        raise InputError(
            f"{_called(network)} has {1 + len(others)} classifiers, but the values are for one. Let them begin fresh "
            "(--set classifier=fresh)."
        )
    assert isinstance(classifier, nn.Linear)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)


def set_head(network: Network, num_classes: int) -> None:
    """Put a fresh classifier on, or none.

    Args:
        network: changed in place.
        num_classes: of the classifier; 0 leaves the network without one.

    Raises:
        InputError: it is several networks, or has several classifiers.
    """
    require_single_model(network, "a classifier is put on one")
    if len(classifier_layers(network)) > 1:
        fix = "Name the classes when it is made: create(..., num_classes=N)."
        if not num_classes:
            fix = "For its maps, without them: create(..., features_only=True)."
        raise InputError(f"{_called(network)} has several classifiers, which cannot be swapped as one. {fix}")
    head = _fresh_head(network, network.embed_dim, num_classes) if num_classes else nn.Identity()
    if isinstance(network, WrappedModel):
        network.module.set_submodule(network.classifier_name, head)
    else:
        network.set_submodule("classifier", head)
    head.train(network.training)
    _forget_answers(network, num_classes)


def _fresh_head(network: Network, width: int, num_classes: int) -> nn.Linear:
    like = next(weight for weight in network.parameters() if weight.is_floating_point())
    head = nn.Linear(width, num_classes, device=like.device, dtype=like.dtype)
    if not like.is_meta:
        bound = num_classes**-0.5
        nn.init.uniform_(head.weight, -bound, bound)
        nn.init.zeros_(head.bias)
    return head


def _forget_answers(network: Network, num_classes: int) -> None:
    """What is known of the answers that a network gave before goes with the classifier that gave them."""
    network.num_classes, network.class_names, network.answer = num_classes, (), "softmax"
    network.metrics, network.calibration = {}, None


def _called(network: Network) -> str:
    """What messages call a network."""
    if isinstance(network, WrappedModel):
        return network.source or type(network.module).__name__
    return type(network).__name__


N = TypeVar("N", bound=Network)


def adapt(
    network: N,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    pooling: Pooling | None = None,
) -> N:
    """Give a network a new head, or let it read pictures of other channels. All other weights stay.

    A new head is drawn with PyTorch's generator, uniform within ±1/sqrt(classes), biases 0, as in a fresh network;
    the names of the old classes go, and what it answers is ``softmax`` again. Weights for other channels: see
    ``adapted_weight``; the means and standard deviations of the preprocessing follow (``Preprocessing.with_channels``).

    Args:
        network: ours or wrapped; changed in place.
        num_classes: of the new classifier. 0 removes it; the number there is now keeps it (for fresh weights
            remove it first). None leaves it.
        in_channels: of the pictures; None leaves it.
        pooling: of the last maps, of our networks; another one needs a new head. None leaves it.

    Returns:
        The same network.

    Raises:
        InputError: a number outside its range, a first convolution in groups, pooling of a wrapped network, a wrapped
            network with several classifiers, or a change of an ensemble.
    """
    check_classes_and_channels(num_classes, in_channels)
    if pooling is not None and pooling != _pooling(network):
        if not isinstance(network, EfficientNet):
            raise InputError(f"pooling is {pooling}, but a network of others pools as it does. Leave it out.")
        network.architecture = replace(network.architecture, pooling=pooling)
        network.embed_dim = network.architecture.embed_dim
        classes = network.num_classes if num_classes is None else num_classes
        set_head(network, 0)
        num_classes = classes
    if num_classes is not None and num_classes != network.num_classes:
        set_head(network, num_classes)
    if in_channels is not None and in_channels != network.in_channels:
        _widen(network, in_channels)
    return network


def _pooling(network: Network) -> Pooling:
    return network.architecture.pooling if isinstance(network, EfficientNet) else "mean"


def adapted_weight(weight: Tensor, in_channels: int) -> Tensor:
    """A convolution's weights for pictures of other channels, so that activations keep their scale.

    One channel gets the sum over the old ones: it answers a grey picture as the old weights did three equal
    channels. More take the old ones in turn, scaled by old / new, so that the sum over channels stays when their
    number is a multiple of the old one, and nearly so otherwise.

    Args:
        weight: (out, old, k, k).
        in_channels: new.

    Returns:
        (out, in_channels, k, k).

    Source: timm's ``adapt_input_conv``, which asks for three old channels; here any number.
    """
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    turns = torch.arange(in_channels, device=weight.device) % old
    return weight[:, turns] * (old / in_channels)


def freeze(network: Network, *, stages: int | Literal["all"] = 0, statistics: bool = False) -> None:
    """Let a part of a network keep its weights and statistics, whatever trains it.

    What is frozen gets no gradient and stays in evaluation mode when ``network.train()`` is called: its batch-norms
    neither use nor gather statistics of batches, its dropout and stochastic depth are off. A second call replaces
    the first.

    Args:
        network: ours or wrapped; changed in place.
        stages: 0 freezes nothing; n the stem and the first n stages (see ``layer_groups``), at most all of them:
            then the head trains, which in our networks is the last convolution and the classifier. "all" freezes
            everything but the classifier.
        statistics: freeze every batch-norm's running statistics, those of parts that train too. Their scale and
            shift train where the part does.

    Raises:
        InputError: more stages than there are, "all" of a network without a classifier, or an ensemble.
    """
    require_single_model(network, "what is frozen is a part of one")
    if stages != "all" and (isinstance(stages, bool) or not isinstance(stages, int)):
        raise InputError(f'stages to freeze are {stages!r}, but are a number, or "all" (but the classifier).')
    held = {id(weight) for weight in (_trunk(network) if stages == "all" else _first(network, stages))}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) not in held)
    network.frozen = tuple(_still(network, held, statistics=statistics))
    network.train(network.training)


def _trunk(network: Network) -> list[nn.Parameter]:
    """All parameters but the classifiers'."""
    if network.num_classes == 0:
        raise InputError(
            'stages to freeze are "all", but the network has no classifier that would be left to train'
        )
    kept = {id(weight) for classifier in classifier_layers(network) for weight in classifier.parameters()}
    return [weight for weight in network.parameters() if id(weight) not in kept]


def _first(network: Network, stages: int) -> list[nn.Parameter]:
    """The parameters of the stem and the first stages; none of 0 stages."""
    groups = layer_groups(network)
    most = max(0, len(groups) - 2)  # but the stem and the head
    if not 0 <= stages <= most:
        raise InputError(
            f'stages to freeze are {stages}, but lie in 0 to {most} for this network, or are "all" (but the classifier)'
        )
    return [weight for group in groups[: stages + 1] for weight in group] if stages else []


def _still(network: nn.Module, held: set[int], *, statistics: bool) -> Iterator[str]:
    """Names of the modules that stay in evaluation mode."""
    for name, module in network.named_modules():
        weights = [id(weight) for weight in module.parameters()]
        if name and (
            (weights and held.issuperset(weights)) or (statistics and isinstance(module, _NormBase))
        ):
            yield name


def layer_groups(network: Network) -> list[list[nn.Parameter]]:
    """All parameters in groups from the picture to the classes, for a learning rate that falls with depth.

    With L groups and a decay d, group i takes ``lr * d ** (L - 1 - i)``: the head at the full rate, the stem at
    the lowest.

    Ours: the stem, each stage of the table, and last the head's convolution with the classifier.

    Others: the parts of the module in the order in which it lists them. A normalisation belongs to the part
    before it; all from the part of the (first) classifier on is the last group. The parts of a container count one
    by one: of those named ``blocks``, ``stages``, ``layers`` or ``encoder.layers``, and of the first part if it is
    an ``nn.Sequential`` with most of the weights outside the head (``features`` in torchvision). So a ResNet has a
    stem and four stages, and a transformer a stem and its blocks. A module that only wraps another has its parts.

    Args:
        network: ours or wrapped.

    Returns:
        At least two groups, or one for a module in one piece; none empty but perhaps the last of a network without
        classes; every parameter in exactly one.

    Raises:
        InputError: an ensemble.

    Source: of the decay, arXiv:1801.06146, section 3.2.
    """
    require_single_model(network, "layers are in the order of one")
    if isinstance(network, EfficientNet):
        rest = iter(network.blocks)
        stages = [[next(rest) for _ in range(stage.layers)] for stage in network.architecture.stages]
        parts: list[list[nn.Module]] = [[network.stem], *stages, [network.head, network.classifier]]
    else:
        assert isinstance(network, WrappedModel), "there are two kinds of networks"
        parts = _foreign_parts(network)
    groups: list[list[nn.Parameter]] = []
    seen: set[int] = set()
    for part in parts:
        group = [weight for module in part for weight in module.parameters() if id(weight) not in seen]
        seen.update(map(id, group))
        groups.append(group)
    # Such as a transformer's class token: it belongs to no part, and goes in at the beginning.
    groups[0] = [weight for weight in network.parameters() if id(weight) not in seen] + groups[0]
    return groups


# Containers whose parts are what others call stages or blocks: in torchvision's RegNet trunk_output, in timm's PiT
# transformers, NesT levels, RDNet dense_stages, VOLO network, and features in ReXNet, SelecSLS and VGG.
_OPENED = (
    "blocks", "stages", "layers", "encoder", "encoder.layers", "trunk_output", "transformers", "levels",
    "dense_stages", "network", "features",
)  # fmt: skip


def _foreign_parts(network: WrappedModel) -> list[list[nn.Module]]:
    """Parts of a foreign network, each with the normalisations after it; the last holds the classifiers."""
    parts: list[list[nn.Module]] = []
    in_head = False
    for name, module in _children(network):
        if in_head or (parts and isinstance(module, _NORMS)):
            parts[-1].append(module)
        elif any(f"{one}.".startswith(f"{name}.") for one in network.classifier_names):
            in_head = True
            parts.append([module])
        elif _size(module):
            parts.append([module])
    return parts


_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def _children(network: WrappedModel) -> Iterator[tuple[str, nn.Module]]:
    """The module's children with their names, containers opened; of a module that wraps another, the other's."""
    root, start = network.module, ""
    while (only := _only_child(root)) and f"{network.classifier_name}.".startswith(f"{start}{only}."):
        root, start = root.get_submodule(only), f"{start}{only}."
    children = dict(root.named_children())
    head = children.get(network.classifier_name.removeprefix(start).partition(".")[0])
    trunk_size = _size(root) - (_size(head) if head else 0)
    first = next(name for name, child in children.items() if _size(child))
    opened = set(_OPENED)
    if type(children[first]) is nn.Sequential and children[first] is not head:
        opened |= {first} if 2 * _size(children[first]) > trunk_size else set()

    def walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if prefix + name in opened:
                yield from walk(child, f"{prefix}{name}.")
            else:
                yield start + prefix + name, child

    return walk(root, "")


def _only_child(module: nn.Module) -> str | None:
    """The name of the one child that holds any weights; None where there are more."""
    names = [name for name, child in module.named_children() if _size(child)]
    return names[0] if len(names) == 1 else None


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _widen(network: Network, in_channels: int) -> None:
    require_single_model(network, "other channels are given to one")
    if isinstance(network, WrappedModel):
        stem = network.module.get_submodule(network.stem_name)
    else:
        stem = network.get_submodule("stem.conv")
    assert isinstance(stem, nn.Conv2d)
    if stem.groups != 1:
        raise InputError(f"the first convolution has {stem.groups} groups: its channels cannot be changed")
    if isinstance(network, WrappedModel) and network.in_channels == RGB:
        scale_in_stem(network)
    with torch.no_grad():
        stem.weight = nn.Parameter(
            adapted_weight(stem.weight.detach(), in_channels), requires_grad=stem.weight.requires_grad
        )
    stem.in_channels = network.in_channels = in_channels
    if isinstance(network, WrappedModel) and in_channels == RGB:
        scale_before_stem(network)
    network.preprocessing = network.preprocessing.with_channels(in_channels)
    network.metrics, network.calibration = {}, None  # of other pictures
