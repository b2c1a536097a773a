"""Every field of a recipe for ``--set``, docs/reference/recipe.md and messages: values, default and description.

All of it comes from the classes: values and defaults from pydantic, descriptions from the text below each field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from efficientnetv2.progressive.schedule import RANGES, ProgressiveSchedule
from efficientnetv2.training.recipe import DEFAULT_RATES, Recipe
from efficientnetv2.utils.errors import InputError, did_you_mean

# Number of keys shown of an object with more, such as an architecture.
_KEYS_SHOWN = 3
# Names of the same field in timm, Ultralytics, Keras and Hugging Face. Ours.
_FOREIGN_NAMES = {
    foreign: name
    for name, foreigns in {
        "optimizer.lr": "lr0 learning_rate",
        "optimizer.name": "opt optim",
        "optimizer.weight_decay": "wd",
        "optimizer.clip_norm": "clip_grad max_grad_norm gradient_clip_val",
        "schedule.name": "sched scheduler lr_scheduler lr_scheduler_type",
        "epochs": "num_train_epochs",
        "progressive.image_size": "imgsz img_size image_size",
        "batch_size": "batch per_device_train_batch_size",
        "val_fraction": "val_split validation_split",
        "patience": "early_stopping_patience",
        "progressive.dropout": "drop dropout_rate",
        "progressive.drop_path": "drop_path_rate",
        "progressive.mixup_alpha": "mixup",
        "progressive.cutmix_alpha": "cutmix",
        "progressive.label_smoothing": "smoothing label_smoothing_factor",
        "ema_decay": "model_ema_decay",
        "sync_batch_norm": "sync_bn",
        "checkpoint_stages": "grad_checkpointing",
        "freeze_stages": "freeze",
    }.items()
    for foreign in foreigns.split()
}


@dataclass(frozen=True)
class RecipeField:
    """A field of a recipe. A required field has no default: every recipe sets it."""

    name: str  # In full: optimizer.lr
    values: str  # Accepted values in words
    required: bool
    default: Any  # Plain JSON value
    meaning: str  # In Markdown


def recipe_parts() -> dict[str, Any]:
    """The classes of a recipe by field name: "" is the recipe itself, then its parts."""
    parts: dict[str, Any] = {"": Recipe}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "__pydantic_fields__"):
            parts[name] = field.annotation
    return parts


def all_fields() -> list[RecipeField]:
    """The fields of all parts, the recipe's own first."""
    parts, fields = recipe_parts(), []
    for part, owner in parts.items():
        schema = TypeAdapter(owner).json_schema()
        for name, field in owner.__pydantic_fields__.items():
            if not part and name in parts:
                continue
            bounds = RANGES.get(name) if owner is ProgressiveSchedule else None
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            if owner is ProgressiveSchedule:
                default = DEFAULT_RATES.get(name, default)
            fields.append(
                RecipeField(
                    name=f"{part}.{name}" if part else name,
                    values=_join_or(_values(schema["properties"][name], schema.get("$defs", {}), bounds)),
                    required=field.is_required(),
                    default=TypeAdapter(Any).dump_python(default, mode="json"),
                    meaning=" ".join((field.description or "").replace("``", "`").split()),
                )
            )
    return fields


def find_fields(word: str) -> list[RecipeField]:
    """The field of that name, or else all whose full or last name starts with it: ``optimizer``, ``crop``, ``lr``.

    Raises InputError if no field matches. The message names the nearest.
    """
    fields = all_fields()
    found = [field for field in fields if field.name == word] or [
        field for field in fields if field.name.startswith(word) or _last(field.name).startswith(word)
    ]
    if not found:
        names = [field.name for field in fields]
        near = did_you_mean(word, [*filter(None, recipe_parts()), *names, *map(_last, names)])
        raise InputError(f"A recipe has no field '{word}'{near} To list them all: effnetv2 recipes --fields")
    return found


def canonical_field(word: str) -> str | None:
    """Full name of the field that ``lr`` or another tool's ``learning_rate`` stands for; None if not exactly one."""
    last = _last(word)
    if last in _FOREIGN_NAMES:
        return _FOREIGN_NAMES[last]
    named = [field.name for field in all_fields() if _last(field.name) == last]
    return named[0] if len(named) == 1 else None


def field_values(recipe: Recipe) -> dict[str, Any]:
    """Plain JSON value of each field of a recipe, by full name."""
    plain = recipe.to_json()
    values = {}
    for field in all_fields():
        part, _, name = field.name.rpartition(".")
        values[field.name] = (plain[part] if part else plain)[name]
    return values


def format_value(value: Any) -> str:
    """A plain value in the syntax of ``--set``: ``null``, ``0.1``, ``[3, 2, 1]``, ``{start: 64, end: 128}``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(int(value) if value.is_integer() else value)
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, dict):  # a ramp, without the default of ``continuous``
        items = ((key, item) for key, item in value.items() if (key, item) != ("continuous", False))
        return f"{{{', '.join(f'{key}: {format_value(item)}' for key, item in items)}}}"
    return str(value)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _values(schema: dict[str, Any], definitions: dict[str, Any], bounds: tuple[float, float] | None) -> list[str]:
    """Alternatives that a JSON schema accepts, in words. ``bounds`` are of numbers that the schema does not bound."""
    if "anyOf" in schema:
        # Plain values first, then objects, then null.
        order = sorted(schema["anyOf"], key=lambda item: ("$ref" in item) + 2 * (item.get("type") == "null"))
        return [word for item in order for word in _values(item, definitions, bounds)]
    if "$ref" in schema:
        names = list(definitions[schema["$ref"].rpartition("/")[2]]["properties"])
        return [f"{{{', '.join(names[:_KEYS_SHOWN] + ['...'] * (len(names) > _KEYS_SHOWN))}}}"]
    if "enum" in schema or "const" in schema:
        return [format_value(word) for word in schema.get("enum", [schema.get("const")])]
    if schema["type"] == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        inside = [_join_or(_values(item, definitions, bounds)) for item in items]
        return [f"[{', '.join(inside + ['...'] * ('prefixItems' not in schema))}]"]
    if schema["type"] == "object":
        return [f"{{name: {_join_or(_values(schema['additionalProperties'], definitions, bounds))}, ...}}"]
    if schema["type"] in ("integer", "number"):
        ends = dict(zip(("minimum", "maximum"), bounds or (), strict=False))
        return [_number(ends | schema)]
    return {"boolean": ["true", "false"], "null": ["null"], "string": ["text"]}[schema["type"]]


def _number(schema: dict[str, Any]) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    words = ["whole number" if schema["type"] == "integer" else "number"]
    if least is not None or above is not None:
        words.append(f"above {above:,}" if least is None else f"from {least:,}")
    if most is not None:
        words.append(f"to {most:,}" if least is not None else f"up to {most:,}")
    elif below is not None:
        words.append(f"{'to' if least is not None else 'and'} below {below:,}")
    return " ".join(words)


def _join_or(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
