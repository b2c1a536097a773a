"""The JSON header of a model file: everything but the weights. Older formats are migrated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.ensemble import require_single_model
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, error_summary, pluralize
from efficientnetv2.utils.legacy import upgrade
from efficientnetv2.utils.probability import Activation
from efficientnetv2.utils.shell import shell_join

FORMAT_VERSION = 5  # raised when an older package can no longer read what we write

UNKNOWN_SHA256 = "0" * 64  # holds the place of a SHA-256 until it is known
KEY = "efficientnetv2"  # metadata entry of a model file
CARRIED = "efficientnetv2.carried"  # the same in files for other libraries, see ``conversion.weight_file``

T = TypeVar("T")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Header:
    """Everything in a model file besides its weights."""

    format_version: int
    package_version: str
    architecture: Architecture | None  # None for a model of another library
    foreign: str | None  # a model of another library ("timm:resnet50"); None if only its own code can build it
    num_classes: Annotated[int, Field(ge=0)]
    in_channels: Annotated[int, Field(ge=1)]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    activation: Activation
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    # Of the tensors; unknown in files for other libraries. The last field, which ``safetensors_io.write`` fills in.
    sha256: str

    @model_validator(mode="after")
    def _consistent(self) -> Header:
        if self.architecture is not None and self.foreign is not None:
            raise ValueError(f"an architecture and '{self.foreign}' are both given. A model has one of them")
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{len(self.class_names)} class_names for {self.num_classes} outputs. Give one for each, in their order"
            )
        if len(set(self.class_names)) != self.num_classes:
            raise ValueError("two of the class_names are the same")
        if self.preprocessing.channels != self.in_channels:
            raise ValueError(
                f"preprocessing of {pluralize(self.preprocessing.channels, 'channel')} for "
                f"{self.in_channels} in_channels"
            )
        if fault := _not_json(self.recipe, "recipe") or _not_json(self.metrics, "metrics"):
            raise ValueError(f"{fault}, which JSON cannot hold. Give finite numbers, text, lists and dicts")
        return self

    @staticmethod
    def of(network: Network, **replaced: Any) -> Header:
        """The header of a model, with other values for its attributes unless they are None."""
        require_single_model(network)
        names = "num_classes", "in_channels", "preprocessing", "class_names", "activation", "recipe", "metrics"
        fields = {name: getattr(network, name) for name in names}
        fields |= {name: value for name, value in replaced.items() if value is not None}
        try:
            return Header(
                format_version=FORMAT_VERSION,
                package_version=version("efficientnetv2"),
                architecture=network.architecture if isinstance(network, EfficientNet) else None,
                foreign=network.source if isinstance(network, WrappedModel) else None,
                sha256=UNKNOWN_SHA256,
                **fields,
            )
        except ValidationError as error:
            raise InputError(error_summary(error)) from error

    @property
    def can_be_built(self) -> bool:
        """Whether the model can be built from the header."""
        return self.architecture is not None or self.foreign is not None

    def text(self) -> str:
        """As JSON; ``parse`` reads it."""
        return json.dumps(TypeAdapter(Header).dump_python(self, mode="json"), allow_nan=False)


def _not_json(value: Any, where: str) -> str | None:
    """The first part of a value that JSON cannot hold, and where it is."""
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return None
    if isinstance(value, float):
        return f"{where} is {value}"
    if isinstance(value, list | tuple):
        faults = (_not_json(item, f"{where}[{place}]") for place, item in enumerate(value))
    elif isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str)]:
            return f"{where} has the key {strange[0]!r}"
        faults = (_not_json(item, f"{where}.{name}") for name, item in value.items())
    else:
        return f"{where} is a {type(value).__name__}"
    return next((fault for fault in faults if fault), None)


def conversion_hint(path: Path) -> str:
    """What to do with weights of other libraries, as the end of a message."""
    convert = shell_join(["effnetv2", "convert", str(path), "OUT.safetensors"])
    train = shell_join(["effnetv2", "train", "DATA", "--weights", str(path)])
    return f"Weights of other libraries become a model file by: {convert}. To train from them: {train}"


def has_header(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file with this metadata is a model file."""
    return KEY in metadata


def read(path: Path, metadata: Mapping[str, str]) -> tuple[Header, int]:
    """The header of a model file in the newest format, and the format that it was written in. Raises InputError."""
    if not has_header(metadata):
        source = path.parent if (path.parent / "config.json").is_file() else path
        raise InputError(f"{path} is not a model file of efficientnetv2. {conversion_hint(source)}")
    return parse(path, metadata[KEY], KEY)


def parse(path: Path, text: str | bytes, key: str) -> tuple[Header, int]:
    """The header in a metadata entry, and the format that it was written in. Raises InputError if newer or damaged."""
    try:
        plain = json.loads(text)
        written = TypeAdapter(int).validate_python(plain.get("format_version") if isinstance(plain, dict) else None)
        if written < 1:
            raise ValueError(f"the format {written} does not exist")
        if written > FORMAT_VERSION:
            raise InputError(
                f"{path} has format {written}, written by efficientnetv2 {plain.get('package_version')}; "
                f"this is {version('efficientnetv2')}, which reads up to {FORMAT_VERSION}. Upgrade it."
            )
        # Format 1 had no models of other libraries, 2 had raster bands of three channels only, 3 had only softmax.
        plain = {"foreign": None, "answer": "softmax"} | plain if written < 4 else plain
        if written < 5:  # had the words of version 0.1
            fields = {"architecture", "preprocessing", "recipe", "metrics"} & plain.keys()
            plain |= {"activation": plain.pop("answer")} if "answer" in plain else {}
            plain |= {name: upgrade(plain[name]) for name in fields}
        return TypeAdapter(Header).validate_python(plain | {"format_version": FORMAT_VERSION}), written
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        raise InputError(f"{path}: the metadata '{key}' is damaged ({error_summary(error)}).") from error


def parse_entry(path: Path, text: str, key: str, from_json: Callable[[str], T]) -> T:
    """A further metadata entry of a model file. Raises InputError if ``from_json`` fails."""
    try:
        return from_json(text)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: the metadata '{key}' is damaged ({error_summary(error)}).") from error
