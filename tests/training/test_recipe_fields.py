"""Descriptions of recipe fields agree with the checks, defaults and docstrings of the classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides

from efficientnetv2.training.recipe_fields import all_fields, field_values, find_fields, format_value, recipe_parts
from efficientnetv2.training.recipe_io import field_names_at, validate_recipe
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.utils.errors import InputError

FIELDS = {field.name: field for field in all_fields()}
# The smallest valid recipe.
LEAST = {
    "name": "least",
    "progressive": {"image_size": 64},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"name": "constant"},
}


def test_every_field_is_listed_in_order():
    own = [name for name in field_names_at([]) if name not in recipe_parts()]
    inside = [
        f"{part}.{name}" for part in field_names_at([]) if part in recipe_parts() for name in field_names_at([part])
    ]
    assert list(FIELDS) == own + inside
    assert list(recipe_parts()) == ["", "progressive", "optimizer", "schedule", "augment"]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_description(name):
    """It fails if the class has no text below the field."""
    meaning = FIELDS[name].meaning
    assert meaning
    assert "``" not in meaning
    assert "None" not in meaning
    assert "\n" not in meaning


def test_documentation_lists_every_field_with_its_description():
    """Descriptions are Markdown: the table escapes bars and joins lines."""
    pytest.importorskip("mkdocs")
    file = Path(__file__).parents[2] / "docs/_site/hooks.py"
    spec = importlib.util.spec_from_file_location("hooks", file)
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    rows = {line.split(" | ")[0].strip("|` "): line for line in hooks.recipe_fields().splitlines()[2:]}
    assert list(rows) == [field.name for field in all_fields()]
    for field in all_fields():
        assert " ".join(field.meaning.split()).replace("|", "\\|") in rows[field.name]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("name", "text"),
        ("expected_dataset", "imagenet1k, imagenet21k or null"),
        ("epochs", "number above 0 up to 1,000,000 or auto"),
        ("auto_epochs", "[whole number, number, number]"),
        ("stage_time", "equal, [number, ...] or null"),
        ("ema_decay", "number above 0 and below 1 or null"),
        ("batch_norm_momentum", "number from 0 to below 1"),
        ("eval_image_size_candidates", "auto, [whole number from 1 to 4,096, ...] or null"),
        ("compile", "true, false or auto"),
        ("model", "text or {stem_channels, stages, head_channels, ...}"),
        ("seed", "whole number"),
        ("schedule.min_lr_ratio", "number from 0 to 1"),
        ("progressive.randaugment", "number from 0 to 30, {start, end, continuous} or null"),
        ("progressive.extra", "{name: number or {start, end, continuous}, ...}"),
    ],
)
def test_valid_values_are_described_in_words(name, values):
    assert FIELDS[name].values == values


def test_descriptions_explain_null_and_each_choice():
    assert mentions(FIELDS["progressive.dropout"].meaning, "0", "classifier")
    assert mentions(FIELDS["crop_mode"].meaning, "squash", "center", "border")
    assert mentions(FIELDS["tta"].meaning, "none", "d4")
    assert mentions(FIELDS["global_pool"].meaning, "avg", "weight")


def test_stated_defaults_are_those_of_a_minimal_recipe():
    has = field_values(validate_recipe(LEAST, where="test"))
    required = {field.name for field in FIELDS.values() if field.required}
    assert required == {"name", "progressive.image_size", "optimizer.name", "optimizer.lr", "schedule.name"}
    assert {name: field.default for name, field in FIELDS.items() if name not in required} == {
        name: value for name, value in has.items() if name not in required
    }


@pytest.mark.parametrize("name", named_recipes())
def test_displayed_values_are_accepted_as_overrides(name):
    recipe = get_recipe(name)
    settings = [f"{field}={format_value(value)}" for field, value in field_values(recipe).items()]
    assert with_overrides(get_recipe("quick"), settings) == recipe


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("epochs", ["epochs"]),
        ("crop", ["crop_mode", "crop_pct", "crop_scale_min"]),
        ("lr", ["optimizer.lr"]),
        ("optimizer.n", ["optimizer.name"]),
        ("schedule", [name for name in FIELDS if name.startswith("schedule.")]),
        ("", list(FIELDS)),
    ],
)
def test_field_is_found_by_name_or_prefix(word, names):
    assert [field.name for field in find_fields(word)] == names


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("optimiser.lr", "optimizer.lr"),
        ("augmnet", "augment"),
        ("dropuot", "dropout"),
        ("progressive.image_size.end", "progressive.image_size"),
    ],
)
def test_unknown_field_suggests_the_nearest(word, near):
    with pytest.raises(InputError, match=mentioning(word, near, "did you mean")):
        find_fields(word)
