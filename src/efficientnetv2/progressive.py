"""Progressive learning with adaptive regularization: Algorithm 1 of arXiv:2104.00298.

Image size and regularization grow together over a run: small pictures with little regularization
first, large ones with much of it last. Everything here is a pure function of the step, so a setting
can be asked for at any step, by any process, without training to get there::

    plan = paper("efficientnetv2_s")
    plan.at(step=0, steps=350_000).image_px       # 128
    plan.stage(3).randaugment                     # 15.0
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.base.errors import InputError, did_you_mean


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Ramp:
    """A quantity that goes linearly from its value at the first stage to that at the last.

    Args:
        start: value at the first stage.
        end: value at the last stage.
        continuous: grow at every step instead of once per stage.
    """

    start: float
    end: float
    continuous: bool = False

    def at(self, fraction: float) -> float:
        """The value at a fraction of the way: 0 is the start, 1 the end."""
        return self.start + (self.end - self.start) * fraction


Quantity = Ramp | float


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Setting:
    """What holds at one step. It travels with the batch, from the sampler to the loss.

    Args:
        image_px: side of the training picture, in pixels.
        randaugment: magnitude, 0 to 30 (10 is the full range of most operations); None is off.
        mixup_alpha: of Beta(alpha, alpha); 0 is off.
        cutmix_alpha: of Beta(alpha, alpha); 0 is off.
        cutout: side of the hole over the picture's side, 0 to 1; 0 is off.
        dropout: probability before the classifier.
        drop_path: probability at the last block of stochastic depth; 1 minus the survival.
        label_smoothing: share of the label given to all classes alike.
        others: further quantities, for a training loop of one's own.
    """

    image_px: int
    randaugment: float | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    cutout: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    others: dict[str, float] = Field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = TypeAdapter(Setting).dump_python(self, mode="json")
        return plain


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Progressive:
    """M stages of N/M steps: ``S_i = S_0 + (S_e - S_0) * i/(M-1)``, for size and regularizers alike.

    A plain number holds over the whole run; a ``Ramp`` grows. With one stage every ramp stands at its
    end, which is training at a fixed setting.

    Args:
        image_px: side of the training picture, in pixels.
        stages: M, at least 1.
        px_multiple: sizes are rounded to a multiple of this.
        randaugment, mixup_alpha, cutmix_alpha, cutout, dropout, drop_path, label_smoothing: see ``Setting``.
        others: any further quantity by name.

    Raises:
        pydantic.ValidationError: a value outside its range, or no stage.

    Source: arXiv:2104.00298, Algorithm 1.
    """

    image_px: Quantity
    stages: int = 1
    px_multiple: int = 1
    randaugment: Quantity | None = None
    mixup_alpha: Quantity = 0.0
    cutmix_alpha: Quantity = 0.0
    cutout: Quantity = 0.0
    dropout: Quantity = 0.0
    drop_path: Quantity = 0.0
    label_smoothing: Quantity = 0.0
    others: dict[str, Quantity] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _in_range(self) -> Progressive:
        if self.stages < 1:
            raise ValueError(f"stages is {self.stages}, but a run has at least 1")
        if self.px_multiple < 1:
            raise ValueError(f"px_multiple is {self.px_multiple}, but is at least 1")
        for name, (low, high) in _RANGES.items():
            quantity = getattr(self, name)
            for value in _ends(quantity):
                if not low <= value <= high:
                    raise ValueError(f"{name} is {value:g}, but lies between {low:g} and {high:g}")
        return self

    def at(self, step: int, *, steps: int) -> Setting:
        """The setting of one step of a run.

        Args:
            step: 0 ≤ step < steps.
            steps: of the whole run, at least one per stage.

        Raises:
            InputError: the step lies outside the run, or a stage would get no step.
        """
        if steps < self.stages:
            raise InputError(
                f"{self.stages} stages do not fit into {steps} steps: each needs at least one. "
                "Train longer (--epochs), or set progressive.stages lower."
            )
        if not 0 <= step < steps:
            raise InputError(f"step {step} lies outside a run of {steps} steps (0 to {steps - 1})")
        stage = step * self.stages // steps
        return self._setting(stage, run_fraction=step / (steps - 1) if steps > 1 else 1.0)

    def stage(self, index: int) -> Setting:
        """The setting at the first step of a stage (ramps that grow at every step stand there too).

        Raises:
            InputError: no such stage.
        """
        if not 0 <= index < self.stages:
            raise InputError(f"stage {index} does not exist: there are {self.stages}, from 0")
        return self._setting(index, run_fraction=index / self.stages if self.stages > 1 else 1.0)

    @property
    def last(self) -> Setting:
        """The setting at the last step of a run."""
        return self._setting(self.stages - 1, run_fraction=1.0)

    @property
    def continuous(self) -> bool:
        """Whether anything grows at every step, so that no two steps have the same setting."""
        quantities = [*vars(self).values(), *self.others.values()]
        return any(isinstance(quantity, Ramp) and quantity.continuous for quantity in quantities)

    def with_image_px(self, end_px: int) -> Progressive:
        """The same schedule, its sizes scaled so that the last stage trains at ``end_px``."""
        start, end = _ends(self.image_px)
        multiple = self.px_multiple if end_px % self.px_multiple == 0 else 1
        if start == end:
            return replace(self, image_px=float(end_px), px_multiple=multiple)
        ramp = Ramp(
            start * end_px / end, end_px, isinstance(self.image_px, Ramp) and self.image_px.continuous
        )
        return replace(self, image_px=ramp, px_multiple=multiple)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = TypeAdapter(Progressive).dump_python(self, mode="json")
        return plain

    def _setting(self, stage: int, run_fraction: float) -> Setting:
        stage_fraction = stage / (self.stages - 1) if self.stages > 1 else 1.0

        def now(quantity: Quantity) -> float:
            if not isinstance(quantity, Ramp):
                return float(quantity)
            return quantity.at(run_fraction if quantity.continuous else stage_fraction)

        px = now(self.image_px)
        return Setting(
            image_px=max(self.px_multiple, round(px / self.px_multiple) * self.px_multiple),
            randaugment=None if self.randaugment is None else now(self.randaugment),
            mixup_alpha=now(self.mixup_alpha),
            cutmix_alpha=now(self.cutmix_alpha),
            cutout=now(self.cutout),
            dropout=now(self.dropout),
            drop_path=now(self.drop_path),
            label_smoothing=now(self.label_smoothing),
            others={name: now(quantity) for name, quantity in self.others.items()},
        )


# What a value may be. The upper end of RandAugment's magnitude is that of the common implementations
# (the paper goes to 25); 4,096 px is where a single picture's activations outgrow today's GPUs: ours.
_RANGES = {
    "image_px": (1, 4096),
    "randaugment": (0, 30),
    "mixup_alpha": (0, 100),
    "cutmix_alpha": (0, 100),
    "cutout": (0, 1),
    "dropout": (0, 0.99),
    "drop_path": (0, 0.99),
    "label_smoothing": (0, 0.99),
}


def _ends(quantity: Quantity | None) -> tuple[float, ...]:
    if quantity is None:
        return ()
    return (quantity.start, quantity.end) if isinstance(quantity, Ramp) else (quantity, quantity)


def paper(name: str) -> Progressive:
    """The settings of the paper: sizes from 128 px, every regularizer growing, dropout too.

    Source: arXiv:2104.00298, Table 6 and section 5.1 (four stages; survival 0.8 throughout).

    Raises:
        InputError: the paper gives no progressive settings for that network.
    """
    #                          image px        RandAugment  mixup          dropout
    table = {
        "efficientnetv2_s": ((128, 300), (5, 15), (0, 0.0), (0.1, 0.3)),
        "efficientnetv2_m": ((128, 380), (5, 20), (0, 0.2), (0.1, 0.4)),
        "efficientnetv2_l": ((128, 380), (5, 25), (0, 0.4), (0.1, 0.5)),
    }
    px, randaugment, mixup, dropout = _row(table, name, "Table 6 of the paper")
    return Progressive(
        stages=4,
        image_px=Ramp(*px),
        randaugment=Ramp(*randaugment),
        mixup_alpha=Ramp(*mixup) if any(mixup) else 0.0,
        dropout=Ramp(*dropout),
        drop_path=0.2,
        label_smoothing=0.1,
    )


def released(name: str) -> Progressive:
    """The settings of the authors' code: it starts a quarter of the way up, and dropout stays fixed.

    Sizes are ``128 + (train_px - 128) * (stage + 1) / 4``: S trains at 171, 214, 257, 300.
    B0 to B3 use AutoAugment there instead of RandAugment, which these settings leave to the recipe.

    Source: google/automl, efficientnetv2 (the released configurations).

    Raises:
        InputError: no such released network.
    """
    #                     train px  RandAugment  mixup, cutmix  dropout
    table = {
        "efficientnetv2_s": (300, 10, 0.0, 0.2),
        "efficientnetv2_m": (384, 15, 0.2, 0.3),
        "efficientnetv2_l": (384, 20, 0.5, 0.4),
        "efficientnetv2_xl": (384, 20, 0.5, 0.4),
        "efficientnetv2_b0": (192, None, 0.0, 0.2),
        "efficientnetv2_b1": (192, None, 0.0, 0.2),
        "efficientnetv2_b2": (208, None, 0.0, 0.3),
        "efficientnetv2_b3": (240, None, 0.0, 0.3),
    }
    train_px, randaugment, mix, dropout = _row(table, name, "the released configurations")
    return Progressive(
        stages=4,
        image_px=Ramp(128 + (train_px - 128) / 4, train_px),
        randaugment=None if randaugment is None else Ramp(5, randaugment),
        mixup_alpha=Ramp(0, mix) if mix else 0.0,
        cutmix_alpha=Ramp(0, mix) if mix else 0.0,
        dropout=dropout,
        drop_path=0.2,
        label_smoothing=0.1,
    )


def _row(table: dict[str, tuple[Any, ...]], name: str, where: str) -> tuple[Any, ...]:
    if name not in table:
        raise InputError(
            f"{where} has no progressive settings for '{name}'{did_you_mean(name, table)} "
            f"It has them for {', '.join(table)}."
        )
    return table[name]
