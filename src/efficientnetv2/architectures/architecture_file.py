"""Architectures as YAML files."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.utils.errors import InputError, first_error
from efficientnetv2.utils.io import read_yaml, write_text_atomically
from efficientnetv2.utils.legacy import upgrade

SUFFIXES = (".yaml", ".yml", ".json")


def is_architecture_file(word: str) -> bool:
    """Whether a model name is such a file's, existing or not."""
    return Path(word).suffix.lower() in SUFFIXES


def text_of(architecture: Architecture, *, comment: str = "") -> str:
    """An architecture as ``write`` writes it, with the lines of a comment at its head."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    plain = architecture.to_json()
    stages = [
        yaml.safe_dump(stage, sort_keys=False, default_flow_style=True, width=200) for stage in plain.pop("stages")
    ]
    rest = yaml.safe_dump(plain, sort_keys=False)
    return f"{head}{rest}stages:\n" + "".join(f"- {stage}" for stage in stages)


def write(path: Path, architecture: Architecture, *, comment: str = "") -> None:
    """Write an architecture. Raises InputError if the file can't be written."""
    try:
        write_text_atomically(path, text_of(architecture, comment=comment))
    except OSError as error:
        raise InputError(f"`output` {path}: {error.strerror or error}. Give a file in a folder that exists.") from error


def read(path: Path) -> Architecture:
    """The architecture of a YAML or JSON file. Raises InputError if there is none; names the wrong field."""
    plain = read_yaml(path, "`model`")
    if isinstance(plain, dict) and "pooling" in plain:  # a file of version 0.1
        plain = upgrade(plain)
    try:
        return Architecture.from_json(plain)
    except ValidationError as error:
        raise InputError(
            f"`model` {path} is not an architecture: {first_error(error.errors())}. Give a file of effnetv2 search "
            "export."
        ) from error
