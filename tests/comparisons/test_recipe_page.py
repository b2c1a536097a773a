"""docs/recipe.md says what the classes of a recipe say."""

from __future__ import annotations

from benchmarks import recipe_page
from benchmarks.recipe_page import PAGE

from efficientnetv2.training.recipe_fields import all_fields


def test_the_page_is_the_one_that_the_classes_give():
    """If not: python -m benchmarks.recipe_page."""
    assert PAGE.read_text(encoding="utf-8") == recipe_page.text()


def test_every_field_has_a_row_with_its_meaning():
    rows = {
        line.split(" | ")[0].strip("|` "): line for line in recipe_page.text().splitlines() if line.startswith("| `")
    }
    assert list(rows) == [field.name for field in all_fields()]
    for field in all_fields():
        assert rows[field.name].endswith(f" | {field.meaning} |")
        assert rows[field.name].count(" | ") == 5


def test_a_recipe_is_shown_where_it_differs_from_the_default():
    page = recipe_page.text()
    assert "| `optimizer.head_lr_mult` | number above 0 | 1 |  | 5 |" in page
    assert (
        "| `progressive.image_size` | number from 1 to 4,096 or {start, end, continuous} |  | {start: 64, end: 128} |"
        in page
    )
