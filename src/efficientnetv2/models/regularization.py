"""Dropout, stochastic depth and batch-norm momentum of a network in place, ours or anyone's.

A setting changes them from step to step without rebuilding anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from efficientnetv2.models.blocks import DropPath
from efficientnetv2.progressive.schedule import Setting
from efficientnetv2.utils.errors import InputError, count_of, some

# Stochastic depth elsewhere: how the class's name ends, and the attribute that holds the rate. By name, because no
# package needs to be loaded to know that a network has none of its modules, and because timm's class is copied more
# often than imported: transformers has a BeitDropPath, a SwinDropPath and so on.
_FOREIGN = {"StochasticDepth": "p", "DropPath": "drop_prob"}

# What a foreign module's share of the rate was when it was first seen. It is kept on the module, so that
# it outlives a rate of 0 and goes along into copies of the network.
_SHARE = "_efficientnetv2_share"
_ASSUMED = "_efficientnetv2_assumed"


@dataclass(frozen=True)
class RegularizationReport:
    """What ``apply_regularization`` reached.

    Args:
        dropout_modules: names of those it set; of a network that drops without a module, of the number it drops by.
        drop_path_modules: names of those it set; within the blocks that stochastic depth may leave out.
        notes: what a user should know: that nothing was there to set, or not in its place, which share was assumed, or
            what of the setting is left to the loop.
    """

    dropout_modules: tuple[str, ...]
    drop_path_modules: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In words: ``dropout in 'classifier.0'; stochastic depth in 16 blocks``, and the notes."""
        said = []
        if self.dropout_modules:
            said.append(f"dropout in {some(self.dropout_modules, most=2)}")
        if self.drop_path_modules:
            blocks = {name.rpartition(".")[0] for name in self.drop_path_modules}
            said.append(f"stochastic depth in {count_of(len(blocks), 'block')}")
        return "; ".join([*said, *self.notes]) or "nothing"


def apply_regularization(
    module: nn.Module,
    setting: Setting | None = None,
    *,
    dropout: float | None = None,
    drop_path: float | None = None,
) -> RegularizationReport:
    """Set dropout and stochastic depth of a network, by the type of its modules.

    Stochastic depth: of ours, of torchvision (``StochasticDepth``), of timm (``DropPath``) and of others whose class's
    name ends so and which hold their rate as those do (``p``, ``drop_prob``). Ours drop block i of N with
    ``drop_path * i/N``. The others keep the proportions they were built with, the largest at ``drop_path``; where all
    were built with 0, they rise evenly from the first to the last. A network that was built without such modules (timm
    does so at a rate of 0) gets none.

    Dropout: every ``nn.Dropout``, ``nn.Dropout2d``, ``nn.AlphaDropout`` and so on built with more than 0, in these
    proportions too: what a network drops within its blocks stays as much less than before its classifier. Where all
    were built with 0 it is the one before the classifier; where none stands there, ``drop_rate``, by which many of
    timm's networks drop before the classifier without a module; without that, too, the last of all, and a note says
    that it lies in a block.

    Args:
        module: the network.
        setting: of the step. A rate of its that is None is left as the network has it. What it asks of pictures and
            labels is for the loop to do, and a note names it; not the size, which the pictures have.
        dropout: instead of a setting, where a network is built and there is no step yet; a probability, in [0, 1).
        drop_path: likewise; a rate, in [0, 1).

    Raises:
        InputError: a value outside its range, or a setting and a rate beside it.
    """
    if setting is not None:
        if (dropout, drop_path) != (None, None):
            raise InputError(
                "apply_regularization got a setting and a rate beside it. Give the setting alone."
            )
        dropout, drop_path = setting.dropout, setting.drop_path
    for name, value in (("dropout", dropout), ("drop_path", drop_path)):
        if value is not None and not 0 <= value < 1:
            raise InputError(f"{name} is {value:g}, but a probability of leaving out lies in [0, 1)")
    named = dict(module.named_modules())
    dropouts, dropout_notes = _set_dropout(named, dropout) if dropout is not None else ((), [])
    drop_paths, drop_path_notes = _set_drop_path(named, drop_path) if drop_path is not None else ((), [])
    left = [] if setting is None else _for_the_loop(setting)
    return RegularizationReport(dropouts, drop_paths, (*dropout_notes, *drop_path_notes, *left))


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


def _for_the_loop(setting: Setting) -> list[str]:
    """What of a setting no network holds, in a sentence; nothing where all of it is off."""
    names = ("randaugment", "mixup_alpha", "cutmix_alpha", "cutout", "label_smoothing")
    asked = [f"{name} {value:g}" for name in names if (value := getattr(setting, name))]
    return [f"for the loop to do: {', '.join(asked)}"] if asked else []


def _rate_attribute(module: nn.Module) -> str | None:
    """The name under which a foreign module of stochastic depth holds its rate; None for all others."""
    for kind in type(module).__mro__:
        for ending, attribute in _FOREIGN.items():
            if kind.__name__.endswith(ending) and isinstance(getattr(module, attribute, None), float | int):
                return attribute
    return None


def _note_shares(modules: list[nn.Module]) -> bool:
    """Write on each module its share of the rate, once. True: not as built, but assumed."""
    if not all(hasattr(module, _SHARE) for module in modules):
        rates = [float(getattr(module, str(_rate_attribute(module)))) for module in modules]
        most = max(rates)
        for position, (module, rate) in enumerate(zip(modules, rates, strict=True), start=1):
            setattr(module, _SHARE, rate / most if most > 0 else position / len(modules))
            setattr(module, _ASSUMED, most == 0)
    return any(getattr(module, _ASSUMED) for module in modules)


def _set_dropout(named: dict[str, nn.Module], rate: float) -> tuple[tuple[str, ...], list[str]]:
    """Set the dropouts that are to be set; their names, and what a user should know."""
    every = {name: m for name, m in named.items() if isinstance(m, nn.modules.dropout._DropoutNd)}
    if not all(hasattr(dropout, _SHARE) for dropout in every.values()):
        most = max(dropout.p for dropout in every.values())
        for dropout in every.values():
            setattr(dropout, _SHARE, dropout.p / most if most > 0 else 0.0)
    shares = {name: share for name, m in every.items() if (share := float(getattr(m, _SHARE)))}
    last = list(every)[-1:]
    notes: list[str] = []
    if len(set(shares.values())) > 1:
        notes.append(
            "dropout was built with several rates: the largest is the setting's, the others keep their share"
        )
    if not shares and not (last and _before_classifier(named, last[0])):
        for name, other in named.items():
            if _drops_by_itself(other):
                other.drop_rate = rate  # type: ignore[assignment]
                return (f"{name}.drop_rate".removeprefix("."),), []
        if rate > 0 and last:
            notes.append("dropout lies in the last block that has one, for none stands before the classifier")
        elif rate > 0:
            notes.append(f"dropout {rate:g} has no effect: the network has no module for it that is known")
    for name, share in (shares or dict.fromkeys(last, 1.0)).items():
        every[name].p = rate * share
    return tuple(shares or last), notes


def _set_drop_path(named: dict[str, nn.Module], rate: float) -> tuple[tuple[str, ...], list[str]]:
    """Set the modules of stochastic depth; their names, and what a user should know."""
    notes: list[str] = []
    drop_paths = {name: m for name, m in named.items() if isinstance(m, DropPath)}
    for path in drop_paths.values():
        path.rate = rate * path.depth_fraction
    foreign = {name: m for name, m in named.items() if _rate_attribute(m) is not None}
    if foreign and _note_shares(list(foreign.values())):
        notes.append("stochastic depth was built with rate 0 throughout: it rises evenly over its modules")
    for other in foreign.values():
        setattr(other, str(_rate_attribute(other)), rate * getattr(other, _SHARE))
    if not drop_paths and not foreign and rate > 0:
        notes.append(
            f"drop_path {rate:g} has no effect: the network has no module for it that is known "
            "(timm leaves them out unless it builds the network with drop_path_rate above 0)"
        )
    return (*drop_paths, *foreign), notes


def _before_classifier(named: dict[str, nn.Module], dropout: str) -> bool:
    """Whether nothing learns after it but the classifier: one layer, or several linear ones.

    In the order in which the network lists its parts: which of them runs when is not known.
    """
    names = list(named)
    after = [named[name] for name in names[names.index(dropout) + 1 :]]
    learning = [m for m in after if next(m.parameters(recurse=False), None) is not None]
    return len(learning) <= 1 or all(isinstance(m, nn.Linear) for m in learning)


def _drops_by_itself(module: nn.Module) -> bool:
    """Whether it is a network of timm's, which may drop by a number that it holds."""
    return (
        type(module).__module__.split(".")[0] == "timm"
        and hasattr(module, "get_classifier")
        and isinstance(getattr(module, "drop_rate", None), float | int)
    )
