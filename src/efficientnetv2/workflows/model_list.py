"""The published models and the pretrained weights, with their size and cost."""

from __future__ import annotations

from typing import Any

from efficientnetv2.architectures.flops import FLOAT_BYTES, count_flops
from efficientnetv2.architectures.registry import NAMES, get_model_info
from efficientnetv2.models import hub
from efficientnetv2.models.pretrained import get_weights, weight_names


def published_models() -> list[dict[str, Any]]:
    """Name, parameters, MACs and evaluation size of each published model."""
    rows: list[dict[str, Any]] = []
    for name in NAMES:
        model = get_model_info(name)
        total = count_flops(model.architecture, image_size=model.eval_image_size).total
        rows.append(
            {
                "name": name,
                "parameters": total.parameters,
                "multiply_adds": total.multiply_adds,
                "eval_image_size": model.eval_image_size,
            }
        )
    return rows


def pretrained_weights() -> list[dict[str, Any]]:
    """Model, accuracy, size, license and source of all weights that can be had by name."""
    user, rows = hub.Hub(), []
    for name in weight_names():
        entry = get_weights(name)
        image_size = entry.preprocessing.image_size
        table = get_model_info(entry.model).architecture
        total = count_flops(table, image_size=image_size, num_classes=entry.num_classes).total
        cached = hub.cached(name, user)
        rows.append(
            {
                "name": name,
                "model": entry.model,
                "image_size": image_size,
                "num_classes": entry.num_classes,
                "top1_percent": entry.top1_percent,
                "megabytes_about": round(total.parameters * FLOAT_BYTES / 1e6, 1),
                "license": entry.license,
                "source": entry.source,
                "url": hub.url(name, user),
                "cached": None if cached is None else str(cached),
            }
        )
    return rows
