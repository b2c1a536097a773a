"""What verbs that answer share: the device, pictures answered by one process or many, and what could not be read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from efficientnetv2.base.errors import InputError, escaped
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.base.typed import typed
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.so_far import Ints, SoFar, told
from efficientnetv2.commands.tables import header_of
from efficientnetv2.data.cells import write_table
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.shards.checking import Damage
from efficientnetv2.inference.accelerate import device_note, pick_own_device
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models.ensemble import members_of
from efficientnetv2.models.interop.read import is_model_file
from efficientnetv2.models.network import Network
from efficientnetv2.training.answers import shared_answers
from efficientnetv2.training.distributed import World, by_first
from efficientnetv2.training.interrupt import signals_as_ctrl_c

# Unreadable pictures that the screen names; there is a list of all. Ours.
_NAMED = 5
SKIPPED = "skipped.csv"
_SKIPPED_COLUMNS = ["path", "reason"]


def device_to_answer_on(word: str, world: World, screen: Screen) -> torch.device:
    """The device of this process, and a line where it was taken unasked though it is not tested, or there is a better.

    Args:
        word: as ``--device`` says it.
        world: the processes.
        screen: of this process.

    Raises:
        InputError: no such device here, or none for each process.
    """
    device = pick_own_device(word, world.local_rank, world.local_size)
    if note := device_note(word, device):
        screen.say(note)
    return device


def refuse_swapped(model: str, data: str | Path, command: str) -> None:
    """Refuse MODEL and DATA in the wrong order.

    Args:
        model: as the user gave it.
        data: as the user gave it.
        command: that takes both.

    Raises:
        InputError: only DATA is a model.
    """
    if _is_model(data) and not _is_model(model):
        right = typed(["effnetv2", command, str(data), model])
        raise InputError(f"MODEL {model} is not a model, but DATA {data} is. Swap them: {right}")


def _is_model(path: str | Path) -> bool:
    """Whether a path is a model file, or the folder of a run or a cross-validation."""
    folder = Path(path)
    if not folder.is_dir():
        return folder.is_file() and is_model_file(folder)
    return is_model_file(folder) or (folder / "recipe.yaml").is_file() or bool(members_of(folder))


@dataclass(frozen=True, eq=False)
class Asked:
    """What the first process has read, for all.

    Args:
        network: that answers.
        manifest: of the pictures.
        damage: of their shards; what is lost by it is not asked for again.
    """

    network: Network
    manifest: Manifest
    damage: Damage


def answered(
    asked: Asked,
    what: str,
    *,
    preprocessing: Preprocessing,
    device: torch.device,
    workers: int,
    strict: bool,
    screen: Screen,
    world: World,
    so_far: SoFar | None = None,
) -> tuple[Predictions, float]:
    """Answers to the pictures, and the seconds that they took; every process calls it.

    Args:
        asked: the same for all.
        what: is done, for the progress bar.
        preprocessing: as the pictures are seen: the network's own, or at another size, or with other views.
        device: of this process.
        workers: of this process, that read pictures.
        strict: refuse the first unreadable picture instead of skipping it.
        screen: of this process.
        world: the processes.
        so_far: what of these answers is on the disk, and where this process keeps its own; None keeps none.

    Returns:
        All answers for the first process; of use there alone.

    Raises:
        InputError: none of the pictures can be read; or one, with ``strict``.
        KeyboardInterrupt: Ctrl-C; says so where answers are kept.
    """
    manifest, lost = asked.manifest, asked.damage.reasons
    left = np.setdiff1d(np.arange(len(manifest)), list(lost))
    # The logits stay with the first process, which alone puts all together: of a million pictures they are gigabytes.
    known = so_far.found() if so_far is not None and world.first else None
    rows = None if so_far is None else by_first(world, lambda: None if known is None else known[0])
    if rows is not None and len(rows):
        screen.say(told(len(rows)))
        left = np.setdiff1d(left, rows)
    started = time.perf_counter()
    with screen.counting(what, len(left)) as counted, kept(so_far):
        predictions = shared_answers(
            asked.network,
            manifest.select(left) if len(left) < len(manifest) else manifest,
            preprocessing=preprocessing,
            device=device,
            workers=workers,
            world=world,
            progress=counted,
            each=None if so_far is None else lambda rows, logits: so_far.keep(left[rows], logits),
            strict=strict,
        )
    seconds = time.perf_counter() - started
    unreadable = lost | {int(left[row]): reason for row, reason in predictions.unreadable}
    whole = replace(
        predictions, samples=left[predictions.samples], unreadable=tuple(sorted(unreadable.items()))
    )
    if known is not None and len(known[0]):  # without any, three times the logits would be in memory
        whole = _with(whole, manifest, *known)
    if world.first and not len(whole.samples):
        raise none_readable(manifest, *whole.unreadable[0])
    return whole, seconds


@contextmanager
def kept(so_far: SoFar | None) -> Iterator[None]:
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


def _with(predictions: Predictions, manifest: Manifest, rows: Ints, logits: torch.Tensor) -> Predictions:
    """The same, and the answers to further pictures, all in the order of the manifest."""
    samples = np.concatenate([predictions.samples, rows])
    order = np.argsort(samples)
    return replace(
        predictions,
        samples=samples[order],
        labels=manifest.targets[samples[order]],
        logits=torch.cat([predictions.logits, logits])[torch.from_numpy(order)],
    )


def tell_unreadable(
    manifest: Manifest, unreadable: Sequence[tuple[int, str]], damage: Damage, screen: Screen
) -> None:
    """Name the first few pictures that could not be read, and count the rest; shards have had a line each.

    A reason is said once: that a raster does not fit the model's rule takes several sentences.

    Args:
        manifest: of all pictures.
        unreadable: row and reason of each.
        damage: of the shards.
        screen: to write on.
    """
    others = [(row, reason) for row, reason in unreadable if row not in damage.reasons]
    said: set[str] = set()
    for row, reason in others[:_NAMED]:
        why = "likewise" if reason in said else reason.removesuffix(".")
        screen.say(f"Skipped {escaped(manifest.paths[row])}: {why}.")
        said.add(reason)
    if len(others) > _NAMED:
        screen.say(f"Skipped {len(others) - _NAMED:,} more that could not be read.")


def list_skipped(file: Path, skipped: Sequence[tuple[str, str]]) -> None:
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


def list_beside(table: Path) -> Path:
    """Where the pictures are listed that a table of predictions lacks: beside it, under its name.

    Args:
        table: ``labels.csv``, whose list is ``labels_skipped.csv``.
    """
    return table.with_name(f"{table.stem}_{SKIPPED}")


def is_list_of_skipped(file: Path) -> bool:
    """Whether a file is what ``list_skipped`` writes, by its header."""
    return header_of(file) == _SKIPPED_COLUMNS


def skipped_in_all(manifest: Manifest, unreadable: Sequence[tuple[int, str]], file: Path | None) -> str:
    """The last line on what was skipped: how many of how many, and where they are listed.

    Args:
        manifest: of all pictures.
        unreadable: row and reason of each; not empty.
        file: where they are listed, None for nowhere.
    """
    where = f"all are listed in {file}" if file else "--out FOLDER lists them all"
    return f"Skipped {len(unreadable):,} of {len(manifest):,} pictures; {where}."


def none_readable(manifest: Manifest, row: int, reason: str) -> InputError:
    """The error for pictures none of which can be read.

    Args:
        manifest: of them.
        row: of the first.
        reason: why that can't be.
    """
    why = reason.removesuffix(".")  # those of rasters are sentences
    if len(manifest) == 1:
        return InputError(
            f"{manifest.where(row)}: {why}. There is no other picture in {manifest.source}. Bring it back or repair "
            "it, or give others."
        )
    return InputError(
        f"None of the {len(manifest):,} pictures of {manifest.source} can be read. The first, {manifest.where(row)}: "
        f"{why}. Bring them back or repair them, or give other pictures."
    )
