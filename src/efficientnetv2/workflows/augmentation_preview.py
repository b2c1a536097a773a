"""A sheet of images as training augments them, with the values of every stage: `efficientnetv2.preview`."""

from __future__ import annotations

import logging
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset, refuse_missing
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.image_io import Pixels, UnreadableImageError, display_channels
from efficientnetv2.data.readers import Reader, source_reader
from efficientnetv2.data.records import Ints
from efficientnetv2.data.sampler import BatchRequest, rank_in_class
from efficientnetv2.evaluation.plot_style import default_style, is_titled, png
from efficientnetv2.evaluation.thumbnails import ImageRow, draw_rows, is_low_contrast, stretch_contrast
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, StepSettings
from efficientnetv2.training.image_cache import preview_cache
from efficientnetv2.training.initial_weights import build_initial_model
from efficientnetv2.training.loop import StepContext, augment_batch
from efficientnetv2.training.losses import ClassTerms, class_terms
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resolve_image_sizes import limit_upscaling
from efficientnetv2.training.run_request import load_run_data
from efficientnetv2.training.run_setup import eval_preprocessing, training_images
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import check_writable_file, write_atomically
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows.arguments import (
    Overrides,
    PathLike,
    api,
    note_replaced,
    number,
    path_of,
    refuse_foreign_file,
    refuse_inside_data,
    run_arguments,
)

_logger = logging.getLogger(__name__)

# Moments of a schedule that changes at every step. Ours.
_MOMENTS = 4
_TITLE = "effnetv2 train --preview"  # metadata of the file, to recognize it
_CONTRAST_NOTE = "dark images with the contrast stretched as the image above needs"


@api
def preview(
    data: PathLike,
    output: PathLike | None = None,
    *,
    num_images: int = 8,
    recipe: PathLike | Recipe | None = None,
    device: str | torch.device = "auto",
    **overrides: Unpack[Overrides],
) -> Image.Image:
    """Draw what each stage of training feeds to the model: a few images as they are augmented and resized.

    Example::

        import efficientnetv2 as ev2

        ev2.preview("photos/", settings={"progressive.randaugment": 15})  # a notebook shows the image

    Args:
        data: Dataset, see `train`.
        output: PNG file to write. None writes none.
        num_images: Images of each stage, from 1 to 24.
        recipe, device, overrides: See `train`; ``minutes`` is not accepted, for no time is measured.

    Returns:
        A row of images for each stage, below a row of the same images as evaluation sees them.

    Raises:
        InputError: What `train` would refuse before its first step.
    """
    request, source, options = run_arguments(preview, data, recipe, overrides, output=None, device=device, workers=None)
    count, out = number("num_images", num_images, 1, 24), path_of("output", output)
    content = draw_sheet(
        request, source, out, num_images=count, device=options.device, strict=options.strict, argument="`output`"
    )
    return Image.open(BytesIO(content))


@default_style()
def draw_sheet(
    overrides: TrainOverrides,
    source: DataConfig,
    out: Path | None,
    *,
    num_images: int,
    device: str,
    strict: bool,
    argument: str,
) -> bytes:
    """A PNG of what each stage of a recipe feeds to the model, also written to ``out``, which ``argument`` gave."""
    if overrides.minutes is not None:
        raise InputError("`preview` does not measure the time. Leave `minutes` out.")
    source.validate()
    refuse_missing(source.data)
    if out is not None:
        if out.suffix.lower() != ".png":
            raise InputError(f"{argument} {out}: the sheet is a PNG. Give a name that ends in .png.")
        check_writable_file(out, argument, such_as="sheet.png")
        refuse_inside_data(source.data, out.parent, argument)
        refuse_foreign_file(out, argument, is_sheet, "is not a sheet of effnetv2 train --preview")
        note_replaced(out)
    torch_device = pick_device(device)
    recipe, notes = requested_recipe(overrides, torch_device)
    prepared = load_run_data(recipe, source, strict=strict)
    recipe, limits = limit_upscaling(recipe, None if recipe.max_upscale is None else prepared.stored_size)
    for line in [*notes, *limits]:
        _logger.info(line)
    train = prepared.train
    model = build_initial_model(
        recipe, class_names=train.class_names, device=torch_device, in_channels=train.channels
    ).network
    eval_size = recipe.eval_image_size or recipe.progressive.last.image_size
    recipe = recipe.model_copy(update={"eval_image_size": eval_size})
    preprocessing = eval_preprocessing(recipe, model, train.bands)
    samples = sample_by_class(train, num_images, Key.of(recipe.seed).fold("sheet"))
    reader = preview_cache(recipe, train, samples, torch_device)
    rows = [eval_row(train, samples, preprocessing)]
    for stage, settings in enumerate(stage_settings(recipe.progressive)):
        rows.append(train_row(train, samples, recipe, preprocessing, settings, stage, reader))
    image = png(draw_rows(_with_contrast(rows)), title=_TITLE)
    if out is not None:
        try:
            write_atomically(out, lambda partial: partial.write_bytes(image))
        except OSError as error:
            raise InputError(f"{argument} {out}: {error.strerror or error}. Give another place.") from error
        _logger.info(f"Sheet: {out}")
    return image


def is_sheet(file: Path) -> bool:
    """Whether ``draw_sheet`` wrote a file."""
    return is_titled(file, _TITLE)


def sample_by_class(dataset: ImageDataset, count: int, key: Key) -> Ints:
    """Up to ``count`` random rows, one of each class in turn."""
    order = key.generator().permutation(len(dataset))
    labels = dataset.labels[order]
    chosen: Ints = order[np.lexsort((labels, rank_in_class(labels)))][:count].astype(np.int64)
    return chosen


def stage_settings(schedule: ProgressiveSchedule) -> list[StepSettings]:
    """The values of each stage; of a schedule that changes at every step, at moments spread over it."""
    if not schedule.changes_always:
        return [schedule.stage(index) for index in range(schedule.stages)]
    steps = 1000
    moments = (round(moment * (steps - 1) / (_MOMENTS - 1)) for moment in range(_MOMENTS))
    return [schedule.at(step, total_steps=steps) for step in moments]


def eval_row(train: ImageDataset, samples: Ints, preprocessing: Preprocessing) -> ImageRow:
    """The images as evaluation sees them, with their labels."""
    reader = source_reader(train)
    try:
        images = [load_eval_image(reader.source(int(sample)), preprocessing) for sample in samples]
    except UnreadableImageError as error:
        raise InputError(f"{error}. Repair it, or leave it out.") from error
    captions = [
        ", ".join(train.class_names[label] for label in np.atleast_1d(train.targets[sample]) if label >= 0)
        for sample in samples
    ]
    title = f"evaluation, {preprocessing.image_size} px"
    return ImageRow(title, tuple(map(display_channels, images)), tuple(captions))


def train_row(
    train: ImageDataset,
    samples: Ints,
    recipe: Recipe,
    preprocessing: Preprocessing,
    settings: StepSettings,
    number: int,
    reader: Reader | None = None,
) -> ImageRow:
    """The images as the model gets them in stage ``number``, in another epoch for each stage."""
    key, names = Key.of(recipe.seed), train.class_names
    request = BatchRequest(number, 0, settings, samples, np.full(len(samples), number, dtype=np.int64))
    batch = training_images(train, preprocessing, recipe, reader=reader).batch(request)
    # The captions are without the terms of the loss.
    terms = ClassTerms(stronger=class_terms(train.targets, len(names), recipe).stronger)
    cpu = torch.device("cpu")
    context = StepContext(recipe, preprocessing, num_classes=len(names), key=key, device=cpu, class_terms=terms)
    images, labels = augment_batch(batch, context)
    targets = train.targets[samples].reshape(len(samples), -1)
    captions = [
        _mixed_labels(shares - settings.label_smoothing / len(names), set(target.tolist()) - {-1}, names)
        for shares, target in zip(labels, targets, strict=True)
    ]
    values = {"mixup": settings.mixup_alpha, "cutmix": settings.cutmix_alpha, "cutout": settings.cutout}
    title = [f"stage {number + 1}: {settings.image_size} px"]
    title += [] if settings.randaugment is None else [f"RandAugment {settings.randaugment:.3g}"]
    title += [f"{name} {value:.2g}" for name, value in values.items() if value]
    pixels = tuple(_to_pixels(image, preprocessing) for image in images)
    return ImageRow(", ".join(title), pixels, tuple(captions))


def _with_contrast(rows: list[ImageRow]) -> list[ImageRow]:
    """Rows of dark images, each column with the contrast that its first image needs."""
    if not is_low_contrast(rows[0].images):
        return rows
    columns = zip(*(row.images for row in rows), strict=True)
    stretched = zip(*(stretch_contrast(column, column[0]) for column in columns), strict=True)
    first, *others = (replace(row, images=images) for row, images in zip(rows, stretched, strict=True))
    return [replace(first, title=f"{first.title} ({_CONTRAST_NOTE})"), *others]


def _to_pixels(image: Tensor, preprocessing: Preprocessing) -> Pixels:
    """(H, W, 3) uint8 from a normalized (C, H, W) image."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    levels = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return display_channels(levels.permute(1, 2, 0).numpy())


def _mixed_labels(shares: Tensor, unmixed: set[int], names: tuple[str, ...]) -> str:
    """``70% oak + 30% elm``; '' if mixing changed nothing. ``shares`` are without label smoothing."""
    labels = [label for label in shares.argsort(descending=True).tolist() if float(shares[label]) > 0.01]
    if set(labels) == unmixed:
        return ""
    total = float(sum(shares[label] for label in labels))
    return " + ".join(f"{float(shares[label]) / total:.0%} {names[label]}" for label in labels)
