"""Answers that a long ``predict`` has come to, kept beside its table until all that it writes is written."""

from __future__ import annotations

import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable
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
from efficientnetv2.data.shards.stores import Stat, store_at
from efficientnetv2.models.foreign import Foreign
from efficientnetv2.models.network import EfficientNet, Network
from efficientnetv2.models.tensorfile import sha256_by_name

Ints = npt.NDArray[np.int64]

# Between two writes: what a process that is killed loses at most. Ours.
_EVERY_S = 300.0


class SoFar:
    """Answers of one network to the pictures of one manifest; whoever asks for the same again goes on with them.

    A picture whose file or shard has changed since, by its size and time, of a URL by what the store says of its state,
    is asked for again.

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
        self._unwritten: list[tuple[Ints, Tensor, Ints]] = []  # rows, logits, marks
        self._states: dict[str, Stat | None] = {}  # of shards, so that each is asked for once
        self._failed = False

    def found(self) -> tuple[Ints, Tensor]:
        """What an earlier start has kept.

        Returns:
            (n,) rows of the manifest, ascending, and their (n, K) logits.

        Raises:
            InputError: the store of their shards does not answer.
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

        Raises:
            InputError: the store of their shards does not answer.
        """
        # Of a store that goes away later nothing could be asked, and that is when the answers have to be kept.
        self._unwritten.append((rows, logits, self._marks(rows)))
        if time.monotonic() - self._written_at >= self._every_s:
            self.write()

    def write(self) -> bool:
        """Write what has come together since the last time; whether anything is kept.

        A disk that takes no more is told of once, and costs no answer.
        """
        if self._unwritten and not self._failed:
            rows, logits, files = zip(*self._unwritten, strict=True)
            part = {
                "rows": np.concatenate(rows),
                "logits": torch.cat(logits).numpy(),
                "files": np.concatenate(files),
            }
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
            self._unwritten = []
        self._written_at = time.monotonic()
        return next(self._folder.glob(f"{self._asked}-*.npz"), None) is not None

    def remove(self) -> None:
        """Forget them, and those of other networks or pictures: what hangs on them has been written, or replaced."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, file: Path) -> tuple[Ints, Tensor] | None:
        """Of the pictures whose files are still the same; None of a file that is damaged."""
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as part:
                rows, logits, files = part["rows"], part["logits"], part["files"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        same = (files == self._marks(rows)).all(axis=1)
        return rows[same], torch.from_numpy(logits[same])

    def _marks(self, rows: Ints) -> Ints:
        """(n, 2) size in bytes and state of the file that each picture stands in; -1 where nobody can say."""
        manifest = self._manifest
        files = [_file(manifest.paths[row], in_shards=manifest.shards is not None) for row in rows.tolist()]
        states: dict[str, Stat | None] = {} if manifest.shards is None else self._states
        new = [name for name in dict.fromkeys(files) if name not in states]
        if new:
            states |= zip(new, store_at(str(manifest.root)).stats(new), strict=True)
        return np.array([_mark(states[name]) for name in files], np.int64).reshape(-1, 2)


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
    # Of a file its size and time are known, and of some stores not even the time, so that those of another folder or
    # URL could be taken for these.
    root = str(manifest.root)
    root = root if is_url(root) else os.path.realpath(root)
    words = [
        sha256_by_name(weights),
        repr(preprocessing),
        *(repr((_made_as(one), one.preprocessing, one.answer, one.calibration)) for one in parts),
        manifest.digest(),
        root,
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


def _file(path: str, *, in_shards: bool) -> str:
    """What holds a picture of a manifest: itself, its shard, or the file that it is packed into."""
    within = shard_of(path) if in_shards else packed(path)
    return path if within is None else within[0]


def _mark(state: Stat | None) -> tuple[int, int]:
    """Size in bytes, and a number for the word of its state; -1 where there is none."""
    if state is None:
        return -1, -1
    return state.bytes, int.from_bytes(blake2b(state.stamp.encode(), digest_size=8).digest(), signed=True)
