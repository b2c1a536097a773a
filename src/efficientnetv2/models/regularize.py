"""Dropout, stochastic depth and batch-norm momentum of a network in place, ours or anyone's.

A setting changes them from step to step without rebuilding anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from efficientnetv2.base.errors import InputError
from efficientnetv2.models.blocks import DropPath

# Stochastic depth elsewhere: (package, class) and the attribute that holds the rate. By name, because neither
# package needs to be loaded, nor timm installed, to know that a network has none of its modules.
_FOREIGN = {("torchvision", "StochasticDepth"): "p", ("timm", "DropPath"): "drop_prob"}

# What a foreign module's share of the rate was when it was first seen. It is kept on the module, so that
# it outlives a rate of 0 and goes along into copies of the network.
_SHARE = "_efficientnetv2_share"
_ASSUMED = "_efficientnetv2_assumed"


@dataclass(frozen=True)
class Controlled:
    """What ``apply_setting`` reached.

    Args:
        dropout_modules: how many it set.
        drop_path_modules: how many it set; blocks that stochastic depth may leave out.
        notes: what a user should know: that nothing was there to set, or which share was assumed.
    """

    dropout_modules: int
    drop_path_modules: int
    notes: tuple[str, ...] = ()


def apply_setting(module: nn.Module, *, dropout: float, drop_path: float) -> Controlled:
    """Set dropout and stochastic depth of a network, by the type of its modules.

    Stochastic depth: of ours, of torchvision (``StochasticDepth``) and of timm (``DropPath``). Ours drop
    block i of N with ``drop_path * i/N``. The others keep the proportions they were built with, the
    largest at ``drop_path``; where all were built with 0, they rise evenly from the first to the last.
    A network that was built without such modules (timm does so at a rate of 0) gets none.

    Dropout: every ``nn.Dropout`` built with more than 0; where all were built with 0 the last alone, which is
    the one before the classifier in networks that have one there; where there is none, ``drop_rate``, by
    which many of timm's networks drop before the classifier without a module.

    Args:
        module: the network.
        dropout: probability, in [0, 1).
        drop_path: rate, in [0, 1).

    Raises:
        InputError: a value outside its range.
    """
    for name, value in (("dropout", dropout), ("drop_path", drop_path)):
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value:g}, but a probability of leaving out lies in [0, 1)")
    dropouts = _set_dropout(module, dropout)
    notes = []
    if dropouts == 0 and dropout > 0:
        notes.append(f"dropout {dropout:g} has no effect: the network has no module for it")
    drop_paths = [m for m in module.modules() if isinstance(m, DropPath)]
    for path in drop_paths:
        path.rate = drop_path * path.depth_fraction
    foreign = [m for m in module.modules() if _rate_attribute(m) is not None]
    if foreign and _note_shares(foreign):
        notes.append("stochastic depth was built with rate 0 throughout: it rises evenly over its modules")
    for other in foreign:
        setattr(other, str(_rate_attribute(other)), drop_path * getattr(other, _SHARE))
    if not drop_paths and not foreign and drop_path > 0:
        notes.append(
            f"drop_path {drop_path:g} has no effect: the network has no module for it "
            "(timm leaves them out unless it builds the network with drop_path_rate above 0)"
        )
    return Controlled(dropouts, len(drop_paths) + len(foreign), tuple(notes))


def set_batch_norm(module: nn.Module, *, momentum: float) -> int:
    """Set how fast every batch-norm's running statistics follow.

    Args:
        module: the network.
        momentum: share of the new batch, in (0, 1], as PyTorch means it: 1 minus TensorFlow's.

    Returns:
        How many batch-norms were set.

    Raises:
        InputError: a momentum outside (0, 1].
    """
    if not 0 < momentum <= 1:
        raise InputError(f"momentum is {momentum:g}, but the share of the new batch lies in (0, 1]")
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = momentum
    return len(norms)


def _rate_attribute(module: nn.Module) -> str | None:
    """The name under which a foreign module of stochastic depth holds its rate; None for all others."""
    keys = ((kind.__module__.split(".")[0], kind.__name__) for kind in type(module).__mro__)
    return next((_FOREIGN[key] for key in keys if key in _FOREIGN), None)


def _note_shares(modules: list[nn.Module]) -> bool:
    """Write on each module its share of the rate, once. True: not as built, but assumed."""
    if not all(hasattr(module, _SHARE) for module in modules):
        rates = [float(getattr(module, str(_rate_attribute(module)))) for module in modules]
        most = max(rates)
        for position, (module, rate) in enumerate(zip(modules, rates, strict=True), start=1):
            setattr(module, _SHARE, rate / most if most > 0 else position / len(modules))
            setattr(module, _ASSUMED, most == 0)
    return any(getattr(module, _ASSUMED) for module in modules)


def _set_dropout(module: nn.Module, rate: float) -> int:
    """Set the dropouts that are to be set; how many."""
    every = [m for m in module.modules() if isinstance(m, nn.Dropout)]
    for dropout in every:
        if not hasattr(dropout, _SHARE):
            setattr(dropout, _SHARE, float(dropout.p > 0))
    chosen = [m for m in every if getattr(m, _SHARE)] or every[-1:]
    for dropout in chosen:
        dropout.p = rate
    if chosen:
        return len(chosen)
    for other in module.modules():
        if type(other).__module__.split(".")[0] == "timm" and isinstance(
            getattr(other, "drop_rate", None), float | int
        ):
            other.drop_rate = rate  # type: ignore[assignment]
            return 1
    return 0
