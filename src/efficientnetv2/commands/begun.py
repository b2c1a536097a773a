"""What a run leaves before its first step: all that is settled written into its folder, its weights probed."""

from __future__ import annotations

from typing import Any

import torch

from efficientnetv2.base.errors import count_of
from efficientnetv2.base.typed import command_line
from efficientnetv2.commands.beginning import Decided, Place
from efficientnetv2.commands.caching import Cached, cached
from efficientnetv2.commands.foretold import (
    in_vain,
    job_of,
    scratch,
    settled_by,
    still_so,
    to_be_measured,
    to_measure,
)
from efficientnetv2.commands.prepare import Prepared
from efficientnetv2.commands.probing import keep, probed
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.settling import Agreed, agreed, last_notes, probes, unprobed
from efficientnetv2.commands.words import Words
from efficientnetv2.data.copies import is_copy
from efficientnetv2.inference.probe import Probe
from efficientnetv2.models.network import Network
from efficientnetv2.training.distributed import World
from efficientnetv2.training.folder import RunFolder
from efficientnetv2.training.rates import measure
from efficientnetv2.training.recipe import Recipe


def begin(
    decided: Decided,
    words: Words,
    prepared: Prepared,
    device: torch.device,
    workers: int,
    place: Place,
    screen: Screen,
    world: World,
) -> tuple[RunFolder, Recipe, Network, Cached | None]:
    """Settle the recipe, then write into the folder, which is claimed: what is refused leaves nothing behind."""
    path = decided.path
    settling = agreed(decided, words, prepared, device, place, screen, world)
    recipe, network, prepared = settling.settled.recipe, settling.settled.network, settling.prepared
    pictures = cached(words.cache, recipe, prepared, device, screen, world)
    chosen = [*settling.notes, *([] if pictures is None else [pictures.note])]
    lines: list[str] = []
    if to_be_measured(words.minutes, recipe):
        # What is settled by then is said before the measurement, which takes a while.
        chosen = still_so(chosen, words.minutes)
        lines = _said([f"Run folder: {path}", prepared.split_note, *chosen], screen)
        recipe, notes = _by_measuring(
            settling, decided, words, prepared, pictures, device, workers, screen, world
        )
        chosen += notes
    chosen += last_notes(recipe, settling, decided, prepared)
    lines += _said([f"Run folder: {path}", prepared.split_note, *chosen][len(lines) :], screen)
    lines += _said(unprobed(recipe, place, prepared), screen)
    beginning = _beginning(settling, decided, words, prepared, chosen, pictures, world)
    if probes(recipe, place) and prepared.manifest.separator is None:
        fit = probed(network, prepared, settling.preprocessing, recipe, device, workers, screen)
        network.to("cpu")  # other processes get it from here, each for its own device
        # Else it begins with the classifier of the weights.
        begins_there = recipe.classifier == "probe" and not network.class_names
        lines += _said([_reached(fit.probe, prepared, begins_there=begins_there)], screen)
        if place.probe:
            labelled, balanced = int((~is_copy(prepared.train)).sum()), recipe.balance is not None
            beginning |= keep(fit, path, labelled=labelled, balanced=balanced, seed=recipe.seed)
    if decided.against is not None:
        beginning |= decided.against.keep(path)
    folder = RunFolder(path, screen.say)
    folder.begin(recipe, prepared.manifest, beginning, lines)
    for skipped_path, reason in prepared.skipped:
        folder.skip(skipped_path, reason)
    if prepared.skipped:
        folder.log(f"What could not be read is listed in {folder.skipped_file}.")
    return folder, recipe, network, pictures


def _by_measuring(
    settling: Agreed,
    decided: Decided,
    words: Words,
    prepared: Prepared,
    pictures: Cached | None,
    device: torch.device,
    workers: int,
    screen: Screen,
    world: World,
) -> tuple[Recipe, list[str]]:
    """The recipe with what its steps' time decides, and a sentence on each such choice."""
    screen.say(to_measure(settling.settled.recipe, words.minutes))
    reader, spent_s = (None, 0.0) if pictures is None else (pictures.reader, pictures.seconds)
    job = job_of(settling.settled, prepared, decided.path, device, workers, reader)
    lost = in_vain(words.minutes, job, spent_s=spent_s, world=world)
    with scratch(decided.path) as beside:
        rates = measure(job, beside, in_vain=lost, say=screen.say)
    return settled_by(rates, job, words.minutes, spent_s=spent_s, world=world)


def _beginning(
    settling: Agreed,
    decided: Decided,
    words: Words,
    prepared: Prepared,
    chosen: list[str],
    pictures: Cached | None,
    world: World,
) -> dict[str, Any]:
    """What the run's folder says of its beginning, but for its probe and the run that it is compared with."""
    network = settling.settled.network
    beginning: dict[str, Any] = {
        "command": command_line(),
        "launch": world.launch,
        "chosen": chosen,
        "preprocessing": settling.preprocessing.to_json(),
        "groups_at_a_time": settling.settled.at_a_time.to_json(),
    }
    if settling.seen.flattering:
        beginning["seen_before"] = settling.seen.to_json()
    if settling.seen.chooser:
        beginning["minival_unused"] = True
    if network.trained_on is not None:  # for a resumed run, whose weights are its checkpoint's
        beginning["weights_trained_on"] = network.trained_on.text()
    if decided.compared is not None:
        beginning["weights_compared"] = decided.compared
    if pictures is not None:
        beginning["cache"] = words.cache
    if prepared.manifest.separator is not None:
        beginning["label_separator"] = prepared.manifest.separator
    return beginning


def _said(lines: list[str], screen: Screen) -> list[str]:
    """The same lines, shown."""
    for line in lines:
        screen.say(line)
    return lines


def _reached(probe: Probe, prepared: Prepared, *, begins_there: bool) -> str:
    """What the probe reaches, in words."""
    learnt, there = probe.train_pictures, len(prepared.train)
    fewer = f", learnt from {learnt:,} of {count_of(there, 'training picture')}" if learnt < there else ""
    return (
        f"Linear probe on the given weights as they came: top-1 {probe.top1:.1%}, macro-F1 {probe.macro_f1:.1%} on "
        f"{count_of(probe.pictures, f'{prepared.answered} picture')}{fewer} ({probe.seconds:.0f} s). Training "
        f"{'begins there, and ' if begins_there else ''}has to beat that."
    )
