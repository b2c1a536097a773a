"""``--cache ram|disk``: where decoded pictures are kept for a run, how many bytes they may take, what is said."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from efficientnetv2.data.cache_writer import (
    CacheFile,
    CacheJob,
    cache_in_memory,
    cache_on_disk,
    format_bytes,
    is_cached,
)
from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.image_cache import CacheSpec
from efficientnetv2.data.readers import Reader, source_reader
from efficientnetv2.data.records import Ints
from efficientnetv2.training.image_sizes import settings_by_size
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.device import cores
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World, all_gather_object
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import cache_folder
from efficientnetv2.utils.memory import free_bytes
from efficientnetv2.utils.rng import Key

# Share of the free memory that ``--cache ram`` may take. Where the CPU trains, settling the recipe gave activations
# up to 60 % of it. Ours.
_MEMORY_SHARE_CPU, _MEMORY_SHARE = 0.4, 0.7
# Pictures that are kept to foresee what all will take: a second's or two's worth. Ours.
_FORESEEN = 512


@dataclass(frozen=True)
class Cached:
    """The training pictures, decoded.

    Args:
        where: ``ram`` or ``disk``.
        reader: of them.
        note: what was done, in a sentence.
        seconds: that it took.
        image_px: largest training size that they are kept for.
    """

    where: str
    reader: Reader
    note: str
    seconds: float
    image_px: int


@dataclass(frozen=True)
class Foreseen:
    """What keeping the training pictures decoded will take.

    Args:
        where: ``ram`` or ``disk``.
        pictures: some of them.
        reader: of these, kept as all will be.
        bytes: that all will take.
        seconds: until they are there.
    """

    where: str
    pictures: ImageDataset
    reader: Reader
    bytes: int
    seconds: float


def cached(
    where: str | None,
    recipe: Recipe,
    prepared: DataModule,
    device: torch.device,
    world: World = SINGLE_PROCESS,
    image_px: int | None = None,
) -> Cached | None:
    """Keep the training pictures as the recipe says, if it says so.

    Args:
        where: ``ram`` or ``disk``; None if the run was given no ``--cache``.
        recipe: of the run.
        prepared: its pictures.
        device: that it trains on.
        world: the processes that will read them. On one machine they share what the first has filled.
        image_px: Largest training size that they are kept for, where the run's own was lowered since. None takes that
            of the recipe.

    Returns:
        None if the recipe reads the originals.

    Raises:
        InputError: the recipe wants a cache and it was not said where; there is no room for it; or ``ram`` is to
            serve several machines.
    """
    if recipe.cache_detail is None:
        return None
    where = _said(where, recipe, world)
    begun = time.perf_counter()
    pictures, rows = _to_keep(where, prepared)
    px = image_px or max(setting.image_px for setting in settings_by_size(recipe))
    order = _order(pictures, recipe, px)
    filled = (
        _in_ram(order, device)
        if where == "ram"
        else cache_on_disk(_folder(pictures, order.spec, prepared), order)
    )
    seconds = time.perf_counter() - begun
    reader = filled.reader(rows, source_reader(prepared.train))
    return Cached(where, reader, _note(where, filled, order, seconds), seconds, px)


def foreseen(
    where: str | None, recipe: Recipe, prepared: DataModule, device: torch.device
) -> Foreseen | None:
    """What ``cached`` would do, from keeping some of the pictures in memory; nothing stays behind.

    Args:
        where: ``ram`` or ``disk``; None if the run is given no ``--cache``.
        recipe: of the run.
        prepared: its pictures.
        device: that it trains on.

    Returns:
        None if the recipe reads the originals.

    Raises:
        InputError: the recipe wants a cache and it was not said where, or memory has no room for it.
    """
    if recipe.cache_detail is None:
        return None
    where = _said(where, recipe, SINGLE_PROCESS)
    pictures, _ = _to_keep(where, prepared)
    whole = _order(pictures, recipe)
    begun = time.perf_counter()
    there = where == "disk" and is_cached(_folder(pictures, whole.spec, prepared), whole)
    looking_s = time.perf_counter() - begun
    drawn = Key.of(recipe.seed).fold("foreseen").generator().permutation(len(prepared.train))
    some, filled, begun = _as_many_as_fit(prepared.train, drawn[:_FORESEEN], recipe, device)
    share = len(some) / len(pictures)
    count, seconds = round(filled.bytes / share), (time.perf_counter() - begun) / share
    if where == "ram" and count > _room(device):
        raise InputError(
            f"--cache ram: {pluralize(len(pictures), 'picture')} need about {format_bytes(count)}, but of the free "
            f"memory only {format_bytes(_room(device))} can be spared for it. Use --cache disk, or leave --cache out."
        )
    reader = filled.reader(np.arange(len(some)), source_reader(some))
    return Foreseen(where, some, reader, count, looking_s if there else seconds)


def _as_many_as_fit(
    train: ImageDataset, drawn: Ints, recipe: Recipe, device: torch.device
) -> tuple[ImageDataset, CacheFile, float]:
    """Some of the drawn pictures, kept in memory, which has to hold no more of what is to lie on disk; since when.

    Raises:
        InputError: memory has no room for a single one.
    """
    while True:
        some, begun = train.select(np.sort(drawn)), time.perf_counter()
        try:
            return some, _in_ram(_order(some, recipe), device), begun
        except InputError:
            if len(drawn) == 1:
                raise
            drawn = drawn[: len(drawn) // 2]


def shown(recipe: Recipe, train: ImageDataset, samples: Ints, device: torch.device) -> Reader | None:
    """What training reads of a few pictures where all are kept as the recipe says; None if it reads the originals.

    Args:
        recipe: of the run.
        train: the training pictures.
        samples: of these, which are to be read.
        device: that it trains on.

    Raises:
        InputError: memory has no room for them.
    """
    if recipe.cache_detail is None:
        return None
    rows = np.full(len(train), -1, dtype=np.int64)
    rows[samples] = np.arange(len(samples))
    return _in_ram(_order(train.select(samples), recipe), device).reader(rows, source_reader(train))


def rows_of(pictures: ImageDataset, train: ImageDataset) -> Ints:
    """(N,) where the training pictures stand among those that are kept.

    Args:
        pictures: that are kept.
        train: all of them among these.

    Raises:
        InputError: two of those kept are called alike, as tars of others may call them.
    """
    if pictures is train:
        return np.arange(len(train), dtype=np.int64)
    places = pd.Index(pictures.paths)
    if not places.is_unique:
        raise InputError(
            f"--cache disk: two pictures are called '{places[places.duplicated()][0]}', so one could not be told from "
            "the other. Use --cache ram, or leave --cache out."
        )
    rows: Ints = places.get_indexer(pd.Index(train.paths)).astype(np.int64)
    return rows


def _said(where: str | None, recipe: Recipe, world: World) -> str:
    if where is None:
        raise InputError(
            f"The recipe keeps decoded pictures (cache_detail is {recipe.cache_detail:g}), but not where: give --cache "
            "ram or --cache disk, or --set cache_detail=null to read the files each time."
        )
    if where == "ram" and world.machines > 1:
        raise InputError(
            f"--cache ram is for the processes of one machine, and these are of {world.machines}. Use --cache disk, "
            "which each machine fills for itself unless they share it."
        )
    return where


def _to_keep(where: str, prepared: DataModule) -> tuple[ImageDataset, Ints]:
    """The pictures to keep, and (N,) where those that train stand among them.

    On disk other runs use them too: those of another seed, whose hold-out is another, or those of the other folds.
    """
    train, common = prepared.train, prepared.common
    if where == "ram":
        return train, rows_of(train, train)
    if common is None:
        pictures = _in_order(prepared.trainable)
        return pictures, rows_of(pictures, train)
    return replace(common.pictures, bands=train.bands), common.rows[rows_of(common.own, train)]


def _order(pictures: ImageDataset, recipe: Recipe, image_px: int | None = None) -> CacheJob:
    return CacheJob(
        reader=source_reader(pictures),
        count=len(pictures),
        spec=_kept(recipe, image_px),
        threads=cores(),
    )


def reader_here(
    filled: Cached | None,
    recipe: Recipe,
    prepared: DataModule,
    device: torch.device,
    world: World,
) -> Reader | None:
    """What this process reads: the cache that the first one has filled, or one on its own machine's disk.

    Args:
        filled: by the first process; None if it reads the originals.
        recipe: of the run.
        prepared: its pictures.
        device: that it trains on.
        world: the processes of the run; each calls this.

    Raises:
        InputError: as ``cached``.
    """
    if filled is None:
        return None
    here: Cached | None = filled
    if world.machines > 1 and not world.is_main_process:
        here = cached(filled.where, recipe, prepared, device, world, filled.image_px)
    all_gather_object(world, None)  # nobody waits within a step for one that is still filling
    assert here is not None, "the recipe is the same for all"
    return here.reader


def _kept(recipe: Recipe, image_px: int | None = None) -> CacheSpec:
    assert recipe.cache_detail is not None
    return CacheSpec.enough(
        image_px=image_px or max(setting.image_px for setting in settings_by_size(recipe)),
        framing=recipe.train_framing,
        area_min=recipe.crop_area_min,
        detail=recipe.cache_detail,
    )


def _in_ram(order: CacheJob, device: torch.device) -> CacheFile:
    return cache_in_memory(order, room_bytes=_room(device))


def _room(device: torch.device) -> int:
    """Bytes that a cache in memory may take."""
    share = _MEMORY_SHARE_CPU if device.type == "cpu" else _MEMORY_SHARE
    return int(share * free_bytes(torch.device("cpu")))


def _in_order(dataset: ImageDataset) -> ImageDataset:
    """By path, so that a list in another order has the same cache."""
    return dataset.select(np.argsort(np.array(dataset.paths, dtype=object), kind="stable"))


def _folder(pictures: ImageDataset, kept: CacheSpec, prepared: DataModule) -> Path:
    """Of this data at this size and by this rule, whichever pictures it holds now: when they change, it is replaced.

    The rule of rasters is measured on those that train, so it differs between seeds and folds: each has its own. That
    of folds is theirs alone: other folds of the same data, and runs that are no folds, train on other pictures.
    """
    name = Path(pictures.source).name
    about = f"{pictures.root}\0{name}\0{kept}" + ("" if pictures.bands is None else f"\0{pictures.bands!r}")
    if prepared.common is not None:
        about = "\0".join([about, *pictures.paths])
    digest = hashlib.blake2b(about.encode(), digest_size=6).hexdigest()
    shown = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).stem)[:40]
    return cache_folder("pictures") / f"{shown}-{kept.px}px-{digest}"


def _note(where: str, filled: CacheFile, order: CacheJob, seconds: float) -> str:
    side = {"shorter": "shorter side", "longer": "longer side", "mean": "mean side"}[order.spec.side]
    decoded = pluralize(order.count, "picture")
    size = f"{decoded} decoded, their {side} at most {order.spec.px} px, {format_bytes(filled.bytes)}"
    if where == "ram":
        return f"Cache: {size} of memory, filled in {seconds:.0f} s."
    done = "there already" if filled.reused else f"filled in {seconds:.0f} s"
    return f"Cache: {size} in {filled.path.parent}, {done}. To be rid of it, delete that folder."
