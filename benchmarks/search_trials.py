"""What the measurements of a search share: which images, by which recipe, which networks, on which machine."""

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
SEED = 0  # of a trial
# What a table has in common with whoever goes on with it; and its step times besides, for those of two machines or of
# two versions of the code do not belong into one; and what it has in common with whoever is compared with it.
GONE_ON_WITH = ("space", "asked", "pictures", "seeds")
TIMED_BY = ("hardware", "code")
SAME = (*GONE_ON_WITH, "hardware")
# The backbone's step is measured so often: a disturbance only ever adds. Ours.
_TIMED = 3


def some_pictures(data: str, count: int) -> ImageDataset:
    """So many images of train, each class its share, split into train and minival.

    Args:
        data: as ``effnetv2 train`` takes it.
        count: how many; all if there are fewer.
    """
    dataset = load_dataset(data)
    train = dataset.select(np.flatnonzero(dataset.in_train))
    order = DRAWN_BY.fold("pictures").generator().permutation(len(train))
    # Of each class in turn the next one, so that every share is right to the image.
    place = np.zeros(len(train), dtype=np.int64)
    for label in np.unique(train.labels):
        mine = order[train.labels[order] == label]
        place[mine] = np.arange(len(mine)) * len(train) // len(mine)
    chosen = np.sort(np.lexsort((order.argsort(), place))[:count])
    part = train.select(chosen).with_split(np.full(len(chosen), "train", dtype=object))
    return with_minival(part, size=CHOOSING)[0]


def refuse_copies(whole: ImageDataset, used: ImageDataset) -> None:
    """None of the images that a search uses is among those that the data gives as val or test, if it gives any.

    Args:
        whole: all images.
        used: those that a search uses, in train and minival.

    Raises:
        SystemExit: names one that is, and its copy.
    """
    judging = np.isin(whole.split, ("val", "test"))
    if not judging.any():
        return
    uses = dict(zip(used.paths, used.split, strict=True))
    splits = [
        given if judges else uses.get(path, "")
        for path, given, judges in zip(whole.paths, whole.split, judging, strict=True)
    ]
    try:
        require_no_leakage(whole.with_split(np.array(splits, dtype=object)), validate_images(whole).contents)
    except InputError as error:
        raise SystemExit(str(error)) from error


def pictures_file(whole: ImageDataset, used: ImageDataset, folder: Path) -> Path:
    """A table of the images of both studies: some of train, and as val those that judge.

    Args:
        whole: all images.
        used: those that a search uses.
        folder: to keep it in.
    """
    file = folder / "pictures.csv"
    if not file.exists():
        judging = whole.select(np.flatnonzero(whole.split == "val"))
        both = [(used, used.split), (judging, judging.split)]
        rows = [
            (str(part.file(row)), part.class_names[label], split)
            for part, splits in both
            for row, (label, split) in enumerate(zip(part.labels, splits, strict=True))
        ]
        table = pd.DataFrame(rows, columns=["path", "label", "split"])
        write_text_atomically(file, table.to_csv(index=False))
    return file


def asked_recipe(settings: Sequence[str]) -> Recipe:
    """The proxy recipe as it is asked for."""
    plain = apply_overrides(get_recipe("proxy_small").to_json(), [*settings, "minival=null"])
    return validate_recipe(plain, where="proxy_small")


def settled_recipe(asked: Recipe, train: ImageDataset, space: Space, about: Path) -> Recipe:
    """The proxy recipe, settled for the backbone.

    Args:
        asked: the recipe as it is asked for.
        train: the images to train on.
        space: of the networks.
        about: what a measurement was begun with. If it is there its recipe holds: measured again, the precision might
            come out otherwise.
    """
    if about.exists():
        return validate_recipe(json.loads(about.read_text(encoding="utf-8"))["recipe"], where=str(about))
    begun = asked.model_copy(update={"model": space.backbone})
    settled = resolve_recipe(begun, TrainingSet(len(train), train.class_names), Hardware(torch.device("cpu")))
    return settled.recipe.model_copy(update={"model": "auto", "ghost_batch_size": None})


def proxy_of(dataset: ImageDataset, recipe: Recipe, folder: Path) -> ProxyTask:
    """How networks are tried: by a settled recipe, on the images' train and minival."""
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
    """How networks are tried where so many train at once, each on its share of the processor."""
    return replace(proxy, training_threads=max(1, (proxy.threads or 1) // workers))


def machine() -> str:
    """What step times are of."""
    return f"{hardware()}; {device_title(torch.device('cpu'))}"


def code(package: Path = Path(efficientnetv2.__file__).parent) -> str:
    """32 hexadecimal digits of the package's Python files: other ones may take other steps."""
    content = hashlib.blake2b(digest_size=16)
    for file in sorted(package.rglob("*.py")):
        text = file.read_bytes()
        content.update(f"{file.relative_to(package).as_posix()}\0{len(text)}\0".encode() + text)
    return content.hexdigest()


def untrained(network: Architecture, proxy: ProxyTask) -> Measurement:
    """A network's step and costs alone.

    Raises:
        SystemExit: its step could not be measured.
    """
    outcome = run_trial(network, replace(proxy, seeds=()), on_message=lambda told: False)  # stopped there
    if outcome.failed is not None:
        failed = f"{outcome.failed.kind}: {outcome.failed.reason}"
        raise SystemExit(f"the step of a network could not be measured ({failed}). Run it again.")
    return to_measurement(network, replace(proxy, seeds=()), outcome)


def backbone_measured(space: Space, proxy: ProxyTask) -> Measurement:
    """The costs of a space's backbone; of some measurements of its step the shortest."""
    found = [untrained(space.backbone, proxy) for _ in range(_TIMED)]
    return min(found, key=lambda one: one.step_seconds or np.inf)


def at_pace_of(proxy: ProxyTask, space: Space, backbone: Measurement) -> ProxyTask:
    """The same, with steps told at the pace at which the backbone's took what was measured of it.

    Args:
        proxy: how networks are tried.
        space: whose backbone it is.
        backbone: measured.
    """
    assert backbone.step_seconds is not None, "it was measured"
    return replace(proxy, reference=ReferenceTiming(space.backbone, proxy.recipe, backbone.step_seconds))


def tell_other_code(about: Path) -> None:
    """Say it where a table was begun with other code, whose steps may be faster or slower."""
    if json.loads(about.read_text(encoding="utf-8"))["code"] != code():
        print(f"{about} was begun with another version of the code.")


def in_common(space: Space, asked: Recipe, dataset: ImageDataset, proxy: ProxyTask) -> dict[str, Any]:
    """What has to be the same in whoever goes on with a table, times its steps, or is compared with it."""
    return {
        "space": space.to_json(),
        "asked": asked.to_json(),
        "pictures": dataset.digest(),
        "seeds": list(proxy.seeds),
        "hardware": machine(),
        "code": code(),
    }


def drawn(space: Space, count: int) -> list[Point]:
    """So many networks of a space, each once; of more, these are the first."""
    found: dict[Point, None] = {}
    turn = 0
    while len(found) < min(count, space.count):
        found.setdefault(space.sample(DRAWN_BY.fold("network", turn)))
        turn += 1
    return list(found)


def smallest(space: Space) -> Architecture:
    """The network of a space with the fewest parameters: stages add up, so going down from anywhere leads there."""

    def parameters(point: tuple[int, ...]) -> int:
        return count_flops(space.decode(point), image_size=64, num_classes=10).total.parameters

    point = space.encode(space.backbone)
    while (least := min(space.neighbors(point), key=parameters)) and parameters(least) < parameters(point):
        point = least
    return space.decode(point)
