"""How a run goes on: with the same pictures, recipe and network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.commands.caching import Cached, cached
from efficientnetv2.commands.prepare import Prepared
from efficientnetv2.commands.probing import probed
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.words import Words
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.models.network import Network
from efficientnetv2.training.distributed import World
from efficientnetv2.training.folder import RunFolder
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resume import steps_saved
from efficientnetv2.training.settle import fit_into_memory
from efficientnetv2.training.sharing import refuse_unshared
from efficientnetv2.training.start import build, start


def go_on(
    path: Path,
    recipe: Recipe,
    words: Words,
    prepared: Prepared,
    device: torch.device,
    memory_gib: float | None,
    screen: Screen,
    world: World,
) -> tuple[RunFolder, Recipe, Network, Cached | None]:
    """The folder, recipe and network of a run begun before; its checkpoint brings the weights.

    As many groups run at a time as before, so that it goes on to the same bits; a stated limit has them tried anew.
    """
    refuse_unshared(recipe, device, world, begun=True)
    folder = RunFolder(path, screen.say)
    _same_pictures(folder, prepared)
    folder.log(f"Run folder: {path}")
    # Where the pictures are kept changes none of their pixels; whether they are is the recipe's affair.
    where = words.cache or folder.beginning().get("cache")
    pictures = cached(where, recipe, prepared, device, screen, world)
    if pictures is not None:
        folder.log(pictures.note)
    network = _network_to_go_on_with(folder, recipe, prepared, device, screen)
    if memory_gib is not None:
        classes = len(prepared.train.class_names)
        at_a_time, notes = fit_into_memory(
            recipe, network, num_classes=classes, device=device, memory_gib=memory_gib, world=world
        )
        folder.amend_beginning(groups_at_a_time=at_a_time.to_json())
        for note in notes:
            folder.log(note)
    return folder, recipe, network, pictures


def _network_to_go_on_with(
    folder: RunFolder, recipe: Recipe, prepared: Prepared, device: torch.device, screen: Screen
) -> Network:
    class_names, channels = prepared.train.class_names, prepared.manifest.channels
    if steps_saved(folder.checkpoints) or recipe.weights == "none":
        # Its weights are the checkpoint's; those that it began with may be gone by now.
        return build(recipe, recipe.model, num_classes=len(class_names), in_channels=channels)
    begun = start(recipe, class_names=class_names, device=device, in_channels=channels)
    for note in begun.notes:
        folder.log(note)
    if recipe.classifier == "probe":
        preprocessing = Preprocessing.from_json(folder.beginning()["preprocessing"])
        probed(begun.network, prepared, preprocessing, recipe, device, 0, screen)
    return begun.network


def _same_pictures(folder: RunFolder, prepared: Prepared) -> None:
    separator = folder.beginning().get("label_separator")
    if separator != prepared.manifest.separator:
        given = "without --label-separator" if separator is None else f"with --label-separator '{separator}'"
        raise InputError(
            f"--resume: the run in {folder.path} was begun {given}, so its classes are others. Say the same again."
        )
    bands, asked = Preprocessing.from_json(folder.beginning()["preprocessing"]).bands, prepared.manifest.bands
    if (
        bands is not None and asked is not None and not bands.kinds
    ):  # begun by a version that did not keep them
        asked = replace(asked, kinds=())
    if bands is not None and asked is not None and bands.numbers == asked.numbers:  # nor the bands' colours
        asked = replace(
            asked,
            names=tuple(now if then else "" for then, now in zip(bands.names, asked.names, strict=True)),
        )
    if bands != asked:
        said = "none" if bands is None else ",".join(map(str, bands.numbers))
        raise InputError(
            f"--resume: the run in {folder.path} sees the rasters' bands {said}, and which values become 0 and 255 was "
            "measured on its pictures. Bring them back as they were, and say --bands as before."
        )
    there = Manifest.from_csv(
        folder.manifest_file,
        root=prepared.manifest.root,
        source=prepared.manifest.source,
        separator=prepared.manifest.separator,
    )
    if there.digest() == prepared.manifest.digest():
        return
    before, now = set(there.paths), set(prepared.manifest.paths)
    what = [
        f"{len(gone)} {word} (first: {min(gone)})"
        for gone, word in ((before - now, "gone"), (now - before, "new"))
        if gone
    ]
    raise InputError(
        f"--resume: the pictures are not those that the run in {folder.path} was begun with: "
        f"{', '.join(what) or 'labels, splits or order differ'}. "
        "Bring them back, or begin anew with another --out."
    )
