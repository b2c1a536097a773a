"""Dropout, stochastic depth and batch-norm momentum of any model, changed in place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from efficientnetv2.models.blocks import DropPath
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.utils.errors import InputError, pluralize, shorten

# Stochastic depth of other libraries: end of the class name, and the attribute that holds the rate. Matched by name
# because timm's class is copied more often than imported: transformers has BeitDropPath, SwinDropPath and so on.
_RATE_ATTRIBUTES = {"StochasticDepth": "p", "DropPath": "drop_prob"}

# A module's fraction of the rate when it was first seen. Stored on the module, so that it outlives a rate of 0 and is
# copied with the model.
_FRACTION = "_efficientnetv2_share"
_ASSUMED = "_efficientnetv2_assumed"
_LOOP = ("randaugment", "mixup_alpha", "cutmix_alpha", "cutout", "label_smoothing")


@dataclass(frozen=True)
class RegularizationReport:
    """What ``apply_regularization`` has set; ``notes``: what had no effect, was assumed, or is left to the loop."""

    dropout_modules: tuple[str, ...]  # for a model that drops without a module, the name of the attribute
    drop_path_modules: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In words: ``dropout in 'classifier.0'; stochastic depth in 16 blocks``, and the notes."""
        parts = []
        if self.dropout_modules:
            parts.append(f"dropout in {shorten(self.dropout_modules, most=2)}")
        if self.drop_path_modules:
            blocks = {name.rpartition(".")[0] for name in self.drop_path_modules}
            parts.append(f"stochastic depth in {pluralize(len(blocks), 'block')}")
        return "; ".join([*parts, *self.notes]) or "nothing"


def apply_regularization(
    module: nn.Module,
    setting: StepSettings | None = None,
    *,
    dropout: float | None = None,
    drop_path: float | None = None,
) -> RegularizationReport:
    """Set dropout and stochastic depth of a model, by the type of its modules.

    Stochastic depth: our blocks drop block i of N with probability ``drop_path * i / N``. Modules of torchvision
    (``StochasticDepth``), timm (``DropPath``) and copies of them keep the proportions they were built with, the largest
    at ``drop_path``; if all were built with 0, the rate rises evenly with depth. A model without such modules (timm
    builds none at rate 0) gets none.

    Dropout: every dropout module built with more than 0 keeps its proportion. If all were built with 0, the module
    before the classifier; without one, ``drop_rate``, by which many timm models drop without a module; otherwise the
    last module, and a note reports that it is in a block.

    Args:
        setting: Values of one training step. Image size and what concerns images and labels are left to the loop.
        dropout: Instead of ``setting``: probability, in [0, 1). None keeps the model's.
        drop_path: Instead of ``setting``: rate, in [0, 1). None keeps the model's.

    Raises:
        InputError: A value is out of range, the setting is a whole schedule, or both a setting and a rate are given.

    Example::

        import efficientnetv2 as ev2

        network, schedule = ev2.create("efficientnetv2_s"), ev2.paper_schedule("efficientnetv2_s")
        ev2.apply_regularization(network, schedule.at(step=1_000, total_steps=350_000))
    """
    if setting is not None:
        if (dropout, drop_path) != (None, None):
            raise InputError("apply_regularization takes a schedule value or rates, not both.")
        if not isinstance(setting, StepSettings):
            raise InputError(
                f"`setting` is of type {type(setting).__name__}, but must be StepSettings, the values of one step. "
                "Pass those of a schedule: schedule.at(step, total_steps=steps)."
            )
        dropout, drop_path = setting.dropout, setting.drop_path
    for name, value in (("dropout", dropout), ("drop_path", drop_path)):
        if value is not None and not 0 <= value < 1:
            raise InputError(f"{name} is {value:g}, but must be in [0, 1).")
    modules = dict(module.named_modules())
    dropouts, dropout_notes = _set_dropout(modules, dropout) if dropout is not None else ((), [])
    drop_paths, drop_path_notes = _set_drop_path(modules, drop_path) if drop_path is not None else ((), [])
    loop = [f"{name} {value:g}" for name in _LOOP if setting and (value := getattr(setting, name))]
    notes = [f"for the training loop: {', '.join(loop)}"] if loop else []
    if setting is not None and not module.training and (dropout or drop_path):
        notes.insert(0, "no effect in evaluation mode: call train() of the model")
    return RegularizationReport(dropouts, drop_paths, (*dropout_notes, *drop_path_notes, *notes))


def has_rate(module: nn.Module) -> bool:
    """Whether a module is dropout or stochastic depth, which do nothing in evaluation."""
    return isinstance(module, DropPath | nn.modules.dropout._DropoutNd) or _rate_attribute(module) is not None


def _rate_attribute(module: nn.Module) -> str | None:
    """Attribute that holds the rate of another library's stochastic depth; None for other modules."""
    for base in type(module).__mro__:
        for ending, attribute in _RATE_ATTRIBUTES.items():
            if base.__name__.endswith(ending) and isinstance(getattr(module, attribute, None), float | int):
                return attribute
    return None


def _set_dropout(modules: dict[str, nn.Module], rate: float) -> tuple[tuple[str, ...], list[str]]:
    """Names of the dropouts that were set, and notes."""
    dropouts = {name: m for name, m in modules.items() if isinstance(m, nn.modules.dropout._DropoutNd)}
    last = list(dropouts)[-1:]
    if not all(hasattr(dropout, _FRACTION) for dropout in dropouts.values()):
        largest = max(dropout.p for dropout in dropouts.values())
        for name, dropout in dropouts.items():
            only = largest == 0 and [name] == last and _is_before_classifier(modules, name)
            setattr(dropout, _FRACTION, dropout.p / largest if largest > 0 else float(only))
    fractions = {name: value for name, m in dropouts.items() if (value := float(getattr(m, _FRACTION)))}
    notes: list[str] = []
    if len(set(fractions.values())) > 1:
        notes.append("dropout was built with several rates: the largest is set, the others keep their proportion")
    if not fractions:
        for name, module in modules.items():
            timm = type(module).__module__.split(".")[0] == "timm" and hasattr(module, "get_classifier")
            if timm and isinstance(getattr(module, "drop_rate", None), float | int):
                module.drop_rate = rate  # type: ignore[assignment]
                return (f"{name}.drop_rate".removeprefix("."),), []
        if rate > 0:
            without = f"dropout {rate:g} has no effect: the model has no known module for it"
            notes.append("dropout is set in the last block, since none is before the classifier" if last else without)
    for name, fraction in (fractions or dict.fromkeys(last, 1.0)).items():
        dropouts[name].p = rate * fraction
    return tuple(fractions or last), notes


def _set_drop_path(modules: dict[str, nn.Module], rate: float) -> tuple[tuple[str, ...], list[str]]:
    """Names of the stochastic depth modules, and notes."""
    notes: list[str] = []
    ours = {name: m for name, m in modules.items() if isinstance(m, DropPath)}
    for path in ours.values():
        path.rate = rate * path.depth_fraction
    others = {name: (m, attribute) for name, m in modules.items() if (attribute := _rate_attribute(m))}
    if not all(hasattr(module, _FRACTION) for module, _ in others.values()):
        rates = [float(getattr(module, attribute)) for module, attribute in others.values()]
        largest = max(rates)
        for position, ((module, _), built) in enumerate(zip(others.values(), rates, strict=True), start=1):
            setattr(module, _FRACTION, built / largest if largest > 0 else position / len(others))
            setattr(module, _ASSUMED, largest == 0)
    if any(getattr(module, _ASSUMED) for module, _ in others.values()):
        notes.append("stochastic depth was built with rate 0 throughout: it rises evenly over its modules")
    for module, attribute in others.values():
        setattr(module, attribute, rate * getattr(module, _FRACTION))
    if not ours and not others and rate > 0:
        notes.append(f"drop_path {rate:g} has no effect: the model has no known module for it")
    return (*ours, *others), notes


def _is_before_classifier(modules: dict[str, nn.Module], dropout: str) -> bool:
    """Whether only the classifier has weights after it: one layer, or several linear ones, in order of definition."""
    names = list(modules)
    after = [modules[name] for name in names[names.index(dropout) + 1 :]]
    trainable = [m for m in after if next(m.parameters(recurse=False), None) is not None]
    return len(trainable) <= 1 or all(isinstance(m, nn.Linear) for m in trainable)
