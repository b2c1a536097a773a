"""``effnetv2 push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import flag, option


def push(
    model: options.Model,
    repo: Annotated[
        str | None, typer.Argument(metavar="[REPO]", help="Repository on the hub, owner/name.", show_default=False)
    ] = None,
    output: Annotated[Path | None, option("Also write the files here; without REPO, only here.", "FOLDER")] = None,
    evaluation: Annotated[
        Path | None,
        option("Result of evaluate --output, for the model card.  [default: the report of the run]", "FOLDER"),
    ] = None,
    license: Annotated[str | None, option("License of the model on the hub, such as apache-2.0.", "NAME")] = None,
    private: Annotated[bool, flag("--private", "Make a new repository private.")] = False,
    overwrite: Annotated[bool, flag("--overwrite", "Replace the files in REPO (a new commit) and in FOLDER.")] = False,
    as_json: options.Json = False,
) -> None:
    """Share a model on the Hugging Face Hub, for timm and transformers.

    Examples:
    - `effnetv2 push runs/demo owner/name`
    - `effnetv2 push runs/demo owner/name --evaluation evaluation/ --license apache-2.0`
    - `effnetv2 push runs/demo --output for_the_hub`
    """
    from efficientnetv2.workflows import push as workflow

    with Screen(quiet=as_json) as screen:
        pushed = workflow.push(
            model, repo, output=output, evaluation=evaluation, license=license, private=private, overwrite=overwrite
        )
        for note in pushed.notes:
            screen.say(f"Note: {note.rstrip('.')}.")
        screen.say(f"Written to {' and '.join(str(place) for place in (pushed.url, pushed.folder) if place)}.")
        name = f"local-dir:{output}" if repo is None else f"hf_hub:{repo}"
        screen.say(f'In timm: timm.create_model("{name}", pretrained=True)')
        if pushed.opens_in_transformers:
            screen.say(f'In transformers: pipeline("image-classification", model="{repo or output}")')
    if as_json:
        print_json(pushed.to_json())
