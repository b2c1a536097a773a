"""What ``augment`` does: a few pictures through the pipeline of training, at the setting of every stage."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.data_module import prepare_data
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.image_io import UnreadableImageError, display_channels
from efficientnetv2.data.loader import TrainingImages
from efficientnetv2.data.readers import Reader, source_reader
from efficientnetv2.data.sampler import BatchRequest
from efficientnetv2.evaluation.plot_style import is_titled, png
from efficientnetv2.evaluation.thumbnails import ImageRow, draw_rows, is_low_contrast, stretch_contrast
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, StepSettings
from efficientnetv2.training.image_cache import preview_cache
from efficientnetv2.training.image_sizes import limit_upscaling
from efficientnetv2.training.initial_weights import build_initial_model
from efficientnetv2.training.loop import StepContext, augment_batch
from efficientnetv2.training.losses import NO_CLASS_TERMS, class_terms
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import eval_preprocessing
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import check_writable_file, write_atomically
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.output_paths import note_replaced, refuse_foreign_file, refuse_inside_data

_logger = logging.getLogger(__name__)

# Of a size that grows at every step: moments to look at. Ours.
_MOMENTS = 4
_TITLE = "effnetv2 train --preview"  # in the file, so that it is known for a sheet
_STRETCHED = "dark ones with the contrast stretched as this picture of their column needs, to be seen at all"


def draw_sheet(
    words: TrainOverrides, source: DataConfig, out: Path, *, pictures: int, device: str, strict: bool
) -> None:
    """Draw a sheet of what each stage of a recipe feeds to the network.

    Raises:
        InputError: anything a user can mend.
    """
    if out.suffix.lower() != ".png":
        raise InputError(f"--preview {out}: the sheet is a PNG. Give a name that ends in .png.")
    check_writable_file(out, "--preview", such_as="sheet.png")
    refuse_inside_data(source.data, out.parent, "--preview")
    refuse_foreign_file(out, "--preview", _is_sheet, "is no sheet of effnetv2 train --preview")
    note_replaced(out)
    on = pick_device(device)
    recipe, chosen = requested_recipe(words, on)
    prepared = prepare_data(
        source,
        val_fraction=recipe.val_fraction,
        eval_split=recipe.eval_split,
        minival=recipe.minival,
        seed=recipe.seed,
        strict=strict,
    )
    recipe, smaller = limit_upscaling(recipe, None if recipe.max_upscale is None else prepared.stored_size)
    for line in [*chosen, *smaller]:
        _logger.info(line)
    train = prepared.train
    network = build_initial_model(
        recipe, class_names=train.class_names, device=on, in_channels=train.channels
    ).network
    recipe = recipe.model_copy(
        update={"eval_image_size": recipe.eval_image_size or recipe.progressive.last.image_size}
    )
    preprocessing = eval_preprocessing(recipe, network, train.bands)
    samples = in_turn(train, pictures, Key.of(recipe.seed).fold("sheet"))
    reader = preview_cache(recipe, train, samples, on)
    rows = [
        _as_evaluated(train, samples, preprocessing),
        *(
            _as_trained(train, samples, recipe, preprocessing, setting, number, reader)
            for number, setting in enumerate(settings_of(recipe.progressive))
        ),
    ]
    image = png(draw_rows(_to_be_seen(rows)), title=_TITLE)
    try:
        write_atomically(out, lambda partial: partial.write_bytes(image))
    except OSError as error:
        raise InputError(f"--preview {out}: {error.strerror or error}. Give another place.") from error
    _logger.info(f"Sheet: {out}")


def _is_sheet(file: Path) -> bool:
    return is_titled(file, _TITLE)


def in_turn(dataset: ImageDataset, count: int, key: Key) -> npt.NDArray[np.int64]:
    """So many rows at random, one of each class in turn; fewer if there are fewer.

    Args:
        dataset: labeled.
        count: of rows.
        key: of the draw.
    """
    order = key.generator().permutation(len(dataset))
    turn = np.zeros(len(order), dtype=np.int64)
    for label in np.unique(dataset.labels):
        of_class = np.flatnonzero(dataset.labels[order] == label)
        turn[of_class] = np.arange(len(of_class))
    chosen: npt.NDArray[np.int64] = order[np.lexsort((dataset.labels[order], turn))][:count].astype(np.int64)
    return chosen


def settings_of(plan: ProgressiveSchedule) -> list[StepSettings]:
    """Of each stage; of a plan that changes at every step, of moments spread over it."""
    if not plan.changes_always:
        return [plan.stage(index) for index in range(plan.stages)]
    steps = 1000
    return [
        plan.at(round(moment * (steps - 1) / (_MOMENTS - 1)), total_steps=steps) for moment in range(_MOMENTS)
    ]


def _as_evaluated(
    train: ImageDataset, samples: npt.NDArray[np.int64], preprocessing: Preprocessing
) -> ImageRow:
    reader, images = source_reader(train), []
    for sample in samples:
        try:
            images.append(load_eval_image(reader.source(int(sample)), preprocessing))
        except UnreadableImageError as error:
            raise InputError(f"{error}. Repair it, or leave it out.") from error
    names = [", ".join(_names(train, int(sample))) for sample in samples]
    seen = tuple(display_channels(image) for image in images)
    return ImageRow(f"evaluation, {preprocessing.image_size} px", seen, tuple(names))


def _to_be_seen(rows: list[ImageRow]) -> list[ImageRow]:
    """Of a dark set, every column with the contrast that its picture as evaluated needs."""
    if not is_low_contrast(rows[0].images):
        return rows
    columns = [
        stretch_contrast(column, column[0]) for column in zip(*(row.images for row in rows), strict=True)
    ]
    seen = [replace(row, images=images) for row, images in zip(rows, zip(*columns, strict=True), strict=True)]
    return [replace(seen[0], words=f"{seen[0].words} ({_STRETCHED})"), *seen[1:]]


def _names(train: ImageDataset, sample: int) -> list[str]:
    return [train.class_names[label] for label in np.atleast_1d(train.targets[sample]) if label >= 0]


def _as_trained(
    train: ImageDataset,
    samples: npt.NDArray[np.int64],
    recipe: Recipe,
    preprocessing: Preprocessing,
    setting: StepSettings,
    number: int,
    reader: Reader | None = None,
) -> ImageRow:
    """The pictures as the network gets them at a setting: those of another epoch for each; as the reader keeps them."""
    key = Key.of(recipe.seed)
    request = BatchRequest(number, 0, setting, samples, np.full(len(samples), number, dtype=np.int64))
    seen = replace(preprocessing, crop_mode=recipe.random_crop_mode)
    batch = TrainingImages(train, seen, recipe.crop_scale_min, key, reader=reader).batch(request)
    terms = (
        class_terms(train.targets, len(train.class_names), recipe)
        if recipe.minority_randaugment_scale != 1
        else NO_CLASS_TERMS
    )
    context = StepContext(
        recipe,
        preprocessing,
        num_classes=len(train.class_names),
        key=key,
        device=torch.device("cpu"),
        class_terms=terms,
    )
    images, labels = augment_batch(batch, context)
    seen_so = tuple(_for_the_eye(image, preprocessing) for image in images)
    own = train.targets[samples].reshape(len(samples), -1)
    said = tuple(
        _mixed(shares, {int(one) for one in mine}, setting, train.class_names)
        for shares, mine in zip(labels, own, strict=True)
    )
    return ImageRow(_called(setting, number), seen_so, said)


def _for_the_eye(image: Tensor, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """(S, S, 3) uint8 from (C, S, S) normalized."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    levels = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return display_channels(levels.permute(1, 2, 0).numpy())


def _mixed(shares: Tensor, own: set[int], setting: StepSettings, class_names: tuple[str, ...]) -> str:
    """The label, where mixing has made another of it: smoothing, alike for all, is not said."""
    plain = shares - setting.label_smoothing / len(class_names)
    there = [int(label) for label in plain.argsort(descending=True) if float(plain[label]) > 0.01]
    if set(there) == own - {-1}:
        return ""
    whole = float(sum(plain[label] for label in there))
    return " + ".join(f"{float(plain[label]) / whole:.0%} {class_names[label]}" for label in there)


def _called(setting: StepSettings, number: int) -> str:
    words = [f"stage {number + 1}: {setting.image_size} px"]
    if setting.randaugment is not None:
        words.append(f"RandAugment {setting.randaugment:.3g}")
    for name, value in (
        ("mixup", setting.mixup_alpha),
        ("cutmix", setting.cutmix_alpha),
        ("cutout", setting.cutout),
    ):
        if value:
            words.append(f"{name} {value:.2g}")
    return ", ".join(words)
