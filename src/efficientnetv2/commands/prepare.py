"""From DATA to checked training and validation parts, with what was found said in sentences."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal, cast

import numpy as np

from efficientnetv2.base.errors import InputError, count_of, did_you_mean
from efficientnetv2.base.preprocessing import RGB, Bands, Preprocessing
from efficientnetv2.data.check import check, refuse_damage
from efficientnetv2.data.copies import left_out, refuse_copies_apart
from efficientnetv2.data.decode import eval_picture
from efficientnetv2.data.imagenet import Published, compare
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest, read
from efficientnetv2.data.minival import with_minival
from efficientnetv2.data.pictures import UnreadablePicture
from efficientnetv2.data.rasters import rule_of
from efficientnetv2.data.readers import originals
from efficientnetv2.data.shards.checking import Damage, damage_of
from efficientnetv2.data.splits import Answered, answering_test, groups_apart, with_holdout
from efficientnetv2.training.distributed import World

# Looking at files waits for the disk more than for the processor. Ours.
_THREADS = 8
# Damaged shards that get a line each. Ours.
_SHARDS_NAMED = 20


@dataclass(frozen=True)
class Source:
    """DATA and how to read it; the options of those names.

    Args:
        data: folder, table or name.
        path_column, label_column, group_column: of a table.
        labels: ``exact`` or ``casefold``.
        label_separator: of several labels of a picture; None where it has one.
        bands: of rasters, the channels of a picture: "4,3,2", "1,2,3,4,8" or "all"; None lets the first say it.
    """

    data: str
    path_column: str = "path"
    label_column: str = "label"
    group_column: str | None = None
    labels: str = "exact"
    label_separator: str | None = None
    bands: str | None = None

    @property
    def words(self) -> list[str]:
        """DATA and how to read it, as one types it."""
        options = {f"--{one.name.replace('_', '-')}": one for one in fields(self) if one.name != "data"}
        said = {name: getattr(self, one.name) for name, one in options.items()}
        given = [(name, value) for name, value in said.items() if value != options[name].default]
        return [self.data, *(word for pair in given for word in pair)]

    def read_any(self) -> Manifest:
        """The manifest of pictures with labels or without: what keeps it from training alone is not refused.

        Raises:
            InputError: what is wrong with the data.
        """
        # Cells of several labels can be taken apart only if there are any.
        several = self.label_separator is not None
        return self.read(require_labels=several, for_training=False, strict_labels=True)

    def read(
        self,
        *,
        require_labels: bool = True,
        for_training: bool = True,
        strict_labels: bool | None = None,
    ) -> Manifest:
        """The manifest; see ``data.manifest.read``.

        Raises:
            InputError: what is wrong with the data.
        """
        if self.labels not in {"exact", "casefold"}:
            hint = did_you_mean(self.labels, ["exact", "casefold"])
            raise InputError(f"--labels is '{self.labels}', but is exact or casefold{hint}")
        return read(
            self.data,
            path_column=self.path_column,
            label_column=self.label_column,
            group_column=self.group_column,
            labels=cast(Literal["exact", "casefold"], self.labels),
            label_separator=self.label_separator,
            require_labels=require_labels,
            for_training=for_training,
            strict_labels=strict_labels,
        )


@dataclass(frozen=True)
class Prepared:
    """Pictures ready for a run.

    Args:
        manifest: every readable picture, with its split.
        split_note: how it was made, in a sentence.
        skipped: path and reason of each unreadable picture.
        holdout_drawn: val was drawn here, and is another for another seed; else it was given, or there is none.
        chooses: minival chooses the weights that are kept; else it is left aside, if there is one.
        contents: (N,) ids, equal for identical files.
        answered: the split that figures are of.
    """

    manifest: Manifest
    split_note: str
    skipped: tuple[tuple[str, str], ...]
    holdout_drawn: bool
    chooses: bool
    contents: Ints
    answered: Answered = "val"

    @property
    def train(self) -> Manifest:
        """The training pictures."""
        return self.manifest.subset("train")

    @property
    def val(self) -> Manifest:
        """The pictures that figures are of: those of val, or of test (``answered``)."""
        return self.manifest.subset(self.answered)

    @property
    def minival(self) -> Manifest | None:
        """The pictures that choose the weights to keep; None if nothing is chosen."""
        return self.manifest.subset("minival") if self.chooses else None

    @property
    def trainable(self) -> Manifest:
        """Every picture that some run trains on, of another seed or without minival."""
        parts = ("train", "minival", "val") if self.holdout_drawn else ("train", "minival")
        return self.manifest.select(np.flatnonzero(np.isin(self.manifest.split, parts)))


def prepare(
    source: Source,
    *,
    holdout: float,
    seed: int,
    strict: bool,
    say: Callable[[str], None],
    minival: int | float | None = None,
    made_for: Published | None = None,
    answered: Answered = "val",
) -> Prepared:
    """Look at every file, leave out what cannot be read, split if no split was given.

    Args:
        source: of the pictures.
        holdout: share of train that becomes val where none is given.
        seed: of that choice.
        strict: an unreadable picture is an error.
        say: gets sentences.
        minival: number or share of the training pictures that choose the weights to keep; None lets none.
        made_for: the published set that the pictures should be; None if they need not be any.
        answered: what figures are to be of; test where there is any of it.

    Raises:
        InputError: too much is unreadable, a picture stands in two splits, a class is too small, or classes of the
            published set are missing.
    """
    manifest = source.read()
    refuse_copies_apart(manifest)
    others = () if made_for is None else compare(manifest, made_for, strict=strict)
    for note in (*manifest.notes, *others):
        say(note)
    found = check(manifest, workers=_THREADS, strict=strict)
    for note in found.notes:
        say(note)
    asked: Answered = "test" if answered == "test" and (manifest.split == "test").any() else "val"
    skipped = tuple(
        (manifest.paths[row], reason) for row, reason in zip(found.unreadable, found.reasons, strict=True)
    )
    if skipped:
        manifest = _readable(manifest, found.readable, asked)
        say(f"Skipped {count_of(len(skipped), 'unreadable picture')}, the first: {' '.join(skipped[0])}.")
    holdout_drawn = asked == "val" and not (manifest.split == "val").any()
    contents = found.contents[found.readable]
    manifest, note = _parted(manifest, asked, holdout=holdout, minival=minival, seed=seed, contents=contents)
    if asked != answered:
        note = f"No pictures are given as test, which the recipe would answer. {note}"
    copies, further = left_out(manifest, ~manifest.in_train)
    if copies.any():
        manifest, contents = manifest.select(np.flatnonzero(~copies)), contents[~copies]
    manifest = with_rule(manifest, source, seed=seed, say=say)
    note = f"{note}{further}"
    return Prepared(manifest, note, skipped, holdout_drawn, minival is not None, contents, asked)


def _parted(
    manifest: Manifest,
    answered: Answered,
    *,
    holdout: float,
    minival: int | float | None,
    seed: int,
    contents: Ints,
) -> tuple[Manifest, str]:
    """The pictures in the parts of a run, and in sentences how they came there."""
    if answered == "test":
        manifest, note = answering_test(manifest)
        apart = groups_apart(manifest)
    else:
        apart = groups_apart(
            manifest
        )  # by the splits as given: what is held out here says itself what it parts
        manifest, note = with_holdout(manifest, fraction=holdout, seed=seed, contents=contents)
    note += apart
    if minival is not None:
        manifest, further = with_minival(manifest, size=minival, contents=contents)
        note = f"{note} {further}"
    elif unused := int((manifest.split == "minival").sum()):
        note += f" The {unused} pictures given as minival are left aside; to choose by them, --set minival={unused}."
    return manifest, note


def with_rule(manifest: Manifest, source: Source, *, seed: int, say: Callable[[str], None]) -> Manifest:
    """The same pictures, their rasters to be read by a rule that the training ones have given.

    Args:
        manifest: its pictures are read as ordinary ones.
        source: which bands were asked for.
        seed: of which rasters are measured.
        say: gets sentences, if there are any.

    Raises:
        InputError: see ``data.rasters.rule_of``.
    """
    asked = None if source.bands is None else bands_asked(source.bands)
    if manifest.shards is not None:
        if asked is not None:
            raise InputError(
                f"--bands {source.bands}: {manifest.source} holds shards, whose pictures are read as ordinary ones of "
                "three channels. Give the rasters as files: a folder, or a table of them."
            )
        return manifest
    files = {
        learning: [manifest.file(int(row)) for row in np.flatnonzero(manifest.in_train == learning)]
        for learning in (True, False)
    }
    bands = rule_of(files[True], asked, seed=seed, others=files[False])
    if bands is None:
        return manifest
    for line in _told(bands, given=asked is not None):
        say(line)
    return replace(manifest, bands=bands)


def _told(bands: Bands, *, given: bool) -> list[str]:
    """How rasters are seen, a sentence each."""
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in zip(bands.low, bands.high, strict=True))
    if bands.channels == RGB:
        seen = f"bands {bands.listed} as red, green and blue"
    else:
        seen = f"{count_of(bands.channels, 'band')} ({bands.listed}), each a channel"
    chosen = "" if given else " (others by --bands)"
    lines = [f"Rasters: {seen}{chosen}; values {ranges} become 0 to 255. The model file keeps this."]
    if bands.channels > RGB:
        lines.append(
            f"Normalised by each band's mean and deviation over the training pictures. Shown to people: bands "
            f"{bands.shown.listed} as red, green and blue."
        )
    return lines


def bands_asked(text: str) -> tuple[int, ...] | Literal["all"]:
    """The numbers of ``--bands 4,3,2``, or "all".

    Raises:
        InputError: they are no whole numbers from 1.
    """
    if text.strip().lower() == "all":
        return "all"
    try:
        numbers = tuple(int(part) for part in text.split(","))
        if min(numbers) < 1:
            raise ValueError
    except ValueError:
        raise InputError(
            f"--bands is '{text}', but is numbers of bands, from 1, with commas between, as 4,3,2 or 1,2,3,4,8; or all."
        ) from None
    return numbers


def tell(manifest: Manifest, *, strict: bool, say: Callable[[str], None]) -> Damage:
    """Say what was noted on the way to a manifest, and which of its shards are damaged; no picture is read.

    Returns:
        What is wrong with the shards: nothing where the pictures are files.

    Raises:
        InputError: a shard is damaged, with ``strict``; or is not the one its index was written for.
    """
    for note in manifest.notes:
        say(note)
    if manifest.shards is None:
        return Damage({}, ())
    damage = damage_of(manifest.table, manifest.shards)
    refuse_damage(manifest, damage, strict)
    for note in damage.notes[:_SHARDS_NAMED]:
        say(note)
    if len(damage.notes) > _SHARDS_NAMED:
        say(f"And {len(damage.notes) - _SHARDS_NAMED:,} more damaged shards.")
    return damage


def refuse_missing(train: Manifest, world: World) -> None:
    """The pictures, which the first process has looked at, are there on the others' machines too.

    Args:
        train: to be trained on.
        world: the processes.

    Raises:
        InputError: they are not, on this one.
    """
    if world.local_rank or world.first:
        return
    pictures = originals(train)
    try:
        eval_picture(pictures.source(0), Preprocessing(image_px=8).seeing(train.bands))
    except UnreadablePicture as error:
        raise InputError(
            f"{pictures.name(0)} can't be read on {platform.node()} ({error.reason}), where process {world.rank} runs. "
            "Put the pictures under the same path on every machine, or where all of them can read."
        ) from error


def _readable(manifest: Manifest, rows: Ints, answered: Answered) -> Manifest:
    """The readable pictures, if they still are what was asked for.

    Raises:
        InputError: those given to be answered, or a class of train, have none left.
    """
    readable = manifest.select(rows)
    if (manifest.split == answered).any() and not (readable.split == answered).any():
        raise InputError(
            f"{manifest.source}: none of the pictures given as {answered} can be read. Repair them."
        )
    gone = np.setdiff1d(
        manifest.targets[manifest.in_train], np.append(readable.targets[readable.in_train], -1)
    )
    if len(gone):
        name = manifest.class_names[int(gone[0])]
        raise InputError(
            f"{manifest.source}: none of the training pictures of class '{name}' can be read. Repair them, or "
            "leave the class out."
        )
    return readable
