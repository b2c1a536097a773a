"""What verbs that answer share: the device, pictures answered by one process or many, and what could not be read."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import packed_record
from efficientnetv2.data.shards.index import is_url, shard_of
from efficientnetv2.data.shards.reader import ShardDamage
from efficientnetv2.data.shards.storage import Stat, store_at
from efficientnetv2.inference.predict import Predictions, predict_distributed
from efficientnetv2.models.conversion.reading import is_model_file
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.ensemble import ensemble_members
from efficientnetv2.models.safetensors_io import sha256_by_name
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.utils.device import device_note, pick_own_device
from efficientnetv2.utils.distributed import World, broadcast_from_main
from efficientnetv2.utils.errors import InputError, escape_controls, pluralize
from efficientnetv2.utils.io import write_atomically
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.predictions_io import read_header

_logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]

# Between two writes: what a process that is killed loses at most. Ours.
_EVERY_S = 300.0


class PredictionCheckpoint:
    """Answers of one network to the pictures of one dataset; whoever asks for the same again goes on with them.

    A picture whose file or shard has changed since, by its size and time, of a URL by what the store says of its state,
    is asked for again.

    Args:
        table: that is written at the end; they lie beside it.
        network: that answers, on the CPU still.
        preprocessing: as the pictures are seen.
        dataset: of all pictures.
        every_s: seconds between two writes.
    """

    def __init__(
        self,
        table: Path,
        network: Network,
        preprocessing: Preprocessing,
        dataset: ImageDataset,
        *,
        every_s: float = _EVERY_S,
    ) -> None:
        self._folder = table.with_name(f".{table.name}.answers")
        self._manifest, self._classes = dataset, network.num_classes
        self._asked = _digest(network, preprocessing, dataset)
        self._every_s, self._written_at = every_s, time.monotonic()
        self._unwritten: list[tuple[Ints, Tensor, Ints]] = []  # rows, logits, marks
        self._states: dict[str, Stat | None] = {}  # of shards, so that each is asked for once
        self._failed = False

    def found(self) -> tuple[Ints, Tensor]:
        """What an earlier start has kept.

        Returns:
            (n,) rows of the dataset, ascending, and their (n, K) logits.

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
            rows: (n,) of the dataset.
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
                _logger.info(
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
        dataset = self._manifest
        files = [_file(dataset.paths[row], in_shards=dataset.shards is not None) for row in rows.tolist()]
        states: dict[str, Stat | None] = {} if dataset.shards is None else self._states
        new = [name for name in dict.fromkeys(files) if name not in states]
        if new:
            states |= zip(new, store_at(str(dataset.root)).stats(new), strict=True)
        return np.array([_mark(states[name]) for name in files], np.int64).reshape(-1, 2)


def told(kept: int) -> str:
    """The line on answers that an earlier start has kept."""
    return f"Going on with the answers to {pluralize(kept, 'picture')} that an earlier start has kept."


def _save(partial: Path, part: dict[str, npt.NDArray[np.generic]]) -> None:
    with partial.open("wb") as file:  # given a name, numpy would write beside it
        np.savez(file, allow_pickle=False, **part)


def _digest(network: Network, preprocessing: Preprocessing, dataset: ImageDataset) -> str:
    """32 hexadecimal digits of all that decides an answer, but for the files."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    parts = [one for one in network.modules() if isinstance(one, Network)]
    # Of a file its size and time are known, and of some stores not even the time, so that those of another folder or
    # URL could be taken for these.
    root = str(dataset.root)
    root = root if is_url(root) else os.path.realpath(root)
    words = [
        sha256_by_name(weights),
        repr(preprocessing),
        *(repr((_made_as(one), one.preprocessing, one.answer, one.calibration)) for one in parts),
        dataset.digest(),
        root,
        repr(dataset.bands),
    ]
    return blake2b("\0".join(words).encode(), digest_size=16).hexdigest()


def _made_as(network: Network) -> str:
    """What computes with the weights: padding, epsilon and pooling are none of them."""
    if isinstance(network, EfficientNet):
        return repr(network.architecture)
    if isinstance(network, WrappedModel):
        return repr((network.source, type(network.module).__name__))
    return type(network).__name__


def _file(path: str, *, in_shards: bool) -> str:
    """What holds a picture of a dataset: itself, its shard, or the file that it is packed into."""
    within = shard_of(path) if in_shards else packed_record(path)
    return path if within is None else within[0]


def _mark(state: Stat | None) -> tuple[int, int]:
    """Size in bytes, and a number for the word of its state; -1 where there is none."""
    if state is None:
        return -1, -1
    return state.bytes, int.from_bytes(blake2b(state.stamp.encode(), digest_size=8).digest(), signed=True)


# Unreadable pictures that the screen names; there is a list of all. Ours.
_NAMED = 5
SKIPPED = "skipped.csv"
_SKIPPED_COLUMNS = ["path", "reason"]


def device_for_rank(word: str, world: World) -> torch.device:
    """The device of this process, and a line where it was taken unasked though it is not tested, or there is a better.

    Args:
        word: as ``--device`` says it.
        world: the processes.

    Raises:
        InputError: no such device here, or none for each process.
    """
    device = pick_own_device(word, world.local_rank, world.local_size)
    if note := device_note(word, device):
        _logger.info(note)
    return device


def refuse_swapped_arguments(model: str, data: str | Path, command: str) -> None:
    """Refuse MODEL and DATA in the wrong order.

    Args:
        model: as the user gave it.
        data: as the user gave it.
        command: that takes both.

    Raises:
        InputError: only DATA is a model.
    """
    if _is_model(data) and not _is_model(model):
        right = shell_join(["effnetv2", command, str(data), model])
        raise InputError(f"MODEL {model} is not a model, but DATA {data} is. Swap them: {right}")


def _is_model(path: str | Path) -> bool:
    """Whether a path is a model file, or the folder of a run or a cross-validation."""
    folder = Path(path)
    if not folder.is_dir():
        return folder.is_file() and is_model_file(folder)
    return is_model_file(folder) or (folder / "recipe.yaml").is_file() or bool(ensemble_members(folder))


@dataclass(frozen=True, eq=False)
class PredictionJob:
    """What the first process has read, for all.

    Args:
        network: that answers.
        dataset: of the pictures.
        damage: of their shards; what is lost by it is not asked for again.
    """

    network: Network
    dataset: ImageDataset
    damage: ShardDamage


def run_prediction(
    asked: PredictionJob,
    what: str,
    *,
    preprocessing: Preprocessing,
    device: torch.device,
    workers: int,
    strict: bool,
    world: World,
    so_far: PredictionCheckpoint | None = None,
) -> tuple[Predictions, float]:
    """Answers to the pictures, and the seconds that they took; every process calls it.

    Args:
        asked: the same for all.
        what: is done, for the progress bar.
        preprocessing: as the pictures are seen: the network's own, or at another size, or with other views.
        device: of this process.
        workers: of this process, that read pictures.
        strict: refuse the first unreadable picture instead of skipping it.
        world: the processes.
        so_far: what of these answers is on the disk, and where this process keeps its own; None keeps none.

    Returns:
        All answers for the first process; of use there alone.

    Raises:
        InputError: none of the pictures can be read; or one, with ``strict``.
        KeyboardInterrupt: Ctrl-C; says so where answers are kept.
    """
    dataset, lost = asked.dataset, asked.damage.reasons
    left = np.setdiff1d(np.arange(len(dataset)), list(lost))
    # The logits stay with the first process, which alone puts all together: of a million pictures they are gigabytes.
    known = so_far.found() if so_far is not None and world.is_main_process else None
    rows = None if so_far is None else broadcast_from_main(world, lambda: None if known is None else known[0])
    if rows is not None and len(rows):
        _logger.info(told(len(rows)))
        left = np.setdiff1d(left, rows)
    started = time.perf_counter()
    with progress(what, len(left)) as counted, saving_on_interrupt(so_far):
        predictions = predict_distributed(
            asked.network,
            dataset.select(left) if len(left) < len(dataset) else dataset,
            preprocessing=preprocessing,
            device=device,
            workers=workers,
            world=world,
            progress=counted,
            on_batch=None if so_far is None else lambda rows, logits: so_far.keep(left[rows], logits),
            strict=strict,
        )
    seconds = time.perf_counter() - started
    unreadable = lost | {int(left[row]): reason for row, reason in predictions.unreadable}
    whole = replace(
        predictions, samples=left[predictions.samples], unreadable=tuple(sorted(unreadable.items()))
    )
    if known is not None and len(known[0]):  # without any, three times the logits would be in memory
        whole = _with(whole, dataset, *known)
    if world.is_main_process and not len(whole.samples):
        raise none_readable_error(dataset, *whole.unreadable[0])
    return whole, seconds


@contextmanager
def saving_on_interrupt(so_far: PredictionCheckpoint | None) -> Iterator[None]:
    """Within, a process that is stopped, or fails, keeps its answers; SIGTERM stops it as Ctrl-C does.

    Args:
        so_far: where it keeps them; None keeps none, and leaves signals as they are.

    Raises:
        KeyboardInterrupt: Ctrl-C; says so where answers are kept.
    """
    if so_far is None:
        yield
        return
    with signals_as_ctrl_c():
        try:
            yield
        except KeyboardInterrupt as stop:
            if so_far.write():
                raise KeyboardInterrupt(
                    "The answers so far are kept: the same command goes on from them."
                ) from stop
            raise
        except BaseException:
            so_far.write()
            raise


def _with(predictions: Predictions, dataset: ImageDataset, rows: Ints, logits: torch.Tensor) -> Predictions:
    """The same, and the answers to further pictures, all in the order of the dataset."""
    samples = np.concatenate([predictions.samples, rows])
    order = np.argsort(samples)
    return replace(
        predictions,
        samples=samples[order],
        labels=dataset.targets[samples[order]],
        logits=torch.cat([predictions.logits, logits])[torch.from_numpy(order)],
    )


def log_unreadable(dataset: ImageDataset, unreadable: Sequence[tuple[int, str]], damage: ShardDamage) -> None:
    """Name the first few pictures that could not be read, and count the rest; shards have had a line each.

    A reason is said once: that a raster does not fit the model's rule takes several sentences.

    Args:
        dataset: of all pictures.
        unreadable: row and reason of each.
        damage: of the shards.
    """
    others = [(row, reason) for row, reason in unreadable if row not in damage.reasons]
    said: set[str] = set()
    for row, reason in others[:_NAMED]:
        why = "likewise" if reason in said else reason.removesuffix(".")
        _logger.info(f"Skipped {escape_controls(dataset.paths[row])}: {why}.")
        said.add(reason)
    if len(others) > _NAMED:
        _logger.info(f"Skipped {len(others) - _NAMED:,} more that could not be read.")


def write_skipped(file: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """Write the pictures that could not be read, and why, into a CSV.

    Args:
        file: of the list; its folder is there. Where nothing was skipped none is left: it would be of answers
            that these replace.
        skipped: path and reason of each.

    Raises:
        InputError: it can't be written.
    """
    table = pd.DataFrame(skipped, columns=_SKIPPED_COLUMNS)
    try:
        if not skipped:
            file.unlink(missing_ok=True)
            return
        write_table(file, table)
    except OSError as error:
        raise InputError(
            f"{file}: {error.strerror or error}. Give a place that can be written to by --out."
        ) from error


def skipped_csv_for(table: Path) -> Path:
    """Where the pictures are listed that a table of predictions lacks: beside it, under its name.

    Args:
        table: ``labels.csv``, whose list is ``labels_skipped.csv``.
    """
    return table.with_name(f"{table.stem}_{SKIPPED}")


def is_skipped_csv(file: Path) -> bool:
    """Whether a file is what ``write_skipped`` writes, by its header."""
    return read_header(file) == _SKIPPED_COLUMNS


def skipped_summary(dataset: ImageDataset, unreadable: Sequence[tuple[int, str]], file: Path | None) -> str:
    """The last line on what was skipped: how many of how many, and where they are listed.

    Args:
        dataset: of all pictures.
        unreadable: row and reason of each; not empty.
        file: where they are listed, None for nowhere.
    """
    where = f"all are listed in {file}" if file else "--out FOLDER lists them all"
    return f"Skipped {len(unreadable):,} of {len(dataset):,} pictures; {where}."


def none_readable_error(dataset: ImageDataset, row: int, reason: str) -> InputError:
    """The error for pictures none of which can be read.

    Args:
        dataset: of them.
        row: of the first.
        reason: why that can't be.
    """
    why = reason.removesuffix(".")  # those of rasters are sentences
    if len(dataset) == 1:
        return InputError(
            f"{dataset.where(row)}: {why}. There is no other image in {dataset.source}. Bring it back or repair "
            "it, or give others."
        )
    return InputError(
        f"None of the {len(dataset):,} pictures of {dataset.source} can be read. The first, {dataset.where(row)}: "
        f"{why}. Bring them back or repair them, or give other pictures."
    )
