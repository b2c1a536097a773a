"""Published schedules of progressive learning: the paper's Table 6, and the authors' code."""

from __future__ import annotations

from typing import Any

from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.utils.errors import InputError, did_you_mean


def paper_schedule(name: str) -> ProgressiveSchedule:
    """The schedule of the paper for S, M or L: sizes from 128 px, every regularizer grows, dropout too.

    Source: arXiv:2104.00298, Table 6 and section 5.1 (four stages; survival 0.8 throughout). The label
        smoothing is from the released code.

    Raises:
        InputError: The paper has no schedule for that model.

    Example::

        import efficientnetv2 as ev2

        ev2.paper_schedule("efficientnetv2_s").at(0, total_steps=350_000).image_size  # 128
    """
    #                          image px        RandAugment  mixup          dropout
    table = {
        "efficientnetv2_s": ((128, 300), (5, 15), (0, 0.0), (0.1, 0.3)),
        "efficientnetv2_m": ((128, 380), (5, 20), (0, 0.2), (0.1, 0.4)),
        "efficientnetv2_l": ((128, 380), (5, 25), (0, 0.4), (0.1, 0.5)),
    }
    px, randaugment, mixup, dropout = _row(table, name, "Table 6 of the paper")
    return ProgressiveSchedule(
        stages=4,
        image_size=Ramp(*px),
        randaugment=Ramp(*randaugment),
        mixup_alpha=Ramp(*mixup) if any(mixup) else 0.0,
        dropout=Ramp(*dropout),
        drop_path=0.2,
        label_smoothing=0.1,
    )


def released_schedule(name: str) -> ProgressiveSchedule:
    """The schedule of the authors' code: it starts a quarter of the way up, and dropout is fixed.

    Sizes are ``128 + (train_px - 128) * (stage + 1) / 4``: S trains at 171, 214, 257, 300. B0 to B3 have AutoAugment
    there instead of RandAugment, which is part of the recipe.

    Example::

        import efficientnetv2 as ev2

        schedule = ev2.released_schedule("efficientnetv2_s")
        [schedule.stage(number).image_size for number in range(4)]  # [171, 214, 257, 300]

    Source: google/automl, efficientnetv2 (the released configurations).

    Raises:
        InputError: No such released model.
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
    return ProgressiveSchedule(
        stages=4,
        image_size=Ramp(128 + (train_px - 128) / 4, train_px),
        randaugment=None if randaugment is None else Ramp(5, randaugment),
        mixup_alpha=Ramp(0, mix) if mix else 0.0,
        cutmix_alpha=Ramp(0, mix) if mix else 0.0,
        dropout=dropout,
        drop_path=0.2,
        label_smoothing=0.1,
    )


def _row(table: dict[str, tuple[Any, ...]], name: str, where: str) -> tuple[Any, ...]:
    if name not in table:
        near = did_you_mean(name, table)
        raise InputError(f"{where} has no progressive schedule for '{name}'{near} It has them for {', '.join(table)}.")
    return table[name]
