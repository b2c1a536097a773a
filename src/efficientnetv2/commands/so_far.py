"""Answers that a long ``predict`` has come to, kept beside its table until that is written."""

from __future__ import annotations

import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.base.errors import count_of
from efficientnetv2.base.files import write_atomically
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.data.listing import packed
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.shards.names import is_url, shard_of
from efficientnetv2.models.foreign import Foreign
from efficientnetv2.models.network import EfficientNet, Network
from efficientnetv2.models.tensorfile import sha256_by_name

Ints = npt.NDArray[np.int64]

# Between two writes: what a process that is killed loses at most. Ours.
_EVERY_S = 300.0


class SoFar:
    """Answers of one network to the pictures of one manifest; whoever asks for the same again goes on with them.

    A picture whose file has changed since, by its size or time, is asked for again.

    Args:
        table: that is written at the end; they lie beside it.
        network: that answers, on the CPU still.
        preprocessing: as the pictures are seen.
        manifest: of all pictures.
        say: gets a line where they can't be kept.
        every_s: seconds between two writes.
    """

    def __init__(
        self,
        table: Path,
        network: Network,
        preprocessing: Preprocessing,
        manifest: Manifest,
        *,
        say: Callable[[str], None],
        every_s: float = _EVERY_S,
    ) -> None:
        self._folder = table.with_name(f".{table.name}.answers")
        self._manifest, self._classes = manifest, network.num_classes
        self._asked = _digest(network, preprocessing, manifest)
        self._say, self._every_s, self._written_at = say, every_s, time.monotonic()
        self._rows: list[Ints] = []
        self._logits: list[Tensor] = []
        self._failed = False

    def found(self) -> tuple[Ints, Tensor]:
        """What an earlier start has kept.

        Returns:
            (n,) rows of the manifest, ascending, and their (n, K) logits.
        """
        parts = [
            part for file in sorted(self._folder.glob(f"{self._asked}-*.npz")) if (part := self._read(file))
        ]
        rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in parts)])
        logits = torch.cat([torch.empty(0, self._classes), *(logits for _, logits in parts)])
        rows, first = np.unique(rows, return_index=True)
        return rows, logits[torch.from_numpy(first)]

    def keep(self, rows: Ints, logits: Tensor) -> None:
        """Take in answers, and write what has come together if the last write is long ago.

        Args:
            rows: (n,) of the manifest.
            logits: (n, K) float32.
        """
        self._rows.append(rows)
        self._logits.append(logits)
        if time.monotonic() - self._written_at >= self._every_s:
            self.write()

    def write(self) -> bool:
        """Write what has come together since the last time; whether anything is kept.

        A disk that takes no more is told of once, and costs no answer.
        """
        if self._rows and not self._failed:
            rows, logits = np.concatenate(self._rows), torch.cat(self._logits).numpy()
            part = {"rows": rows, "logits": logits, "files": _marks(self._manifest, rows.tolist())}
            try:
                self._folder.mkdir(exist_ok=True)
                file = self._folder / f"{self._asked}-{secrets.token_hex(4)}.npz"
                write_atomically(file, lambda partial: _save(partial, part))
            except OSError as error:
                self._failed = True
                self._say(
                    f"Answers so far are not kept: {self._folder}: {error.strerror or error}. Going on without; if "
                    "stopped now, the answers since the last time are lost."
                )
            self._rows, self._logits = [], []
        self._written_at = time.monotonic()
        return next(self._folder.glob(f"{self._asked}-*.npz"), None) is not None

    def remove(self) -> None:
        """Forget them, and those of other networks or pictures: their table has been written, or replaced."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, file: Path) -> tuple[Ints, Tensor] | None:
        """Of the pictures whose files are still the same; None of a file that is damaged."""
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as part:
                rows, logits, files = part["rows"], part["logits"], part["files"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        same = (files == _marks(self._manifest, rows.tolist())).all(axis=1)
        return rows[same], torch.from_numpy(logits[same])


def told(kept: int) -> str:
    """The line on answers that an earlier start has kept."""
    return f"Going on with the answers to {count_of(kept, 'picture')} that an earlier start has kept."


def _save(partial: Path, part: dict[str, npt.NDArray[np.generic]]) -> None:
    with partial.open("wb") as file:  # given a name, numpy would write beside it
        np.savez(file, allow_pickle=False, **part)


def _digest(network: Network, preprocessing: Preprocessing, manifest: Manifest) -> str:
    """32 hexadecimal digits of all that decides an answer, but for the files."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    parts = [one for one in network.modules() if isinstance(one, Network)]
    words = [
        sha256_by_name(weights),
        repr(preprocessing),
        *(repr((_made_as(one), one.preprocessing, one.answer, one.calibration)) for one in parts),
        manifest.digest(),
        repr(manifest.bands),
    ]
    return blake2b("\0".join(words).encode(), digest_size=16).hexdigest()


def _made_as(network: Network) -> str:
    """What computes with the weights: padding, epsilon and pooling are none of them."""
    if isinstance(network, EfficientNet):
        return repr(network.architecture)
    if isinstance(network, Foreign):
        return repr((network.source, type(network.module).__name__))
    return type(network).__name__


def _marks(manifest: Manifest, rows: Sequence[int]) -> Ints:
    """(n, 2) size in bytes and time in ns of the file that each picture stands in; -1 where nobody can say."""
    known: dict[str, tuple[int, int]] = {}
    paths = manifest.paths
    return np.array([_mark(manifest, paths[row], known) for row in rows], np.int64).reshape(-1, 2)


def _mark(manifest: Manifest, path: str, known: dict[str, tuple[int, int]]) -> tuple[int, int]:
    if is_url(str(manifest.root)) or is_url(path):
        return -1, -1
    within = packed(path) if manifest.shards is None else shard_of(path)
    name = path if within is None else within[0]
    if name not in known:
        try:
            found = os.stat(os.path.join(manifest.root, name))
            known[name] = found.st_size, found.st_mtime_ns
        except OSError:
            known[name] = -1, -1
    return known[name]
