"""What ``--set`` takes: every field of a recipe, its values, its default and what it means.

Nothing is written down a second time: values and defaults are those that pydantic checks and fills in, meanings are the
entries of the classes' docstrings. So a field that a class gets is here, and on docs/recipe.md, at once.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from efficientnetv2.progressive.schedule import RANGES, Progressive
from efficientnetv2.training.recipe import DEFAULT_RATES, Recipe
from efficientnetv2.utils.errors import InputError, did_you_mean

# How a schema bounds a number, in words, both ends before one: "minimum" may be reached, "exclusiveMinimum" not.
_BOUNDS = {
    ("minimum", "maximum"): "from {:,} to {:,}",
    ("minimum", "exclusiveMaximum"): "from {:,} to below {:,}",
    ("exclusiveMinimum", "maximum"): "above {:,} up to {:,}",
    ("exclusiveMinimum", "exclusiveMaximum"): "above {:,} and below {:,}",
    ("minimum",): "from {:,}",
    ("exclusiveMinimum",): "above {:,}",
    ("maximum",): "up to {:,}",
    ("exclusiveMaximum",): "below {:,}",
}
# Of a table with more fields, such as a whole network, the first so many are named.
_NAMED = 3
# Fields by what timm, Ultralytics, Keras and Hugging Face call them, where one value means the same. Ours.
_ELSEWHERE = {
    **dict.fromkeys(("lr0", "learning_rate"), "optimizer.lr"),
    **dict.fromkeys(("opt", "optim"), "optimizer.kind"),
    "wd": "optimizer.weight_decay",
    **dict.fromkeys(("clip_grad", "max_grad_norm", "gradient_clip_val"), "optimizer.clip_norm"),
    **dict.fromkeys(("sched", "lr_scheduler", "lr_scheduler_type"), "schedule.kind"),
    "num_train_epochs": "epochs",
    **dict.fromkeys(("imgsz", "img_size", "image_size"), "progressive.image_px"),
    **dict.fromkeys(("batch", "batch_size", "per_device_train_batch_size"), "batch_images"),
    **dict.fromkeys(("val_split", "val_fraction", "validation_split"), "holdout"),
    "early_stopping_patience": "patience",
    **dict.fromkeys(("drop", "dropout_rate"), "progressive.dropout"),
    "drop_path_rate": "progressive.drop_path",
    "mixup": "progressive.mixup_alpha",
    "cutmix": "progressive.cutmix_alpha",
    **dict.fromkeys(("smoothing", "label_smoothing_factor"), "progressive.label_smoothing"),
    "model_ema_decay": "ema_decay",
    "sync_bn": "sync_batch_norm",
    "grad_checkpointing": "recompute_stages",
    "crop_pct": "crop_fraction",
    "freeze": "freeze_stages",
}
# An entry may leave its words to another class: "see ``Setting``", "; see ``preprocessing.Preprocessing.views``".
_SEE = re.compile(r"(; )?see ``((?:\w+\.)*)([A-Z]\w*)(?:\.(\w+))?``")


@dataclass(frozen=True)
class RecipeField:
    """A field of a recipe.

    Args:
        name: as ``--set`` takes it, its part before it: ``epochs``, ``optimizer.lr``.
        values: that it takes, in words.
        required: whether there is no default: every recipe says it.
        default: a plain JSON value; None where there is none, too.
        meaning: what its class's docstring says, in Markdown.
    """

    name: str
    values: str
    required: bool
    default: Any
    meaning: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def recipe_parts() -> dict[str, Any]:
    """The classes that a recipe is made of, in its order: of its own fields "" first, then by the parts' names."""
    found: dict[str, Any] = {"": Recipe}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "__pydantic_fields__"):
            found[name] = field.annotation
    return found


def part_description(part: str) -> str:
    """What a part is, in Markdown: its class's docstring up to the fields.

    Args:
        part: one of ``recipe_parts``.
    """
    text = inspect.getdoc(recipe_parts()[part]) or ""
    return _plain(text.partition("\nArgs:")[0])


def fields_of(part: str) -> list[RecipeField]:
    """The fields of a part, in its order.

    Args:
        part: one of ``recipe_parts``.
    """
    known = recipe_parts()
    owner = known[part]
    schema = TypeAdapter(owner).json_schema()
    entries = _entries(owner)
    found = []
    for name, field in owner.__pydantic_fields__.items():
        if not part and name in known:
            continue
        bounds = RANGES.get(name) if owner is Progressive else None
        found.append(
            RecipeField(
                name=f"{part}.{name}" if part else name,
                values=_either(_values(schema["properties"][name], schema.get("$defs", {}), bounds)),
                required=field.is_required(),
                default=DEFAULT_RATES[name]
                if owner is Progressive and name in DEFAULT_RATES
                else _default(field),
                meaning=_plain(_followed(entries.get(name, ""), name, owner)),
            )
        )
    return found


def all_fields() -> list[RecipeField]:
    """Of all parts, the recipe's own first."""
    return [field for part in recipe_parts() for field in fields_of(part)]


def find_fields(word: str) -> list[RecipeField]:
    """The field of that name, else all that begin so, with their part or without it: ``optimizer``, ``crop``, ``lr``.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    fields = all_fields()
    found = [field for field in fields if field.name == word] or [
        field for field in fields if any(one.startswith(word) for one in (field.name, _last(field.name)))
    ]
    if not found:
        known = [
            *filter(None, recipe_parts()),
            *(field.name for field in fields),
            *(_last(field.name) for field in fields),
        ]
        raise InputError(
            f"A recipe has no field '{word}', and none that begins so{did_you_mean(word, known)} "
            "effnetv2 recipes --fields lists them all."
        )
    return found


def canonical_field(word: str) -> str | None:
    """The field that a name means which is none: the field with that last part, or what other tools call so.

    Args:
        word: a name as typed, such as ``lr``, ``learning_rate`` or ``optimizer.learning_rate``.

    Returns:
        Its full name, such as ``optimizer.lr``; None where there is none, or several.
    """
    last = _last(word)
    if last in _ELSEWHERE:
        return _ELSEWHERE[last]
    named = [field.name for field in all_fields() if _last(field.name) == last]
    return named[0] if len(named) == 1 else None


def field_values(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says: from the name of each field to its plain JSON value."""
    plain = recipe.to_json()
    return {
        field.name: (plain[part] if part else plain)[_last(field.name)]
        for part in recipe_parts()
        for field in fields_of(part)
    }


def format_value(value: Any) -> str:
    """A plain value as ``--set`` takes it: ``null``, ``0.1``, ``[3, 2, 1]``, ``{start: 64, end: 128}``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(int(value) if value.is_integer() else value)
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, dict):  # of a ramp, what is to be said at least
        said = {key: one for key, one in value.items() if (key, one) != ("continuous", False)}
        return f"{{{', '.join(f'{key}: {format_value(one)}' for key, one in said.items())}}}"
    return str(value)


def _default(field: FieldInfo) -> Any:
    """As a plain JSON value. Of the field itself: a schema leaves out a default that is made anew each time."""
    if field.is_required():
        return None
    return TypeAdapter(Any).dump_python(field.get_default(call_default_factory=True), mode="json")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _values(schema: dict[str, Any], known: dict[str, Any], bounds: tuple[float, float] | None) -> list[str]:
    """What a JSON schema lets through, in words: one or several alternatives.

    Args:
        schema: of the value, as pydantic makes it.
        known: the schemas that it may name.
        bounds: of numbers, where the schema does not know them.
    """
    if "anyOf" in schema:
        # As one reads them: plain values, then tables, then what is off.
        order = sorted(schema["anyOf"], key=lambda one: ("$ref" in one) + 2 * (one.get("type") == "null"))
        return [word for one in order for word in _values(one, known, bounds)]
    if "$ref" in schema:
        names = list(known[schema["$ref"].rpartition("/")[2]]["properties"])
        return [f"{{{', '.join(names[:_NAMED] + ['...'] * (len(names) > _NAMED))}}}"]
    if "enum" in schema or "const" in schema:
        return [format_value(word) for word in schema.get("enum", [schema.get("const")])]
    if schema["type"] == "array":
        kinds = schema.get("prefixItems") or [schema["items"]]
        inside = [_either(_values(kind, known, bounds)) for kind in kinds]
        return [f"[{', '.join(inside + ['...'] * ('prefixItems' not in schema))}]"]
    if schema["type"] == "object":
        return [f"{{name: {_either(_values(schema['additionalProperties'], known, bounds))}, ...}}"]
    if schema["type"] in ("integer", "number"):
        ends = dict(zip(("minimum", "maximum"), bounds or (), strict=False))
        return [_number(ends | schema)]
    return {"boolean": ["true", "false"], "null": ["null"], "string": ["text"]}[schema["type"]]


def _number(schema: dict[str, Any]) -> str:
    noun = "whole number" if schema["type"] == "integer" else "number"
    for keys, words in _BOUNDS.items():
        if all(key in schema for key in keys):
            return f"{noun} {words.format(*(schema[key] for key in keys))}"
    return noun


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _entries(owner: type) -> dict[str, str]:
    """The ``Args:`` of a class: from each name to its text, in one line; names that share an entry have it each."""
    block = re.search(r"^Args:\n((?: .*\n?|\n)*)", inspect.getdoc(owner) or "", re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"^ {4}(?=\w)", block[1] if block else "", flags=re.MULTILINE)[1:]:
        names, _, text = entry.partition(":")
        found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def _followed(text: str, name: str, owner: type) -> str:
    """The text of an entry, with the words of another class where it says to see them there.

    Args:
        text: of the entry.
        name: its field, which is looked for there unless another is named.
        owner: its class; a class without a module stands beside it.
    """

    def there(found: re.Match[str]) -> str:
        joint, module, other, field = found.groups()
        place = import_module(f"efficientnetv2.{module[:-1]}") if module else sys.modules[owner.__module__]
        said = _entries(getattr(place, other)).get(field or name)
        return found[0] if said is None else f"{': ' if joint else ''}{said.removesuffix('.')}"

    return _SEE.sub(there, text)


def _plain(text: str) -> str:
    """Markdown of a docstring's words; what Python calls None is null where ``--set`` is typed."""
    return re.sub(r"\bNone\b", "null", " ".join(text.replace("``", "`").split()))
