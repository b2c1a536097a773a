"""Pages that mkdocs makes from the source: the command line, the Python API and the fields of a recipe."""

from __future__ import annotations

import json
import re
from typing import Any

from mkdocs.structure.files import File, Files

# Groups of the Python API, in the order of a workflow.
_GROUPS = {
    "Train": ("train", "Run", "Callback", "cross_validate", "CrossValidation", "estimate", "Estimate",
              "preview"),
    "Evaluate": ("evaluate", "Evaluation", "compare", "Comparison"),
    "Predict and export": ("predict", "Predictor", "nearest_images", "export", "benchmark", "Export", "convert",
                           "Conversion", "push", "Push"),
    "Data": ("check", "DatasetCheck", "load_dataset", "Preprocessing", "pack", "PackResult", "balance",
             "BalancedTable"),
    "Maps": ("predict_map", "MapResult", "estimate_areas", "MapAreas"),
    "Models": ("create", "list_models", "load", "save", "adapt", "freeze", "apply_regularization", "Architecture",
               "Stage", "fused_mbconv", "mbconv", "get_architecture", "count_flops"),
    "Progressive learning": ("ProgressiveSchedule", "Ramp", "StepSettings", "ProgressiveBatchSampler",
                             "paper_schedule", "released_schedule"),
    "Search": ("search", "Study"),
    "Errors": ("InputError",),
}  # fmt: skip
# Names of efficientnetv2.serving, and their modules.
_SERVING = {"serve": "server", "create_app": "app", "ServerOptions": "options"}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, text in {"reference/cli.md": cli_page(), "reference/python.md": python_page()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the table of recipe fields where its page asks for it."""
    return markdown.replace("<!-- recipe fields -->", recipe_fields()) if "recipe" in page.file.src_uri else markdown


def on_page_content(html: str, **_: Any) -> str:
    """End the line above an example of a docstring with one colon."""
    return html.replace("Example::</p>", "Example:</p>")


def python_page() -> str:
    """The public names, each by its docstring."""
    import efficientnetv2
    from efficientnetv2 import serving

    grouped = [name for names in _GROUPS.values() for name in names]
    if missing := set(efficientnetv2.__all__) ^ set(grouped) | set(serving.__all__) ^ set(_SERVING):
        raise ValueError(f"docs/_site/hooks.py: the groups of the Python API and __all__ differ: {sorted(missing)}")
    lines = ["# Python API", "", "Import the package as `import efficientnetv2 as ev2`. All names are public.", ""]
    for group, names in _GROUPS.items():
        lines += [f"## {group}", ""]
        for name in names:
            lines += _entry("efficientnetv2", efficientnetv2._MODULES[name], name)
    lines += ["## Serve", "", "These names are in `efficientnetv2.serving`, and need the extra `serve`.", ""]
    for name, module in _SERVING.items():
        lines += _entry("efficientnetv2.serving", module, name)
    return "\n".join(lines)


def _entry(package: str, module: str, name: str) -> list[str]:
    return [f"::: {package}.{module}.{name}", "    options:", f"      heading: {package}.{name}", ""]


def cli_page() -> str:
    """Every command with its arguments, options and examples."""
    from typer.main import get_command

    from efficientnetv2.cli.main import app

    lines = ["# Command line", "", "`effnetv2 COMMAND --help` shows the options of a command. `--help-all` adds the",
             "advanced options.", ""]  # fmt: skip
    root = get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        lines += _command(f"effnetv2 {name}", command)
    return "\n".join(lines)


def _command(called: str, command: Any) -> list[str]:
    if inner := getattr(command, "commands", None):
        return [line for name, one in inner.items() for line in _command(f"{called} {name}", one)]
    text, _, examples = (command.help or "").partition("Examples:")
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "help"]
    usage = " ".join([called, "[OPTIONS]", *((param.metavar or param.name.upper()) for param in arguments)])
    lines = [f"## {called}", "", text.strip(), "", "```text", usage, "```", ""]
    if examples:
        lines += ["```bash", *re.findall(r"`(effnetv2 .*)`", examples), "```", ""]
    if arguments:
        lines += ["| Argument | Description |", "|---|---|"]
        lines += [f"| `{(param.metavar or param.name.upper())}` | {_cell(param.help)} |" for param in arguments] + [""]
    if options:
        lines += ["| Option | Description | Default |", "|---|---|---|"]
        lines += [_row(param) for param in options] + [""]
    return lines


def _row(param: Any) -> str:
    value = "" if param.is_flag else f" {param.metavar or param.display_type(None)}"
    text, given, default = (param.help or "").partition("[default: ")
    shown = default.rstrip("] ") if given else "" if param.default in (None, False, ()) else param.default
    return f"| `{', '.join(param.opts)}{value}` | {_cell(text)} | {_cell(str(shown))} |"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").strip()


def recipe_fields() -> str:
    """A table of the fields of a recipe and their defaults."""
    from efficientnetv2.training.recipe_fields import all_fields

    lines = ["| Field | Values | Default | Description |", "|---|---|---|---|"]
    for field in all_fields():
        default = "" if field.required else f"`{json.dumps(field.default)}`"
        lines.append(f"| {' | '.join(map(_cell, (f'`{field.name}`', field.values, default, field.meaning)))} |")
    return "\n".join(lines)
