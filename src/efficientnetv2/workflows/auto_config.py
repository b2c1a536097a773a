"""What a run and its plan share: the pictures are looked at, the recipe is settled on them, and what is said of it."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.data_module import DataModule, prepare_data
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.loader import decode_threads, thread_map
from efficientnetv2.data.readers import source_reader
from efficientnetv2.models import pretrained
from efficientnetv2.preprocessing import RGB, Preprocessing
from efficientnetv2.training.auto_batch import Hardware
from efficientnetv2.training.auto_config import ResolvedRecipe, TimeConstraints, TrainingSet, resolve_recipe
from efficientnetv2.training.early_stopping import unused_patience
from efficientnetv2.training.initial_weights import better_weights
from efficientnetv2.training.overrides import TrainOverrides, sets_sizes, setting_name
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.run_config import eval_preprocessing
from efficientnetv2.training.run_dir import RUN_FILES
from efficientnetv2.training.run_options import RunOptions
from efficientnetv2.training.time_budget import StartupBudget
from efficientnetv2.training.train_state import RunLength
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import as_details
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.leakage import PretrainOverlap, pretrain_overlap
from efficientnetv2.workflows.linear_probe import with_classifier
from efficientnetv2.workflows.output_paths import refuse_replaced, refuse_within
from efficientnetv2.workflows.run_options import Decided

_FIELD = "several_labels"


def refuse_unlike(recipe: Recipe, words: TrainOverrides, separator: str | None) -> None:
    """Refuse what would be of no effect on these pictures.

    Args:
        recipe: of the run.
        words: that asked for it.
        separator: of the labels of a picture; None where each has one.

    Raises:
        InputError: the words say how several labels are learnt, but each picture has one; or fields that are for
            classes which exclude each other, of a recipe that answers each class by itself.
    """
    said = [setting for setting in words.settings if setting_name(setting) == _FIELD]
    if said and separator is None:
        raise InputError(
            f"--set {said[-1]} says how several labels of a picture are learnt, but each of these has one. Leave it "
            "out, or say what stands between labels, as --label-separator ';'."
        )
    if recipe.answer(separator) == "softmax":
        return
    for name in ("class_weights", "logit_adjustment"):
        value = getattr(recipe, name)
        if value is not None:
            raise InputError(
                f"{name} is {value}, which weighs classes against each other, but with {_FIELD} sigmoid each is "
                f"answered by itself: set {name} to null, or {_FIELD} to softmax. Rare labels are drawn more often by "
                "--set balance=sqrt."
            )


def learnt_so(recipe: Recipe, separator: str | None) -> list[str]:
    """How several labels are learnt, in a sentence; none where pictures have one.

    Args:
        recipe: of the run.
        separator: of the labels of a picture; None where each has one.
    """
    if separator is None:
        return []
    if recipe.answer(separator) == "sigmoid":
        return [
            "Several labels: each class is a yes or no of its own (sigmoid), given from a probability of 0.5 on; "
            f"--set {_FIELD}=softmax has labels share 1."
        ]
    return [
        "Several labels: those of a picture share a probability of 1 (softmax); "
        f"--set {_FIELD}=sigmoid answers each class by itself."
    ]


# Rough share of `--minutes` that the steps get, beside what comes before, validation and the report. Ours.
_FOR_STEPS = 0.6
# Images that are read to know how long one takes. Ours.
_READ = 16


def refuse_words(
    known: Decided, words: TrainOverrides, source: DataConfig, place: RunOptions, verb: str
) -> None:
    """Refuse what needs no look at a picture: words without effect on them, and a folder that is no place for a run.

    Args:
        known: of the run.
        words: about the recipe.
        source: of the pictures.
        place: of the run.
        verb: that was typed.

    Raises:
        InputError: one of these.
    """
    refuse_unlike(known.recipe, words, source.label_separator)
    if not known.resumed:
        refuse_within(source.data, known.path, "--out", verb=verb if place.out is None else None)
        refuse_replaced(source.data, known.path, RUN_FILES, "--out")


def looked_at(recipe: Recipe, source: DataConfig, place: RunOptions) -> DataModule:
    """The pictures as the recipe parts them, every one looked at; see ``prepare``.

    Args:
        recipe: of the run.
        source: of the pictures.
        place: of the run.

    Raises:
        InputError: what is wrong with the pictures.
    """
    return prepare_data(
        source,
        holdout=recipe.holdout,
        answered=recipe.answered,
        minival=recipe.minival,
        made_for=recipe.made_for,
        seed=recipe.seed,
        strict=place.strict,
        detail_level=logging.DEBUG,
    )


@dataclass(frozen=True, eq=False)
class Agreed:
    """A recipe settled on its pictures, but for what only a measurement says.

    Args:
        settled: recipe and network.
        prepared: the pictures; none choose where those of minival have trained the weights.
        preprocessing: of evaluation, and of the model file.
        seen: whether the pictures have trained, or chosen, the weights.
        notes: what was chosen, and why, a sentence each.
    """

    settled: ResolvedRecipe
    prepared: DataModule
    preprocessing: Preprocessing
    seen: PretrainOverlap
    notes: tuple[str, ...]


def agreed(
    known: Decided,
    words: TrainOverrides,
    prepared: DataModule,
    device: torch.device,
    place: RunOptions,
    world: World = SINGLE_PROCESS,
    *,
    budget: StartupBudget | None = None,
    workers: int = 0,
    compiles: bool = True,
) -> Agreed:
    """Settle the recipe of a run.

    Args:
        known: of the run, its weights chosen.
        words: about the recipe.
        prepared: its pictures.
        device: to train on.
        place: of the run.
        world: the processes that will run it.
        budget: Time before the first step. With ``--minutes``, the run then ends in that time, and image sizes are
            lowered until three epochs fit. None keeps the sizes.
        workers: processes that read pictures.
        compiles: Whether compiling may be tried.

    Raises:
        InputError: the recipe does not go with the pictures or the machine.
    """
    recipe = with_classifier(known.recipe, prepared)
    if recipe.minival == "auto" and not prepared.chooses:
        recipe = validate_recipe(recipe.to_json() | {"minival": None}, where=recipe.name)
    lowers = budget is not None and words.minutes is not None and not sets_sizes(words)
    stored_px = None if recipe.enlarge is None else prepared.stored_px
    compile_within_s = None if budget is None else budget.left_s
    if not compiles:
        compile_within_s = 0.0
    with progress("choosing precision and memory", None), as_details():
        settled = resolve_recipe(
            recipe,
            TrainingSet(
                len(prepared.train),
                prepared.train.class_names,
                in_channels=prepared.dataset.channels,
                stored_px=prepared.stored_px if lowers and stored_px is None else stored_px,
            ),
            Hardware(device, place.memory_gib, world),
            time=TimeConstraints(
                minutes=words.minutes,
                training_s=60 * words.minutes * _FOR_STEPS if lowers and words.minutes is not None else None,
                read_s=_read_s(prepared.train, recipe, workers) if lowers else 0.0,
                compile_within_s=compile_within_s,
            ),
            repeated=known.repeated,
        )
    seen = pretrain_overlap(
        settled.recipe.weights, settled.network, prepared, refuse=settled.recipe.minival != "auto"
    )
    if seen.chooser:
        prepared = replace(prepared, chooses=False)
    learnt = learnt_so(settled.recipe, prepared.dataset.separator)
    return Agreed(
        settled,
        prepared,
        eval_preprocessing(settled.recipe, settled.network, prepared.dataset.bands),
        seen,
        (*known.chosen, *settled.notes, *_better_start(settled.recipe, known), *learnt, *seen.lines),
    )


def _better_start(recipe: Recipe, known: Decided) -> list[str]:
    """That ImageNet weights promise more than the bundled ones, or than none where none were named, in sentences."""
    if recipe.weights == "none" and not known.starts:
        return []
    name = better_weights(recipe.model, recipe.weights)
    if name is None or any(found.word in pretrained.names() for found in known.starts):
        return []
    own = (
        "there are no ImageNet weights on this machine"
        if recipe.weights == "none"
        else "these were trained on aerial images"
    )
    return [
        f"Better weights: {own}. ImageNet weights usually give far better models. Fetch them with: "
        f"{shell_join(['effnetv2', 'models', '--fetch', name])}. The command names one file. Copy that file to a "
        "machine without a network, for --weights FILE."
    ]


def _read_s(train: ImageDataset, recipe: Recipe, workers: int) -> float:
    """Seconds to read one training image, from a few of them; each worker reads another one meanwhile."""
    reader, seen = source_reader(train), Preprocessing(image_px=recipe.progressive.last.image_px)
    rows = np.unique(np.linspace(0, len(train) - 1, _READ).astype(np.int64)).tolist()

    def read_one(place: int) -> None:
        with suppress(UnreadableImageError):  # counted and named elsewhere
            load_eval_image(reader.source(rows[place]), seen)

    began = time.perf_counter()
    thread_map(read_one, len(rows), decode_threads(workers))
    return (time.perf_counter() - began) / (len(rows) * max(1, workers))


def last_notes(recipe: Recipe, of: Agreed, known: Decided, prepared: DataModule) -> list[str]:
    """What is said of a run once nothing is left to decide.

    Args:
        recipe: of the run, its length known.
        of: what was settled.
        known: of the run.
        prepared: its pictures.
    """
    notes = unused_patience(recipe, RunLength.of(recipe, len(prepared.train)))
    if recipe.weights == "none":
        return notes
    trained_px, eval_px = recipe.progressive.last.image_px, known.recipe.eval_px
    theirs = of.settled.network.preprocessing
    return [*notes, pictures_note(of.preprocessing, theirs, trained_px=trained_px, eval_px=eval_px)]


def probes(recipe: Recipe, place: RunOptions, images: int | None = None) -> bool:
    """Whether a run asks for a linear probe of its weights, and has time for it.

    Args:
        recipe: of the run.
        place: of the run.
        images: Number of images of either part that there is time for. None is all.
    """
    return images != 0 and recipe.weights != "none" and (place.probe or recipe.classifier == "probe")


def unprobed(recipe: Recipe, place: RunOptions, prepared: DataModule) -> list[str]:
    """That there is no linear probe where a run asks for one, in a sentence; none where there is."""
    if not probes(recipe, place) or prepared.dataset.separator is None:
        return []
    return ["No linear probe of the given weights: it answers one label, and these pictures have several."]


def pictures_note(here: Preprocessing, theirs: Preprocessing, *, trained_px: int, eval_px: int | None) -> str:
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
