"""The commands that the docs give are commands that there are, with settings that there are."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer
from benchmarks.finetune_land_cover import KNOWN

from efficientnetv2.cli.main import app
from efficientnetv2.data.folds import TIMES
from efficientnetv2.training.recipe_io import with_overrides
from efficientnetv2.training.recipes import RECIPES, get_recipe
from efficientnetv2.training.run_length import RunLength, stage_ends, validation_steps

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/finetuning.md"


def shell_lines(page: Path) -> list[str]:
    """Every line in the page's shell blocks, those that go on joined."""
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return "\n".join(blocks).replace("\\\n", " ").splitlines()


def commands(page: Path) -> list[list[str]]:
    """The words of every ``effnetv2`` line in the page's shell blocks, of those under a launcher too."""
    ours = re.compile(r"^(?:effnetv2|torchrun .*-m efficientnetv2) (.*)$")
    found = [ours.match(line) for line in shell_lines(page)]
    return [shlex.split(one[1], comments=True) for one in found if one is not None]


@cache
def verbs():
    """By their names; made of all their options, which takes a moment."""
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def examples(source: Path) -> list[list[str]]:
    """The words of every example in the help of a command."""
    lines = re.findall(r"^ *- `effnetv2 (.*)`$", source.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


ALL = [
    (page.name, words)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for words in commands(page)
] + [
    (source.name, words)
    for source in sorted((ROOT / "src/efficientnetv2/cli").glob("*.py"))
    for words in examples(source)
]


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page}: {' '.join(words)}"[:60] for page, words in ALL])
def test_every_command_of_the_docs_is_understood(page, words):
    """Parsed, not run: unknown options, values of a wrong kind and missing arguments are refused here."""
    verb, words = verbs()[words[0]], words[1:]
    while hasattr(verb, "commands"):  # such as search, which has verbs of its own
        verb, words = verb.commands[words[0]], words[1:]
    given = verb.make_context(verb.name, words).params
    recipe = given.get("recipe")
    if recipe is None or "/" in recipe or recipe.endswith(".yaml"):
        recipe = "finetune"
    with_overrides(get_recipe(recipe), given.get("settings") or [])


WHERE_IT_IS_SAID_HOW_TO_INSTALL = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "src").rglob("*.py")),
]


def test_installing_a_clone_keeps_the_link_to_it():
    """A copy beside other packages would find no shipped weights, and pulling would not change it."""
    lines = [line for file in WHERE_IT_IS_SAID_HOW_TO_INSTALL for line in file.read_text("utf-8").splitlines()]
    of_a_clone = re.compile(r"""pip install((?: -\S+)*) ["']?\.(?![\w/])""")
    options = {line: found[1].split() for line in lines for found in of_a_clone.finditer(line)}
    assert len(options) >= 5
    assert [line for line, given in options.items() if "-e" not in given] == []


WAITING = [(page, words) for page, words in ALL if any("patience=" in word for word in words)] + [
    (page.name, ["train", "DATA", *shlex.split(told)])
    for page in sorted((ROOT / "docs").glob("*.md"))
    for told in re.findall(r"`(--[^`\n]*patience=[^`\n]*)`", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "words"), WAITING, ids=[page for page, _ in WAITING])
def test_patience_that_is_shown_can_end_the_run(page, words):
    """By the recipes that are taken where none is named, on 3,000 training pictures."""
    given = verbs()["train"].make_context("train", words[1:]).params
    for name in ("finetune", "quick"):
        recipe = with_overrides(get_recipe(name), [*given["settings"], f"epochs={given['epochs'] or 10}"])
        length = RunLength.of(recipe, 3000)
        begun = [0, *stage_ends(recipe, length)][-2]
        assert sum(step > begun for step in validation_steps(recipe, length)) > recipe.patience


def test_patience_is_shown():
    assert {page for page, _ in WAITING} >= {"commands.md", "minival.md", "your_pictures.md", "train.py"}


def test_help_has_the_groups_of_the_page_of_commands():
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    groups = {
        heading: set(re.findall(r"^(?:effnetv2|.*-m efficientnetv2) (\w+)", block, re.MULTILINE))
        for heading, block in re.findall(r"^## ([^\n]*)\n\n```\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    }
    shown: dict[str, set[str]] = {}
    for name, verb in verbs().items():
        shown.setdefault(verb.rich_help_panel, set()).add(name)
    assert shown == groups
    assert list(shown) == list(groups)  # their order, too


@pytest.mark.parametrize("verb", ["crossval", "check"])
def test_help_names_the_columns_that_are_taken_for_the_time(verb):
    (option,) = [one for one in verbs()[verb].params if one.name == "time_column"]
    assert [name for name in TIMES if name not in option.help] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_recipes_expected_dataset_imagenet_are_not_shown_with_photos_of_ones_own(page):
    """They refuse other pictures, however many processes a launcher starts."""
    shown = [re.search(r"\btrain (\S*photos\S*) .*--recipe (\w+)", line) for line in shell_lines(page)]
    assert not [found[0] for found in shown if found is not None and get_recipe(found[2]).expected_dataset is not None]


def test_the_page_gives_the_settings_of_the_figure():
    """Those that the benchmark fixed, but for how often it looked at the validation pictures."""
    train = verbs()["train"]
    (given,) = [
        train.make_context("train", words[1:]).params for words in commands(PAGE) if "global_pool=avg+center" in words
    ]
    settings = [*given["settings"], f"epochs={given['epochs']:g}", "val_interval_epochs=8"]
    assert with_overrides(get_recipe("finetune"), settings) == with_overrides(get_recipe("finetune"), KNOWN)
    assert sorted(settings) == sorted(KNOWN)


def test_the_page_explains_each_setting_of_the_figure():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for setting in KNOWN:
        assert setting.startswith(("epochs", "val_interval_epochs")) or any(f"`{setting}`" in row for row in rows)


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub makes it of them."""
    blocks_gone = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", blocks_gone, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKS = [
    (page, link)
    for page in (*PAGES, *sorted((ROOT / "examples").rglob("*.md")))
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    if not link.startswith(("http://", "https://"))
]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page.name}: {link}"[:60] for page, link in LINKS])
def test_a_link_leads_somewhere(page, link):
    file, _, anchor = link.partition("#")
    there = (page.parent / file).resolve() if file else page
    assert there.exists(), there
    assert not anchor or anchor in anchors(there)


def test_what_make_does_for_a_reader_stands_in_a_page_and_pages_name_nothing_else():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    said = {
        target
        for page in PAGES
        for line in (*shell_lines(page), *re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")))
        for target in re.findall(r"^make ([\w-]+)", line)
    }
    assert said <= targets
    assert targets - said == {"lint", "quick", "clean"}  # of work on the house itself


def test_the_page_on_imagenet_names_the_recipes_of_table_12_and_the_extra_that_they_need():
    page = (ROOT / "docs/imagenet.md").read_text(encoding="utf-8")
    recipes = [name for name in RECIPES if name.endswith("_progressive")]
    assert len(recipes) >= 5
    assert [name for name in recipes if f"`{name}`" not in page] == []
    assert any(str(get_recipe(name).model).startswith("timm:") for name in recipes)
    assert "extra `timm`" in page


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[2:] if page.name != "README.md" and f"({page.name})" not in index] == []


def test_the_page_of_the_architecture_names_every_package():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src/efficientnetv2"
    packages = [file.parent.relative_to(source).as_posix() for file in source.rglob("*/__init__.py")]
    assert [package for package in packages if f"`{package}`" not in page] == []
