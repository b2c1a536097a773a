"""What a model file says of its weights: the JSON among its metadata, checked, older ones brought up to date."""

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
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, complaint, count_of, short
from efficientnetv2.utils.probability import Answer
from efficientnetv2.utils.shell import typed

FORMAT_VERSION = 4  # raised when an older package could no longer read what we write

UPGRADE = "Upgrade efficientnetv2 from where you had it (in a clone: git pull, then pip install -e .)."

_KEY = "efficientnetv2"  # of our JSON among the safetensors metadata
CARRIED = "efficientnetv2.carried"  # of the same in the files of others: ``interop.carried``

Said = TypeVar("Said")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Header:
    """All but the weights.

    Args:
        format_version: of this text.
        package_version: that wrote it.
        architecture: of our networks; None for another's.
        foreign: of another's network, where it comes from ("timm:resnet50"); None where only whoever made it
            can make it again.
        num_classes: of the classifier.
        in_channels: of the picture.
        preprocessing: from any picture to the input.
        class_names: of the outputs, in order.
        answer: what the outputs, which are logits, mean.
        recipe: that it was trained by; as plain JSON, like the next.
        metrics: what it reached.
        sha256: of the tensors of a model file; unknown in a file for others (``interop.carried``), where they have
            other names. The last field: ``tensorfile.write`` fills in the last one it finds.
    """

    format_version: int
    package_version: str
    architecture: Architecture | None
    foreign: str | None
    num_classes: Annotated[int, Field(ge=0)]
    in_channels: Annotated[int, Field(ge=1)]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    answer: Answer
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    sha256: str

    @model_validator(mode="after")
    def _consistent(self) -> Header:
        if self.architecture is not None and self.foreign is not None:
            raise ValueError(f"an architecture, and '{self.foreign}' too: a network is one of the two")
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{len(self.class_names)} class_names for {self.num_classes} outputs. Give one for each, in their order"
            )
        if len(set(self.class_names)) != self.num_classes:
            raise ValueError("two of the class_names are the same")
        if self.preprocessing.channels != self.in_channels:
            raise ValueError(
                f"preprocessing of {count_of(self.preprocessing.channels, 'channel')} for "
                f"{self.in_channels} in_channels"
            )
        if fault := _not_json(self.recipe, "recipe") or _not_json(self.metrics, "metrics"):
            raise ValueError(
                f"{fault}, which JSON cannot hold. Give finite numbers, text, True, False, None, and lists and "
                "dicts (with names of text) of them"
            )
        return self

    def text(self) -> str:
        """As JSON; ``parse`` gives an equal one."""
        return json.dumps(TypeAdapter(Header).dump_python(self, mode="json"), allow_nan=False)

    def metadata(self) -> dict[str, str]:
        """As it stands in a model file."""
        return {"format": "pt", _KEY: self.text()}


def _not_json(value: Any, where: str) -> str | None:
    """The first thing in it that JSON cannot hold, and where; None where there is none."""
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
    """What to do with weights that are not in a model file, as the end of a message."""
    convert = typed(["effnetv2", "convert", str(path), "OUT.safetensors"])
    train = typed(["--weights", str(path)])
    return (
        "If it holds weights of timm, torchvision, Keras or the authors, this makes a model file of it, and says what "
        f"had to be assumed: {convert}. To train from it: {train}"
    )


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file with such metadata is a model file."""
    return _KEY in metadata


def read(path: Path, metadata: Mapping[str, str]) -> tuple[Header, int]:
    """The header of a model file.

    Args:
        path: for messages.
        metadata: of the file.

    Returns:
        The header as the newest format has it, and the format that the file was written in.

    Raises:
        InputError: it is none of ours, newer than this package, or damaged.
    """
    if not is_ours(metadata):
        whole = path.parent if (path.parent / "config.json").is_file() else path
        raise InputError(
            f"{path} is a safetensors file, but not a model file of efficientnetv2: its metadata has no "
            f"'{_KEY}'. {conversion_hint(whole)}"
        )
    return parse(path, metadata[_KEY], _KEY)


def beside(path: Path, text: str, key: str, make: Callable[[Any], Said]) -> Said:
    """What a file says beside its header: JSON under a key of its own.

    Args:
        path: for messages.
        text: from the file's metadata.
        key: of it there.
        make: of the JSON's values what they mean; ``ValueError``, ``KeyError``, ``TypeError`` or ``OverflowError`` if
            they mean nothing.

    Raises:
        InputError: it is damaged.
    """
    try:
        return make(json.loads(text))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path}: the metadata '{key}' is damaged ({reason(error)}). Copy the file again."
        ) from error


def parse(path: Path, text: str, key: str) -> tuple[Header, int]:
    """A header from its text.

    Args:
        path: for messages.
        text: as ``Header.text`` makes it, or an older package did.
        key: where in the file it lies, for messages.

    Returns:
        The header as the newest format has it, and the format that it was written in.

    Raises:
        InputError: it is newer than this package, or damaged.
    """
    try:
        plain = json.loads(text)
        written = TypeAdapter(int).validate_python(
            plain.get("format_version") if isinstance(plain, dict) else None
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the metadata '{key}' is damaged ({reason(error)}).") from error
    if written > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {written}, written by efficientnetv2 {plain.get('package_version')}; "
            f"this is {version('efficientnetv2')}, which reads up to {FORMAT_VERSION}. {UPGRADE}"
        )
    if written < 1:
        raise InputError(f"{path}: the metadata '{key}' is damaged (there was never a format {written}).")
    try:
        return TypeAdapter(Header).validate_python(_migrated(plain, written)), written
    except (ValidationError, RecursionError) as error:
        raise InputError(f"{path}: the metadata '{key}' is damaged ({reason(error)}).") from error


def _migrated(plain: dict[str, Any], written: int) -> dict[str, Any]:
    """A header as the newest format has it."""
    if written == 1:  # knew our own networks alone
        plain = {"foreign": None} | plain
    # 2 knew rasters of three bands alone, whose rule is read as it is.
    if written < 4:  # knew softmax alone
        plain = {"answer": "softmax"} | plain
    return plain | {"format_version": FORMAT_VERSION}


def number_of(plain: Mapping[str, Any], name: str) -> int:
    """A number of images, as what lies beside a header says it.

    Raises:
        ValueError: it is no whole number from 0 to 2^63.
    """
    value = plain[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {short(value)}, but is a whole number from 0 to 2^63")
    return value


def reason(error: Exception) -> str:
    """The first thing that an error complains of, in a line."""
    if isinstance(error, ValidationError):
        return complaint(error.errors())
    return str(error).splitlines()[0]
