"""Decoded training images in memory or on disk: where they are kept, and how many bytes they may take."""

from __future__ import annotations

import hashlib
import platform
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from efficientnetv2.data.cache_writer import CacheFile, CacheJob, CacheSpec, cache_in_memory, cache_on_disk, is_cached
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.data.readers import Reader, source_reader
from efficientnetv2.data.records import Ints
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resolve_image_sizes import settings_by_size
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World, all_gather_object
from efficientnetv2.utils.errors import InputError, format_bytes, pluralize
from efficientnetv2.utils.io import cache_folder
from efficientnetv2.utils.memory import free_bytes
from efficientnetv2.utils.processes import cores
from efficientnetv2.utils.random_key import Key

# Fraction of the free memory that a cache may take. Where the CPU trains, activations have up to 60 %. Ours.
_MEMORY_FRACTION_CPU, _MEMORY_FRACTION = 0.4, 0.7
# Images that are cached to estimate the whole: a second's or two's worth. Ours.
_ESTIMATED = 512


@dataclass(frozen=True)
class ImageCache:
    """The training images, decoded."""

    where: str  # ``ram`` or ``disk``
    reader: Reader
    note: str  # What was done
    seconds: float  # Time to fill it
    image_size: int  # Largest training size that they are kept for


@dataclass(frozen=True)
class CacheEstimate:
    """What a cache will take: bytes, and seconds to fill it; ``reader`` reads some of the ``images``, cached."""

    where: str
    images: ImageDataset
    reader: Reader
    bytes: int
    seconds: float


def build_cache(
    where: str | None, recipe: Recipe, data: PreparedData, hardware: Hardware, image_size: int | None = None
) -> ImageCache | None:
    """Keep the training images decoded, in ``ram`` or on ``disk``; None if the recipe reads the files.

    ``image_size`` is the largest training size to keep them for, if the run's own was lowered since.
    """
    if recipe.cache_resolution is None:
        return None
    where = _require_place(where, recipe, hardware.world)
    began = time.perf_counter()
    images, rows = _images(where, data)
    px = image_size or max(setting.image_size for setting in settings_by_size(recipe))
    job = _job(images, recipe, px)
    ram = where == "ram"
    folder = _folder(images, job.spec, data, hardware.world)
    file = cache_in_memory(job, room_bytes=_room(hardware.device)) if ram else cache_on_disk(folder, job)
    seconds = time.perf_counter() - began
    done = "there already" if file.reused else f"filled in {seconds:.0f} s"
    place = "of memory" if ram else f"in {file.path.parent} (delete that folder to free it)"
    note = (
        f"Cache: {pluralize(job.count, 'image')} decoded, their {job.spec.side} side at most {job.spec.px} px, "
        f"{format_bytes(file.bytes)} {place}, {done}."
    )
    return ImageCache(where, file.reader(rows, source_reader(data.train)), note, seconds, px)


def estimate_cache(where: str | None, recipe: Recipe, data: PreparedData, device: torch.device) -> CacheEstimate | None:
    """What ``build_cache`` would take, from some images in memory; nothing stays behind."""
    if recipe.cache_resolution is None:
        return None
    where = _require_place(where, recipe, SINGLE_PROCESS)
    images, _ = _images(where, data)
    job = _job(images, recipe)
    began = time.perf_counter()
    exists = where == "disk" and is_cached(_folder(images, job.spec, data, SINGLE_PROCESS), job)
    lookup_s = time.perf_counter() - began
    order = Key.of(recipe.seed).fold("foreseen").generator().permutation(len(data.train))
    some, file, began = _as_many_as_fit(data.train, order[:_ESTIMATED], recipe, device)
    share = len(some) / len(images)
    size, seconds = round(file.bytes / share), (time.perf_counter() - began) / share
    if where == "ram" and size > _room(device):
        raise InputError(
            f"`cache=ram`: {pluralize(len(images), 'image')} need about {format_bytes(size)}, but only "
            f"{format_bytes(_room(device))} of the free memory is available for it. Use `cache=disk`."
        )
    reader = file.reader(np.arange(len(some)), source_reader(some))
    return CacheEstimate(where, some, reader, size, lookup_s if exists else seconds)


def preview_cache(recipe: Recipe, train: ImageDataset, samples: Ints, device: torch.device) -> Reader | None:
    """What training reads of a few samples where all are cached; None if it reads the files."""
    if recipe.cache_resolution is None:
        return None
    rows = np.full(len(train), -1, dtype=np.int64)
    rows[samples] = np.arange(len(samples))
    file = cache_in_memory(_job(train.select(samples), recipe), room_bytes=_room(device))
    return file.reader(rows, source_reader(train))


def local_reader(cache: ImageCache | None, recipe: Recipe, data: PreparedData, hardware: Hardware) -> Reader | None:
    """What this process reads: the cache of the first process, or one on its own machine's disk. All call this."""
    if cache is None:
        return None
    if hardware.world.machines > 1 and not hardware.world.is_main_process:
        cache = build_cache(cache.where, recipe, data, hardware, cache.image_size)
    all_gather_object(hardware.world, None)  # nobody waits within a step for one that is still filling
    return None if cache is None else cache.reader


def _as_many_as_fit(
    train: ImageDataset, rows: Ints, recipe: Recipe, device: torch.device
) -> tuple[ImageDataset, CacheFile, float]:
    """Some of the images cached in memory, and since when; a disk cache may be larger than memory."""
    while True:
        some, began = train.select(np.sort(rows)), time.perf_counter()
        try:
            return some, cache_in_memory(_job(some, recipe), room_bytes=_room(device)), began
        except InputError:
            if len(rows) == 1:
                raise
            rows = rows[: len(rows) // 2]


def _rows_in(images: ImageDataset, train: ImageDataset) -> Ints:
    """(N,) places of the training images among those that are cached, by path."""
    places = pd.Index(images.paths)
    if not places.is_unique:  # as tars of others may name them
        twice = places[places.duplicated()][0]
        raise InputError(f"`cache=disk`: two images are called '{twice}'. Use `cache=ram`.")
    rows: Ints = places.get_indexer(pd.Index(train.paths)).astype(np.int64)
    return rows


def _require_place(where: str | None, recipe: Recipe, world: World) -> str:
    if where is None:
        raise InputError(
            f"cache_resolution is {recipe.cache_resolution:g}, but there is no cache. Use `cache=ram`, `cache=disk` or "
            "`cache_resolution=null`."
        )
    if where == "ram" and world.machines > 1:
        raise InputError(
            f"`cache=ram` is for one machine, and these processes are of {world.machines}. Use `cache=disk`."
        )
    return where


def _images(where: str, data: PreparedData) -> tuple[ImageDataset, Ints]:
    """The images to cache, and (N,) places of the training images among them."""
    train, common = data.train, data.common
    if where == "ram":
        return train, np.arange(len(train), dtype=np.int64)
    # On disk, runs with another seed, whose split is another, or of the other folds use them too.
    if common is None:
        by_path = np.argsort(np.array(data.trainable.paths, dtype=object), kind="stable")
        images = data.trainable.select(by_path)  # a list in another order has the same cache
        return images, _rows_in(images, train)
    return replace(common.images, bands=train.bands), common.rows[_rows_in(common.run_images, train)]


def _job(images: ImageDataset, recipe: Recipe, image_size: int | None = None) -> CacheJob:
    assert recipe.cache_resolution is not None
    spec = CacheSpec.enough(
        image_size=image_size or max(setting.image_size for setting in settings_by_size(recipe)),
        crop_mode=recipe.random_crop_mode,
        area_min=recipe.crop_scale_min,
        detail=recipe.cache_resolution,
    )
    return CacheJob(reader=source_reader(images), count=len(images), spec=spec, threads=cores())


def _room(device: torch.device) -> int:
    """Bytes that a cache in memory may take."""
    fraction = _MEMORY_FRACTION_CPU if device.type == "cpu" else _MEMORY_FRACTION
    return int(fraction * free_bytes(torch.device("cpu")))


def _folder(images: ImageDataset, spec: CacheSpec, data: PreparedData, world: World) -> Path:
    """The folder of this data at this size and by this rule; when the images change, its content is replaced."""
    name = Path(images.source).name
    # The rule of rasters is measured on the training images, so each seed and fold has its own.
    about = f"{images.root}\0{name}\0{spec}" + ("" if images.bands is None else f"\0{images.bands!r}")
    if data.common is not None:  # a fold trains on other images than other folds of this data, and than a plain run
        about = "\0".join([about, *images.paths])
    if world.machines > 1:  # they may share the folder of caches, but the times of their image files may differ
        about += f"\0{platform.node()}"
    digest = hashlib.blake2b(about.encode(), digest_size=6).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).stem)[:40]
    return cache_folder("images") / f"{stem}-{spec.px}px-{digest}"
