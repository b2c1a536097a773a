"""The published models and the pretrained weights, with their size and cost."""

from __future__ import annotations

from typing import Any

from efficientnetv2.architectures.flops import FLOAT_BYTES, count_flops
from efficientnetv2.architectures.registry import NAMES, get_model_info
from efficientnetv2.models import hub
from efficientnetv2.models.pretrained import get_weights, weight_names


def published_models() -> list[dict[str, Any]]:
    """Name, parameters, MACs and evaluation size of each published model."""
    rows = []
    for model in map(get_model_info, NAMES):
        size = model.eval_image_size
        total = count_flops(model.architecture, image_size=size).total
        counts = {"parameters": total.parameters, "multiply_adds": total.multiply_adds}
        rows.append({"name": model.name, **counts, "eval_image_size": size})
    return rows


def pretrained_weights() -> list[dict[str, Any]]:
    """Model, accuracy, size, license and source of all weights that can be had by name."""
    user, rows = hub.Hub(), []
    for name in weight_names():
        entry = get_weights(name)
        size, num_classes = entry.preprocessing.image_size, entry.num_classes
        table = get_model_info(entry.model).architecture
        parameters = count_flops(table, image_size=size, num_classes=num_classes).total.parameters
        cached = hub.cached(name, user)
        rows.append(
            {
                "name": name,
                "model": entry.model,
                "image_size": size,
                "num_classes": num_classes,
                "top1_percent": entry.top1_percent,
                "megabytes_about": round(parameters * FLOAT_BYTES / 1e6, 1),
                "license": entry.license,
                "source": entry.source,
                "url": hub.url(name, user),
                "cached": None if cached is None else str(cached),
            }
        )
    return rows
