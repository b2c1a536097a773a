"""How a run begins: its folder, its settled recipe, its network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.base.errors import count_of
from efficientnetv2.base.files import check_folder
from efficientnetv2.base.preprocessing import RGB, Preprocessing
from efficientnetv2.base.typed import options
from efficientnetv2.commands.caching import Cached, cached
from efficientnetv2.commands.earlier import Other
from efficientnetv2.commands.foretold import (
    in_vain,
    job_of,
    scratch,
    settled_by,
    still_so,
    to_be_measured,
    to_measure,
)
from efficientnetv2.commands.outcome import command_line
from efficientnetv2.commands.prepare import Common, Prepared
from efficientnetv2.commands.probing import keep, probed, with_classifier
from efficientnetv2.commands.resumed import resumed_recipe
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.seen import seen_before
from efficientnetv2.commands.several_labels import learnt_so
from efficientnetv2.commands.within import RUNS
from efficientnetv2.commands.words import Words, begin_recipe, starts_open
from efficientnetv2.data.copies import is_copy
from efficientnetv2.inference.accelerate import device_note
from efficientnetv2.inference.probe import Probe
from efficientnetv2.models.network import Network
from efficientnetv2.training.checked import checked
from efficientnetv2.training.checked import read as read_recipe
from efficientnetv2.training.distributed import World
from efficientnetv2.training.folder import RunFolder
from efficientnetv2.training.job import preprocessing_of
from efficientnetv2.training.named import Found
from efficientnetv2.training.rates import measure
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.runs import new_folder, newest, newest_first, refuse_occupied
from efficientnetv2.training.selection import patience_in_vain
from efficientnetv2.training.settle import settle
from efficientnetv2.training.state import Length


@dataclass(frozen=True)
class Place:
    """Where and how to run.

    Args:
        out: folder of the run; None makes a new one under ``runs/``.
        resume: go on with the run there.
        device: as ``--device`` says it.
        workers: None chooses by the machine.
        memory_gib: that the training process may take; None is what there is.
        strict: stop at the first unreadable picture.
        as_json: only the report on stdout.
        probe: compare with a linear probe on the given weights, before training.
        against: folder of another run that the report compares with; None takes the one that a run gone on with was
            begun against, or else the last before it.
        settled: recipes, as files, that runs like this one have settled before: the one for the weights that this run
            begins from is repeated.
        common: of a run of a cross-validation: what all of its runs train on.
    """

    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    workers: int | None = None
    memory_gib: float | None = None
    strict: bool = False
    as_json: bool = False
    probe: bool = True
    against: Path | None = None
    settled: tuple[Path, ...] = ()
    common: Common | None = None

    @property
    def words(self) -> list[str]:
        """How to run, as one types it: what a run or cross-validation that is gone on with does not know itself."""
        return options(
            device=None if self.device == "auto" else self.device,
            workers=self.workers,
            memory_gib=self.memory_gib,
            strict=self.strict,
        )


@dataclass(frozen=True)
class Decided:
    """What is known of a run before its pictures are looked at, and after weights were chosen by them.

    Args:
        path: of its folder.
        recipe: its "auto" fields may still be open.
        chosen: so far, a sentence each.
        resumed: whether there is something to go on with.
        starts: to choose among, the first of them taken so far; empty where there is nothing to choose.
        compared: the figures by which one was chosen, as plain values; None if none were.
        against: another run that the report is to compare with, kept in the folder; None if none was named.
        repeated: whether the recipe is what a run like this one has settled.
    """

    path: Path
    recipe: Recipe
    chosen: tuple[str, ...] = ()
    resumed: bool = False
    starts: tuple[Found, ...] = ()
    compared: dict[str, Any] | None = None
    against: Other | None = None
    repeated: bool = False


def repeating(known: Decided, words: Words, place: Place) -> tuple[Decided, Words]:
    """What a run like this one has settled for the same weights, if one has; then no minutes decide its epochs anew.

    The run's own are the seed, that of random sizes where it follows from it, and whether batch-norm keeps its
    statistics: where the words leave that open its steps decide, which are others where it has other pictures.

    Args:
        known: of the run, its weights chosen.
        words: about the recipe.
        place: of the run.
    """
    if not known.resumed:
        for file in place.settled:
            recipe = read_recipe(file)
            if recipe.weights == known.recipe.weights:
                own = recipe.to_json()
                own |= {"seed": known.recipe.seed, "frozen_statistics": known.recipe.frozen_statistics}
                if known.recipe.progressive.seed is None:
                    own["progressive"] = own["progressive"] | {"seed": None}  # settled by the seed
                known = replace(known, recipe=checked(own, where=str(file)), repeated=True)
                return known, replace(words, minutes=None)
    return known, words


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
    path, recipe = decided.path, with_classifier(decided.recipe, prepared)
    settled = settle(
        recipe,
        images=len(prepared.train),
        class_names=prepared.train.class_names,
        device=device,
        memory_gib=place.memory_gib,
        world=world,
        in_channels=prepared.manifest.channels,
        stored_px=prepared.stored_px(recipe),
        minutes=words.minutes,
        repeated=decided.repeated,
        say=screen.say,
    )
    recipe, network, chosen = settled.recipe, settled.network, [*decided.chosen, *settled.notes]
    chosen += learnt_so(recipe, prepared.manifest.separator)
    known = seen_before(recipe.weights, network, prepared)
    chosen += known.lines
    pictures = cached(words.cache, recipe, prepared, device, screen, world)
    if pictures is not None:
        chosen.append(pictures.note)
    preprocessing = preprocessing_of(recipe, network, prepared.manifest.bands)
    lines: list[str] = []
    if to_be_measured(words.minutes, recipe):
        # What is settled by then is said before the measurement, which takes a while.
        chosen = still_so(chosen, words.minutes)
        lines = _said([f"Run folder: {path}", prepared.split_note, *chosen], screen)
        screen.say(to_measure(recipe, words.minutes))
        job = job_of(settled, prepared, path, device, workers, None if pictures is None else pictures.reader)
        spent_s = 0.0 if pictures is None else pictures.seconds
        lost = in_vain(words.minutes, job, spent_s=spent_s, world=world)
        with scratch(path) as beside:
            rates = measure(job, beside, in_vain=lost, say=screen.say)
        recipe, notes = settled_by(decided.recipe, rates, job, words.minutes, spent_s=spent_s, world=world)
        chosen += notes
    chosen += patience_in_vain(recipe, Length.of(recipe, len(prepared.train)))
    if recipe.weights != "none":
        trained_px = recipe.progressive.last.image_px
        chosen.append(
            _pictures_note(
                preprocessing, network.preprocessing, trained_px=trained_px, eval_px=decided.recipe.eval_px
            )
        )
    lines += _said([f"Run folder: {path}", prepared.split_note, *chosen][len(lines) :], screen)
    beginning: dict[str, Any] = {
        "command": command_line(),
        "launch": world.launch,
        "chosen": chosen,
        "preprocessing": preprocessing.to_json(),
        "groups_at_a_time": settled.at_a_time.to_json(),
    }
    if known.flattering:
        beginning["seen_before"] = known.to_json()
    if network.trained_on is not None:  # for a resumed run, whose weights are its checkpoint's
        beginning["weights_trained_on"] = network.trained_on.text()
    if decided.compared is not None:
        beginning["weights_compared"] = decided.compared
    if pictures is not None:
        beginning["cache"] = words.cache
    if prepared.manifest.separator is not None:
        beginning["label_separator"] = prepared.manifest.separator
    probing = recipe.weights != "none" and (place.probe or recipe.classifier == "probe")
    if probing and prepared.manifest.separator is not None:
        lines.append(
            "No linear probe of the given weights: it answers one label, and these pictures have several."
        )
        screen.say(lines[-1])
    elif probing:
        fit = probed(network, prepared, preprocessing, recipe, device, workers, screen)
        network.to("cpu")  # other processes get it from here, each for its own device
        # Else it begins with the classifier of the weights.
        begins_there = recipe.classifier == "probe" and not network.class_names
        lines.append(_reached(fit.probe, prepared, begins_there=begins_there))
        screen.say(lines[-1])
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
        f"Linear probe on the given weights as they came: top-1 {probe.top1:.1%}, macro-F1 {probe.macro_f1:.3f} on "
        f"{count_of(probe.pictures, f'{prepared.answered} picture')}{fewer} ({probe.seconds:.0f} s). Training "
        f"{'begins there, and ' if begins_there else ''}has to beat that."
    )


def decided(words: Words, place: Place, device: torch.device, screen: Screen, world: World) -> Decided:
    """All that can be decided without looking at a picture."""
    if world.launch is not None and not place.resume:
        path = _begun_by(world, place.out)
        if path is not None:
            screen.say(f"Started again by the same launch (restart {world.restarts}).")
            return Decided(path, resumed_recipe(words, path / "recipe.yaml", screen.say), resumed=True)
    if place.resume:
        path = place.out or newest(RUNS)
        if path is not None and (path / "recipe.yaml").exists():
            return Decided(path, resumed_recipe(words, path / "recipe.yaml", screen.say), resumed=True)
        screen.say(f"There is no run in {path or RUNS} yet: beginning one.")
    if place.out is not None:
        refuse_occupied(place.out)
    check_folder(place.out or RUNS, "--out")
    if note := device_note(place.device, device):
        screen.say(note)
    starts = starts_open(words, device)
    recipe, chosen = begin_recipe(words, device, screen.say, found=starts[0] if starts else None)
    return Decided(place.out or new_folder(RUNS, recipe.name), recipe, tuple(chosen), starts=starts)


def _begun_by(world: World, out: Path | None) -> Path | None:
    """The run that an earlier try of this launch began; None if it did not come so far.

    A machine that takes another's place does not know of restarts. So what is not finished is gone on with at any try;
    a finished run only at a restart: else it is of an earlier launch that was given the same name.
    """
    for recipe_file in newest_first(RUNS) if out is None else [out / "recipe.yaml"]:
        if not recipe_file.exists():
            continue
        folder = RunFolder(recipe_file.parent, lambda line: None)
        if not folder.beginning_file.exists():  # a copy of a part of a run, or one of an early version
            continue
        to_go_on_with = world.restarts > 0 or not folder.finished
        if to_go_on_with and folder.beginning().get("launch") == world.launch:
            return folder.path
    return None


def _pictures_note(
    here: Preprocessing, theirs: Preprocessing, *, trained_px: int, eval_px: int | None
) -> str:
    """Which part of the preprocessing is the weights', and which the recipe's, for training draws its pictures so.

    Args:
        here: of the run.
        theirs: of the weights.
        trained_px: that training ends at.
        eval_px: that the recipe names, so that another size in training alone does not move it; None if it names none.
    """
    own = "interpolation, mean and std are"
    if here.channels != RGB:
        own = "mean and std are of the rasters' bands, and interpolation is"
    same = here.image_px == trained_px
    trained = "as the recipe trains on them" if same else f"though training ends at {trained_px} px"
    note = (
        f"Pictures: framing {_framed(here)} at {here.image_px} px, {trained}; {own} "
        f"{'those' if here.channels == RGB else 'that'} of the weights."
    )
    if (_framed(here), here.image_px) == (_framed(theirs), theirs.image_px):
        return note
    cut = f" --set crop_fraction={theirs.crop_fraction:.4g}" if theirs.crop_fraction < 1 else ""
    size = "" if eval_px is None else f" --set eval_px={theirs.image_px}"
    return (
        f"{note} The weights themselves had framing {_framed(theirs)} at {theirs.image_px} px: for that, --framing "
        f"{theirs.framing}{cut} --image-px {theirs.image_px}{size}."
    )


def _framed(preprocessing: Preprocessing) -> str:
    cut = preprocessing.crop_fraction
    return preprocessing.framing + (f" ({cut:.3g} of each side)" if cut < 1 else "")
