"""The classifiers of a network: found, given other values, taken away, put on anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efficientnetv2.base.errors import InputError
from efficientnetv2.models.ensemble import refuse_together
from efficientnetv2.models.foreign import Foreign
from efficientnetv2.models.network import Network


def classifiers_of(network: Network) -> list[nn.Module]:
    """The layers that give the classes: one, or several whose answers the network puts together, as distilled ones do.

    Args:
        network: ours or wrapped; without classes an ``nn.Identity`` stands there.
    """
    if isinstance(network, Foreign):
        return [network.module.get_submodule(name) for name in network.classifier_names]
    return [network.get_submodule("classifier")]


def renew_classifiers(network: Foreign, num_classes: int) -> None:
    """Give a wrapped network of several classifiers as many new ones, each drawn as ``fit`` draws one.

    ``fit`` takes one away and puts another on; between the two, several would leave a network that answers nothing.

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


def put_classifier(network: Network, weight: Tensor, bias: Tensor) -> None:
    """Give a network's classifier other values.

    Args:
        network: ours or wrapped, with a classifier that has a bias; changed in place.
        weight: (classes, embed_dim).
        bias: (classes,).

    Raises:
        InputError: several classifiers, which read and answer each for itself.
    """
    classifier, *others = classifiers_of(network)
    if others:
        raise InputError(
            f"{_called(network)} has {1 + len(others)} classifiers, but the values are for one. Let them begin fresh "
            "(--set classifier=fresh)."
        )
    assert isinstance(classifier, nn.Linear)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)


def put_head(network: Network, num_classes: int) -> None:
    """Put a fresh classifier on, or none.

    Args:
        network: changed in place.
        num_classes: of the classifier; 0 leaves the network without one.

    Raises:
        InputError: it is several networks, or has several classifiers.
    """
    refuse_together(network, "a classifier is put on one")
    if len(classifiers_of(network)) > 1:
        fix = "Name the classes when it is made: create(..., num_classes=N)."
        if not num_classes:
            fix = "For its maps, without them: create(..., features_only=True)."
        raise InputError(f"{_called(network)} has several classifiers, which cannot be swapped as one. {fix}")
    head = _fresh_head(network, network.embed_dim, num_classes) if num_classes else nn.Identity()
    if isinstance(network, Foreign):
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
    if isinstance(network, Foreign):
        return network.source or type(network.module).__name__
    return type(network).__name__
