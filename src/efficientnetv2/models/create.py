"""A network from its name."""

from __future__ import annotations

from efficientnetv2.arch.published import published
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.models.network import EfficientNet

DROP_PATH = 0.2  # 1 - 0.8, the survival probability of every released network (arXiv:2104.00298, section 4.1)
DROPOUT = 0.2  # for an architecture that was not published: that of the smallest released ones


def create(
    model: str | Architecture,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    dropout: float | None = None,
    drop_path: float | None = None,
) -> EfficientNet:
    """A network with fresh weights.

    Args:
        model: a name of ``arch.published.NAMES``, or an architecture of your own.
        num_classes: of the classifier; 0 leaves it out.
        in_channels: of the picture.
        dropout: before the classifier, in [0, 1); None is as released, 0.2 for an architecture of your own.
        drop_path: rate of stochastic depth, in [0, 1); None is as released, 0.2.

    Raises:
        InputError: no such network (names the nearest), or a value outside its range.
    """
    if isinstance(model, str):
        facts = published(model)
        architecture, default = facts.architecture, facts.dropout
    else:
        architecture, default = model, DROPOUT
    return EfficientNet(
        architecture,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=default if dropout is None else dropout,
        drop_path=DROP_PATH if drop_path is None else drop_path,
    )
