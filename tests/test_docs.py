"""Commands, links and pages of the documentation match the program and the repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml
from benchmarks.finetune_land_cover import KNOWN
from packaging.requirements import Requirement
from tests.pages import PAGES, ROOT, code_spans, commands, name, prose, shell_lines
from tests.recipes import with_overrides

import efficientnetv2
from efficientnetv2 import serving
from efficientnetv2.cli.main import app
from efficientnetv2.data.folds import TIMES
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.training.run_setup import RunLength, validation_steps

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FINE_TUNE = ROOT / "docs/how-to/fine-tune.md"


@cache
def program():
    """Return the command-line program, which takes a moment to build."""
    return typer.main.get_command(app)


def command_of(args):
    """Return the command that the arguments name, and the remaining arguments."""
    command, rest = program(), list(args)
    while hasattr(command, "commands"):
        assert set(rest[:1]) & set(command.commands), f"no such command: {' '.join(args)}"
        command = command.commands[rest.pop(0)]
    return command, rest


def examples(source: Path) -> list[list[str]]:
    """Return the arguments of each example in the help of a command."""
    lines = re.findall(r"^ *- `effnetv2 (.*)`$", source.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


COMMANDS = [(name(page), args) for page in PAGES for args in commands(page)] + [
    (name(source), args)
    for source in sorted((ROOT / "src/efficientnetv2/cli").glob("*.py"))
    for args in examples(source)
]


@pytest.mark.parametrize(("page", "args"), COMMANDS, ids=[f"{page}: {' '.join(args)}"[:80] for page, args in COMMANDS])
def test_command_is_parsed(page, args):
    """Commands are not run. Unknown options, invalid values and missing arguments are refused."""
    if args in (["--version"], ["--help"]):
        return
    command, rest = command_of(args)
    given = command.make_context(command.name, rest).params
    recipe = given.get("recipe")
    if recipe is None or "/" in recipe or recipe.endswith(".yaml"):
        recipe = "finetune"
    with_overrides(get_recipe(recipe), given.get("settings") or [])


def test_enough_commands_are_found():
    """Otherwise a parser that finds none would pass. Nearly all commands of the program are on a page."""
    shown = {" ".join(args[:2]) if args[0] in ("data", "geo", "search") else args[0] for _, args in COMMANDS}
    assert len(shown) >= 15
    assert len(COMMANDS) >= 150


SPANS = [(name(page), span) for page in PAGES for span in code_spans(page) if span.startswith("effnetv2 ")]


@pytest.mark.parametrize(("page", "span"), SPANS, ids=[f"{page}: {span}"[:80] for page, span in SPANS])
def test_command_in_a_sentence_has_existing_options(page, span):
    """A sentence may omit arguments, and write a name in capitals for any command."""
    args = [arg for arg in span.split()[1:] if arg not in ("--help", "--help-all", "--version", "…", "...")]
    if not args or args[0].isupper() or args in (["data"], ["geo"], ["search"]):
        return
    command, rest = (program(), args) if args[0].startswith("--") else command_of(args)
    options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    assert {arg.partition("=")[0] for arg in rest if arg.startswith("--")} <= options


OTHERS = [(name(page), line) for page in PAGES for line in (*shell_lines(page), *code_spans(page))]


def test_named_modules_scripts_and_extras_exist():
    lines = [line for _, line in OTHERS]
    modules = {found for line in lines for found in re.findall(r"^python -m ([\w.]+)", line)}
    assert len(modules) >= 2
    assert [module for module in modules if find_spec(module) is None] == []
    scripts = {found for line in lines for found in re.findall(r"(examples/[\w./]+\.py)", line)}
    assert [script for script in scripts if not (ROOT / script).exists()] == []
    extras = {
        extra
        for line in lines
        for found in re.findall(r"pip install .*\.\[([\w,]+)\]", line)
        for extra in found.split(",")
    }
    assert len(extras) >= 5
    assert extras <= set(PROJECT["optional-dependencies"])


def test_files_named_in_sentences_exist():
    spans = {(name(page), span) for page in PAGES for span in code_spans(page)}
    files = {(page, span) for page, span in spans if re.fullmatch(r"(src|tests|examples|benchmarks)/[\w./-]+", span)}
    assert len(files) >= 15
    assert sorted((page, file) for page, file in files if not (ROOT / file).exists()) == []


def test_pre_commit_hooks_are_part_of_make_lint():
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    commands_run = [hook["entry"].removesuffix(" --fix") for hook in hooks]
    assert len(commands_run) >= 3
    assert [command for command in commands_run if f"\t{command}" not in lint] == []


def test_clone_is_installed_as_editable():
    """A copy among other packages would lack the bundled weights, and a pull would not change it."""
    files = [*PAGES, *sorted((ROOT / "src").rglob("*.py"))]
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    of_a_clone = re.compile(r"""pip install((?: -\S+)*) ["']?\.(?![\w/])""")
    options = {line: found[1].split() for line in lines for found in of_a_clone.finditer(line)}
    assert len(options) >= 5
    assert [line for line, given in options.items() if "-e" not in given] == []


def test_pages_name_all_make_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    named = {found for _, line in OTHERS for found in re.findall(r"^make ([\w-]+)", line)}
    assert named <= targets
    assert targets - named <= {"clean"}


PATIENT = [(page, args) for page, args in COMMANDS if any("patience=" in arg for arg in args)]


@pytest.mark.parametrize(("page", "args"), PATIENT, ids=[page for page, _ in PATIENT])
def test_shown_patience_can_end_the_run(page, args):
    """With the default recipes, and 3,000 training images."""
    command, rest = command_of(args)
    given = command.make_context("train", rest).params
    for default in ("finetune", "quick"):
        recipe = with_overrides(get_recipe(default), [*given["settings"], f"epochs={given['epochs'] or 10}"])
        length = RunLength.of(recipe, 3000)
        last_stage = [0, *recipe.progressive.stage_ends(length.steps)][-2]
        assert sum(step > last_stage for step in validation_steps(recipe, length)) > recipe.patience


def test_patience_is_shown():
    assert "docs/how-to/select-a-model.md" in {page for page, _ in PATIENT}


@pytest.mark.parametrize("command", ["crossval", "check"])
def test_help_names_the_default_time_columns(command):
    (option,) = [one for one in program().commands[command].params if one.name == "time_column"]
    assert [column for column in TIMES if column not in option.help] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_imagenet_recipes_are_not_shown_with_photos(page):
    """These recipes refuse other images with any number of processes."""
    shown = [re.search(r"\btrain (\S*photos\S*) .*--recipe (\w+)", line) for line in shell_lines(page)]
    assert not [found[0] for found in shown if found is not None and get_recipe(found[2]).expected_dataset is not None]


def test_page_has_the_hyperparameters_of_the_result():
    """All hyperparameters of the benchmark except the validation interval."""
    (args,) = [args for args in commands(FINE_TUNE) if "global_pool=avg+center" in args]
    command, rest = command_of(args)
    given = command.make_context("train", rest).params
    settings = [*given["settings"], f"epochs={given['epochs']:g}", "val_interval_epochs=8"]
    assert with_overrides(get_recipe("finetune"), settings) == with_overrides(get_recipe("finetune"), KNOWN)
    assert sorted(settings) == sorted(KNOWN)


def test_page_explains_each_hyperparameter_of_the_result():
    rows = [line for line in FINE_TUNE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for setting in KNOWN:
        assert setting.startswith(("epochs", "val_interval_epochs")) or any(f"`{setting}`" in row for row in rows)


def test_paper_page_names_the_recipes_of_table_12_and_their_extra():
    page = (ROOT / "docs/how-to/reproduce-the-paper.md").read_text(encoding="utf-8")
    recipes = [recipe for recipe in named_recipes() if recipe.endswith("_progressive")]
    assert len(recipes) >= 5
    assert [recipe for recipe in recipes if f"`{recipe}`" not in page] == []
    assert any(str(get_recipe(recipe).model).startswith("timm:") for recipe in recipes)
    assert "extra `timm`" in page


def test_architecture_page_names_each_package():
    page = (ROOT / "docs/contributing/architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src/efficientnetv2"
    packages = [file.parent.relative_to(source).as_posix() for file in source.rglob("*/__init__.py")]
    assert [package for package in packages if f"`{package}`" not in page] == []


def test_dependencies_page_names_each_package():
    page = (ROOT / "docs/contributing/dependencies.md").read_text(encoding="utf-8")
    given = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    names = {Requirement(one).name for one in given} - {"efficientnetv2"}
    assert [one for one in sorted(names) if not re.search(rf"^\| .*\b{one}\b", page, re.MULTILINE)] == []


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub creates for the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Links between pages of the site are checked by the build of the site.
LINKS = [
    (page, link)
    for page in (*(page for page in PAGES if ROOT / "docs" not in page.parents), ROOT / "CHANGELOG.md")
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    if not link.startswith(("http://", "https://"))
]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{name(page)}: {link}"[:80] for page, link in LINKS])
def test_link_target_exists(page, link):
    file, _, anchor = link.partition("#")
    there = (page.parent / file).resolve() if file else page
    assert there.exists(), there
    assert not anchor or anchor in anchors(there)


def test_pages_named_in_code_exist():
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    named = {
        (file, found)
        for file in (*files, ROOT / "Makefile", ROOT / "pyproject.toml", *(ROOT / ".github").rglob("*.yml"))
        for line in file.read_text(encoding="utf-8").splitlines()
        for found in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", line)
        if "Source:" not in line  # a page of another project
    }
    generated = {"docs/reference/cli.md", "docs/reference/python.md"}
    missing = {(file, page) for file, page in named if page not in generated and not (ROOT / page).exists()}
    assert sorted((name(file), page) for file, page in missing) == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site. A broken link or anchor, or a page that the menu lacks, is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "INFO" not in line)
    return folder


@pytest.mark.slow
def test_generated_pages_have_each_command_and_public_name(site):
    api = (site / "reference/python/index.html").read_text(encoding="utf-8")
    homes = {public: f"efficientnetv2.{module}.{public}" for public, module in efficientnetv2._MODULES.items()}
    assert homes.keys() == set(efficientnetv2.__all__)
    assert [home for home in homes.values() if f'id="{home}"' not in api] == []
    assert [name for name in serving.__all__ if not re.search(rf'id="efficientnetv2\.serving\.\w+\.{name}"', api)] == []
    assert "Example::" not in api  # marks a literal block in a docstring
    cli = (site / "reference/cli/index.html").read_text(encoding="utf-8")
    options = {option for command in leaves(program()) for param in command.params for option in param.opts}
    assert [option for option in options if option.startswith("--") and option not in cli] == []


def leaves(command):
    """Return all commands that can be run."""
    inner = getattr(command, "commands", None)
    return [command] if inner is None else [leaf for one in inner.values() for leaf in leaves(one)]


# Search terms of readers who know other libraries.
TERMS = """
    active learning, API, baseline, batch size, bootstrap, calibration, checkpoint, class imbalance, confidence
    interval, confusion matrix, cross-validation, CutMix, data augmentation, data leakage, deploy, distributed
    training, Docker, dropout, early stopping, EMA, embedding, ensemble, export, F1, feature extraction,
    fine-tuning, GeoTIFF, Grad-CAM, gradient accumulation, gradient checkpointing, hyperparameter, image size,
    installation, label errors, label smoothing, learning curve, learning rate, linear probe, MACs, mixed precision,
    mixup, multi-GPU, multi-label, near-duplicate, neural architecture search, ONNX, OpenVINO, out of memory,
    overfitting, precision, pretrained weights, progressive learning, progressive resizing, quick start,
    RandAugment, recall, reproducibility, resume, seed, Slurm, stochastic depth, temperature scaling, TensorBoard,
    test set, test-time augmentation, throughput, top-1, torchrun, transfer learning, Triton, validation set,
    WebDataset, weight decay
"""


@pytest.mark.slow
def test_search_finds_the_terms_of_the_field(site):
    """Only on pages for users, because the style guide lists many terms."""
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    texts = [f"{one['title']} {one['text']}" for one in index if not one["location"].startswith("contributing/")]
    terms = [" ".join(term.split()) for term in TERMS.split(",")]
    missing = [
        term
        for term in terms
        if not any(re.search(rf"(?<![a-z]){re.escape(term)}(?![a-z]{{3}})", text, re.IGNORECASE) for text in texts)
    ]
    assert missing == []
