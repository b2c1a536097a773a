"""``search export``: write an architecture of a study as a file, and show how to train it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch

from efficientnetv2.architectures import io
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.nas.results import TrialRow, best
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import silenced
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.model_scaling import ScaledArchitecture, parse_scaling, scale_up
from efficientnetv2.workflows.output_paths import note_replaced, refuse_foreign_file
from efficientnetv2.workflows.search_report import LoadedStudy

_logger = logging.getLogger(__name__)

# The first comment of a file written here: the trial, and how it was scaled.
_COMMENT = re.compile(r"# Trial (?P<trial>\d+) of the search [^\n]*(?:\n# Grown by (?P<grown>\S+): )?")


def export_trial(
    path: Path, storage: str | None, wait: float, *, out: Path | None, trial: int | None, grown_by: str | None
) -> None:
    """Write the architecture of a trial as a file.

    Raises:
        InputError: There is no such study, trial or scaling, or the file cannot be written or has been edited.
    """
    if grown_by is not None:
        parse_scaling(grown_by)  # Refused before the study is read.
    read = LoadedStudy.of(path, storage, wait)
    row = best(read.rows)[0] if trial is None else _find_row(read, trial)
    if row is None:
        numbers = [row.number for row in read.rows]
        known = f"0 to {max(numbers)}" if numbers else "none"
        raise InputError(f"--trial {trial}: no such trial has ended; there are {known}.")
    architecture, comment, scaled = _exported(read, row, grown_by)
    target = _target(read, out)
    note_replaced(target)
    io.write(target, architecture, comment=comment)
    _logger.info(f"{comment}.")
    _logger.info(f"Written: {target}")
    split_file = read.folder.split_file
    if split_file.exists():
        command = ["effnetv2", "train", str(split_file), "--model", str(target), *_size_args(scaled)]
        # Without minival, the selection images of the search would not be trained on.
        command += [*_band_args(read), "--set", "minival=0.1"]
        _logger.info(f"Train it fully, judged by pictures that the search did not see: {shell_join(command)}")


def _find_row(read: LoadedStudy, trial: int) -> TrialRow | None:
    return next((row for row in read.rows if row.number == trial), None)


def _exported(
    read: LoadedStudy, row: TrialRow, grown_by: str | None
) -> tuple[Architecture, str, ScaledArchitecture | None]:
    """The architecture of a trial as it is written, the comment of its file, and its scaling."""
    config = read.study.config
    architecture = config.space.decode(row.point)
    comment = (
        f"Trial {row.number} of the search {read.study.name}: {row.measurement}; reward {row.reward:.4f}"
    )
    if grown_by is None:
        return architecture, comment, None
    eval_image_size = config.recipe.eval_image_size or config.recipe.progressive.last.image_size
    scaled = scale_up(architecture, parse_scaling(grown_by), eval_image_size=eval_image_size)
    sizes = (
        f"for images of {scaled.eval_image_size} px, which training ends at {scaled.train_image_size} px for"
    )
    return scaled.architecture, f"{comment}.\nGrown by {grown_by}: {sizes}", scaled


def _band_args(read: LoadedStudy) -> list[str]:
    """The raster bands of the search, as arguments of ``train``: the split file does not have them."""
    bands = read.study.config.bands
    if bands is not None:
        text = ",".join(map(str, bands))
    else:  # A study of a version that did not record them.
        text = (read.folder.source().bands if read.folder.file.exists() else None) or ""
    return ["--bands", text] if text else []


def _size_args(scaled: ScaledArchitecture | None) -> list[str]:
    """The image sizes of a scaled architecture, as arguments of ``train``; none below its stride."""
    if scaled is None:
        return []
    train_image_size, stride = scaled.train_image_size, scaled.architecture.stride
    with silenced():
        overrides = TrainOverrides(model=scaled.architecture, image_size=train_image_size)
        recipe, _ = requested_recipe(overrides, torch.device("cpu"))
    args = ["--image-size", str(train_image_size), "--set", f"eval_image_size={scaled.eval_image_size}"]
    if recipe.progressive.stage(0).image_size < stride:
        args += ["--set", f"progressive.image_size={{start: {stride}, end: {train_image_size}}}"]
    return args


def _target(read: LoadedStudy, out: Path | None) -> Path:
    reason = "an architecture file may have been edited"
    if out is None:
        read.folder.make()
        found = read.folder.path / "found.yaml"
        if found.exists() and not _is_unchanged(read, found):
            raise InputError(
                f"{found} is not as it was exported: {reason}, and would be lost. Pass another file (--output), or "
                "remove "
                "it."
            )
        return found
    if not io.is_architecture_file(str(out)):
        raise InputError(f"--output {out}: must end in .yaml, .yml or .json, so that train recognizes it.")
    refuse_foreign_file(out, "--output", lambda file: False, reason)
    return out


def _is_unchanged(read: LoadedStudy, file: Path) -> bool:
    """Whether a file is exactly what an export of the trial in its comment writes."""
    try:
        text = file.read_text(encoding="utf-8")
        comment = _COMMENT.match(text)
        row = None if comment is None else _find_row(read, int(comment["trial"]))
        if comment is None or row is None:
            return False
        architecture, written, _ = _exported(read, row, comment["grown"])
    except (OSError, UnicodeDecodeError, InputError):
        return False
    return text == io.text_of(architecture, comment=written)
