"""Options of a server: batching, limits and access."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from os import PathLike, fspath
from pathlib import Path
from typing import Literal

from efficientnetv2.data.open_image import max_pixels
from efficientnetv2.utils.errors import InputError

_MIN_KEY = 16  # characters of an API key: shorter ones can be guessed. Ours


@dataclass(frozen=True)
class ServerOptions:
    """Options of a server. The defaults suit photos of phones and one machine.

    Attributes:
        device: Device to compute on; see `Predictor`.
        engine: What computes: "torch", "onnxruntime", "openvino", "openvino-bf16" (extras), or "auto" for the fastest
            installed one that agrees with PyTorch.
        batch_size: Number of images to compute at a time, at most.
        max_wait_ms: Milliseconds that an image waits for others to fill a batch, at most.
        queue: Number of images that a model holds at a time, at most. Further requests get status 429.
        max_bytes: Bytes of a request, at most; those of its URLs count too.
        max_pixels: Pixels of an image, at most. They are read from its header. A pixel of a TIFF counts once per 3
            bytes: with 6 bytes as two pixels; one that Pillow decodes in Python (QOI, BMP with RLE), as 16. Above twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, no image is decoded.
        max_images: Number of images in a request, at most.
        timeout: Seconds from the start of a request to its response, at most.
        allow_urls: Whether a request may name the URL of an image. Private addresses are never fetched.
        api_keys: Keys that give access. Empty gives access to everybody.
    """

    device: str = "auto"
    engine: Literal["auto", "torch", "onnxruntime", "openvino", "openvino-bf16"] = "auto"
    batch_size: int = 32
    max_wait_ms: float = 5.0
    queue: int = 256
    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_images: int = 32
    timeout: float = 30.0
    allow_urls: bool = False
    api_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            if isinstance(default, bool) or not isinstance(default, int | float):
                continue
            least = 0 if field.name == "max_wait_ms" else 1
            whole = isinstance(default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise InputError(f"`{field.name}` must be a {'whole ' * whole}number, not {value!r}.")
            if not least <= value < math.inf:
                raise InputError(f"`{field.name}` must be at least {least}, not {value!r}.")
        if (most := max_pixels()) and self.max_pixels > most:
            raise InputError(f"`max_pixels` must be at most {most:,}: larger images are not decoded.")
        if self.max_images > self.queue:
            raise InputError(f"`max_images` {self.max_images} must not exceed `queue` {self.queue}.")
        if short := [key for key in self.api_keys if len(key) < _MIN_KEY or not key.isascii()]:
            raise InputError(f"`api_keys`: {len(short)} of the keys must be {_MIN_KEY} ASCII characters or longer.")


def read_api_keys(file: Path) -> tuple[str, ...]:
    """The keys of a file, one per line; empty lines and lines that begin with # are skipped. Raises InputError."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`api_key_file` {file} can't be read ({error}). Give a text file.") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InputError(f"`api_key_file` {file} has no key. Write one, such as: openssl rand -hex 32 > {file}")
    return keys


Models = str | PathLike[str] | Iterable[str | PathLike[str]] | Mapping[str, str | PathLike[str]]


def name_models(models: Models) -> dict[str, str]:
    """The path of each model by its name: that of a run's folder, or of ``NAME=PATH``. Raises InputError."""
    if isinstance(models, Mapping):
        named = [(str(name), fspath(path)) for name, path in models.items()]
    else:
        paths = [models] if isinstance(models, str | PathLike) else list(models)
        named = [_named(fspath(path)) for path in paths]
    if not named:
        raise InputError("the list of models is empty. Give a model file or a run.")
    found: dict[str, str] = {}
    for name, path in named:
        if name in found:
            raise InputError(f"two models have the name '{name}': {found[name]} and {path}. Name one: NAME={path}")
        if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
            raise InputError(f"'{name}' can't be the name of a model in a URL. Name it: NAME={path}")
        found[name] = path
    return found


def _named(path: str) -> tuple[str, str]:
    name, equals, rest = path.partition("=")
    if equals and not Path(path).exists():
        return name, rest
    file = Path(path).absolute()
    if file.suffix != ".safetensors":
        return file.name, path
    return (file.parent.name if file.stem == "model" else file.stem), path
