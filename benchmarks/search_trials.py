"""Common parts of search measurements: images, recipe, architectures and machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from benchmarks.record import hardware

import efficientnetv2
from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.splits import with_minival
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.proxy_task import ProxyTask, require_no_leakage
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.nas.step_time import ReferenceTiming
from efficientnetv2.nas.trial import to_measurement
from efficientnetv2.nas.trial_process import run_trial
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import apply_overrides, validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.recipes.nas_proxy import CHOOSING
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.utils.benchmark import boot_id
from efficientnetv2.utils.device import Hardware, device_title
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import cache_folder, write_text_atomically
from efficientnetv2.utils.random_key import Key

DRAWN_BY = Key.of(0).fold("search record")
SEED = 0  # seed of a trial
# Conditions that must be equal to continue a table; further ones to time its steps, because step times of two machines
# or two versions of the code must not be mixed; and conditions to compare with it.
GONE_ON_WITH = ("space", "asked", "pictures", "seeds")
TIMED_BY = ("hardware", "code")
SAME = (*GONE_ON_WITH, "hardware")
# Number of measurements of the backbone's step. The shortest counts, because disturbances only add time. Ours.
_TIMED = 3


def some_pictures(data: str, count: int) -> ImageDataset:
    """Select images of train, stratified by class, and split them into train and minival.

    Args:
        data: Argument DATA of ``effnetv2 train``.
        count: Number of images. All if there are fewer.
    """
    dataset = load_dataset(data)
    train = dataset.select(np.flatnonzero(dataset.in_train))
    order = DRAWN_BY.fold("pictures").generator().permutation(len(train))
    # Take the classes in turn, so that each fraction is exact.
    place = np.zeros(len(train), dtype=np.int64)
    for label in np.unique(train.labels):
        of_class = order[train.labels[order] == label]
        place[of_class] = np.arange(len(of_class)) * len(train) // len(of_class)
    chosen = np.sort(np.lexsort((order.argsort(), place))[:count])
    part = train.select(chosen).with_split(np.full(len(chosen), "train", dtype=object))
    return with_minival(part, size=CHOOSING)[0]


def refuse_copies(whole: ImageDataset, used: ImageDataset) -> None:
    """Check that no image of a search is a duplicate of an image of val or test.

    Args:
        whole: All images.
        used: Images of a search, in train and minival.

    Raises:
        SystemExit: An image is a duplicate. The message names both.
    """
    is_eval = np.isin(whole.split, ("val", "test"))
    if not is_eval.any():
        return
    used_splits = dict(zip(used.paths, used.split, strict=True))
    splits = [
        given if is_evaluated else used_splits.get(path, "")
        for path, given, is_evaluated in zip(whole.paths, whole.split, is_eval, strict=True)
    ]
    try:
        require_no_leakage(whole.with_split(np.array(splits, dtype=object)), validate_images(whole).contents)
    except InputError as error:
        raise SystemExit(str(error)) from error


def pictures_file(whole: ImageDataset, used: ImageDataset, folder: Path) -> Path:
    """Write a table of the images of both studies: some of train, and the whole of val.

    Args:
        whole: All images.
        used: Images of a search.
        folder: Folder for the table.
    """
    file = folder / "pictures.csv"
    if not file.exists():
        val = whole.select(np.flatnonzero(whole.split == "val"))
        both = [(used, used.split), (val, val.split)]
        rows = [
            (str(part.file(row)), part.class_names[label], split)
            for part, splits in both
            for row, (label, split) in enumerate(zip(part.labels, splits, strict=True))
        ]
        table = pd.DataFrame(rows, columns=["path", "label", "split"])
        write_text_atomically(file, table.to_csv(index=False))
    return file


def asked_recipe(settings: Sequence[str]) -> Recipe:
    """Return the proxy recipe with the requested overrides."""
    plain = apply_overrides(get_recipe("proxy_small").to_json(), [*settings, "minival=null"])
    return validate_recipe(plain, where="proxy_small")


def settled_recipe(requested: Recipe, train: ImageDataset, space: Space, about: Path) -> Recipe:
    """Return the proxy recipe, resolved for the backbone.

    Args:
        requested: Requested recipe.
        train: Training images.
        space: Search space.
        about: File of stored conditions. If it exists, its recipe is used: a new measurement could choose another
            precision.
    """
    if about.exists():
        return validate_recipe(json.loads(about.read_text(encoding="utf-8"))["recipe"], where=str(about))
    with_backbone = requested.model_copy(update={"model": space.backbone})
    resolved = resolve_recipe(with_backbone, TrainingSet(len(train), train.class_names), Hardware(torch.device("cpu")))
    return resolved.recipe.model_copy(update={"model": "auto", "ghost_batch_size": None})


def proxy_of(dataset: ImageDataset, recipe: Recipe, folder: Path) -> ProxyTask:
    """Return the proxy task of a resolved recipe, on train and minival of the images."""
    return ProxyTask(
        recipe=recipe,
        seeds=(SEED,),
        train=dataset.subset("train"),
        selection=dataset.subset("minival"),
        device="cpu",
        workers=0,
        threads=torch.get_num_threads(),
        times=folder / "step_times.json",
        quiet=cache_folder("quiet") / boot_id(),
    )


def sharing(proxy: ProxyTask, workers: int) -> ProxyTask:
    """Return a proxy task for several trials at the same time, each with its share of the processor."""
    return replace(proxy, training_threads=max(1, (proxy.threads or 1) // workers))


def machine() -> str:
    """Describe the machine on which step times depend."""
    return f"{hardware()}; {device_title(torch.device('cpu'))}"


def code(package: Path = Path(efficientnetv2.__file__).parent) -> str:
    """Return a digest of the Python files of the package (32 hexadecimal digits), on which step times depend."""
    content = hashlib.blake2b(digest_size=16)
    for file in sorted(package.rglob("*.py")):
        text = file.read_bytes()
        content.update(f"{file.relative_to(package).as_posix()}\0{len(text)}\0".encode() + text)
    return content.hexdigest()


def untrained(architecture: Architecture, proxy: ProxyTask) -> Measurement:
    """Measure the step and the costs of an architecture without training.

    Raises:
        SystemExit: The step could not be measured.
    """
    outcome = run_trial(architecture, replace(proxy, seeds=()), on_message=lambda told: False)  # stop after the step
    if outcome.failed is not None:
        failed = f"{outcome.failed.kind}: {outcome.failed.reason}"
        raise SystemExit(f"the step of a network could not be measured ({failed}). Run it again.")
    return to_measurement(architecture, replace(proxy, seeds=()), outcome)


def backbone_measured(space: Space, proxy: ProxyTask) -> Measurement:
    """Measure the costs of the backbone of a space. The shortest of some step times counts."""
    found = [untrained(space.backbone, proxy) for _ in range(_TIMED)]
    return min(found, key=lambda one: one.step_seconds or np.inf)


def at_pace_of(proxy: ProxyTask, space: Space, backbone: Measurement) -> ProxyTask:
    """Return the proxy task with step times scaled to the pace of the machine at the backbone's measurement.

    Args:
        proxy: Proxy task.
        space: Search space with this backbone.
        backbone: Measurement of the backbone.
    """
    assert backbone.step_seconds is not None, "it was measured"
    return replace(proxy, reference=ReferenceTiming(space.backbone, proxy.recipe, backbone.step_seconds))


def tell_other_code(about: Path) -> None:
    """Print a line if a table was begun with other code, whose steps may be faster or slower."""
    if json.loads(about.read_text(encoding="utf-8"))["code"] != code():
        print(f"{about} was begun with another version of the code.")


def in_common(space: Space, requested: Recipe, dataset: ImageDataset, proxy: ProxyTask) -> dict[str, Any]:
    """Return the conditions that must be equal to continue a table, to time its steps, or to compare with it."""
    return {
        "space": space.to_json(),
        "asked": requested.to_json(),
        "pictures": dataset.digest(),
        "seeds": list(proxy.seeds),
        "hardware": machine(),
        "code": code(),
    }


def drawn(space: Space, count: int) -> list[Point]:
    """Draw architectures of a space without repetition. A larger count begins with the same architectures."""
    found: dict[Point, None] = {}
    draw = 0
    while len(found) < min(count, space.count):
        found.setdefault(space.sample(DRAWN_BY.fold("network", draw)))
        draw += 1
    return list(found)


def smallest(space: Space) -> Architecture:
    """Return the architecture with the fewest parameters. Stages add up, so descent from any point leads there."""

    def parameters(point: tuple[int, ...]) -> int:
        return count_flops(space.decode(point), image_size=64, num_classes=10).total.parameters

    point = space.encode(space.backbone)
    while (lowest := min(space.neighbors(point), key=parameters)) and parameters(lowest) < parameters(point):
        point = lowest
    return space.decode(point)
