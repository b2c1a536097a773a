"""Read YAML that people write. Any fault in it is an `InputError`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from efficientnetv2.utils.errors import InputError


class _Loader(yaml.SafeLoader):
    """An integer with more digits than Python converts stays text, for the field's validation to refuse."""

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        try:
            return int(self.construct_yaml_int(node))
        except ValueError:
            return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def parse_yaml(text: str, called: str) -> Any:
    """Plain values of YAML or JSON; ``called`` names its source in messages. Raises InputError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise InputError(
            f"{called}: its lists and tables are nested too deeply. Write fewer levels."
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist.
        raise InputError(f"{called} is not YAML: {error}") from error


def read_yaml(file: Path, option: str = "") -> Any:
    """Plain values of a YAML or JSON file; ``option`` names it in messages. Raises InputError."""
    called = f"{option} {file}".strip()
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{called}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{called} is not YAML: {error}") from error
    return parse_yaml(text, called)
