"""A network's table as a file of YAML, to be kept, looked at, changed by hand and trained."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.utils import yaml_io
from efficientnetv2.utils.errors import InputError, first_error
from efficientnetv2.utils.io import write_text_atomically

SUFFIXES = (".yaml", ".yml", ".json")


def is_architecture_file(word: str) -> bool:
    """Whether a word for a network names such a file, be it there or not."""
    return Path(word).suffix.lower() in SUFFIXES


def text_of(architecture: Architecture, *, comment: str = "") -> str:
    """A network's table as ``write`` writes it.

    Args:
        architecture: the network.
        comment: lines for its head.
    """
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    plain = architecture.to_json()
    stages = [
        yaml.safe_dump(one, sort_keys=False, default_flow_style=True, width=200)
        for one in plain.pop("stages")
    ]
    rest = yaml.safe_dump(plain, sort_keys=False)
    return f"{head}{rest}stages:\n" + "".join(f"- {stage}" for stage in stages)


def write(path: Path, architecture: Architecture, *, comment: str = "") -> None:
    """Write a network's table.

    Args:
        path: of the file; its folder is there.
        architecture: the network.
        comment: lines for its head.

    Raises:
        InputError: it can't be written.
    """
    try:
        write_text_atomically(path, text_of(architecture, comment=comment))
    except OSError as error:
        raise InputError(
            f"--out {path}: {error.strerror or error}. Give a file in a folder that exists."
        ) from error


def read(path: Path) -> Architecture:
    """The network of a file.

    Args:
        path: of YAML or JSON, with the fields of ``Architecture``.

    Raises:
        InputError: there is no such file, or it holds no network; says where it is wrong.
    """
    try:
        return Architecture.from_json(yaml_io.read(path, "--model"))
    except ValidationError as error:
        raise InputError(
            f"--model {path} is no table of a network: {first_error(error.errors())}. effnetv2 search export writes "
            "such files."
        ) from error
