"""What ``inspect`` does: read DATA, look at every picture once, say and write what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from efficientnetv2.base.errors import InputError, count_of, escaped
from efficientnetv2.base.files import folder_for
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import RGB
from efficientnetv2.base.typed import command_line
from efficientnetv2.commands.answering import none_readable
from efficientnetv2.commands.outcome import versions
from efficientnetv2.commands.replacing import refuse_others, tell_replaced
from efficientnetv2.commands.screen import Screen, answer
from efficientnetv2.commands.source import Source, tell, with_rule
from efficientnetv2.data.decode import read_picture
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.portraits import Portraits, portraits
from efficientnetv2.data.readers import Dispensable, originals
from efficientnetv2.evaluation.inspect import page
from efficientnetv2.evaluation.inspect.counts import by_class, headings
from efficientnetv2.evaluation.inspect.found import Finding
from efficientnetv2.evaluation.inspect.inspection import Inspection, inspected
from efficientnetv2.evaluation.inspect.times import check_column
from efficientnetv2.inference.accelerate import cores, pick_device, workers_for
from efficientnetv2.inference.predict import Embeddings, embed_manifest
from efficientnetv2.models.network import Network
from efficientnetv2.training.named import best_weights, default_model, load_weights

# Looking waits for the disk as well as for the processor. Ours.
_THREADS_PER_CORE = 2
_CLASSES_SHOWN = 30
# Kinds of findings whose groups are named on the screen, and how many of each, and images of a group. Ours.
_NAMED, _GROUPS_NAMED = ("same_", "near_", "lookalike", "unreadable"), 5
_WORDS = {"wrong": "To mend", "doubtful": "To look at", "note": "Good to know"}
_SEED = 0  # of the search for copies and of folds: an inspection is to say the same each time


def inspect_and_tell(
    source: Source,
    *,
    folder: Path,
    weights: str,
    near_km: float,
    time_column: str | None,
    device: str,
    workers: int | None,
    as_json: bool,
    screen: Screen | None = None,
) -> Inspection:
    """Everything that ``effnetv2 inspect`` does.

    Args:
        source: of the pictures.
        folder: for the page, not within DATA; made if need be.
        weights: a word for the network that looks at the pictures; "none" for none.
        near_km: within which two pictures are of one place.
        time_column: of a table; None finds it.
        device: as ``--device`` says it.
        workers: processes that read pictures for the network; None chooses by the machine.
        as_json: answer with what was found.
        screen: Where notes go. None makes one.

    Raises:
        InputError: anything a user can mend.
    """
    screen = screen or Screen(quiet=as_json)
    on = pick_device(device)
    manifest = source.read_any()
    check_column(manifest, time_column)
    with folder_for(folder, "--out"):  # where no page comes, nothing is left of it
        for file, ours in ((page.JSON_NAME, page.is_inspection), (page.PAGE_NAME, page.is_inspection_page)):
            refuse_others(folder / file, f"--out {folder}:", ours, "is no inspection of effnetv2 inspect")
        tell_replaced(folder / page.PAGE_NAME, screen)
        network, name = _network(weights, screen)
        damage = tell(manifest, strict=False, say=screen.say)
        manifest = with_rule(manifest, source, seed=_SEED, say=screen.say)
        # A person looks at three bands, and so do the networks that find look-alikes.
        if manifest.bands is not None:
            manifest = replace(manifest, bands=manifest.bands.shown)
        looked = _looked(manifest, screen)
        embeddings = None if network is None else _embedded(network, manifest, looked, on, workers, screen)
        found = inspected(
            manifest,
            looked,
            key=Key.of(_SEED).fold("inspect"),
            near_km=near_km,
            time_column=time_column,
            embeddings=embeddings,
            weights=name,
            damage=damage,
            counting=screen.counting,
        )
        if as_json:  # before it is written: a full disk loses no finding
            answer(found.to_json())
        _tell(found, screen)
        _write(folder, found)
    screen.say(f"Pictures and all the rest: {folder / page.PAGE_NAME}")
    return found


def _looked(manifest: Manifest, screen: Screen) -> Portraits:
    with screen.counting("looking", len(manifest)) as counted:
        looked = portraits(manifest, workers=_THREADS_PER_CORE * cores(), progress=counted)
    if not len(looked.readable):
        raise none_readable(manifest, 0, looked.table["reason"].iloc[0])
    return looked


def _network(weights: str, screen: Screen) -> tuple[Network | None, str | None]:
    """The network that embeds, and what it is called; none unless asked for."""
    if weights == "none":
        return None, None
    if weights == "auto":
        found = best_weights(default_model(pick_device("cpu")))
        screen.say(found.note)
        if found.word == "none":
            raise InputError(
                "--weights auto: there are none to be had. Give a model file, or leave the option out: all but labels "
                "and look-alikes is found without."
            )
        weights = found.word
    network, notes = load_weights(weights)
    if network.in_channels != RGB:
        raise InputError(
            f"--weights {weights} takes pictures of {count_of(network.in_channels, 'channel')}, but an inspection "
            f"looks at {RGB}. Give weights for red, green and blue."
        )
    for note in notes:
        screen.say(f"{weights}: {note}.")
    return network, weights


def _embedded(
    network: Network,
    manifest: Manifest,
    looked: Portraits,
    on: torch.device,
    workers: int | None,
    screen: Screen,
) -> Embeddings:
    readable = manifest.select(looked.readable)
    with screen.counting("embedding", len(readable)) as counted:
        found = embed_manifest(
            network,
            readable,
            preprocessing=network.preprocessing,
            device=on,
            workers=workers_for(workers, on, say=screen.say),
            progress=counted,
        )
    return Embeddings(looked.readable[found.samples], found.labels, found.vectors)


def _write(folder: Path, found: Inspection) -> None:
    pictures = Dispensable(originals(found.manifest))

    def picture(row: int) -> Image.Image | None:
        return pictures.made(row, read_picture)

    try:
        page.write(folder, found, picture=picture, command=command_line(), versions=versions())
    except OSError as error:
        raise InputError(
            f"--out {folder}: the page could not be written ({error.strerror or error})."
        ) from error


def _tell(found: Inspection, screen: Screen) -> None:
    manifest, table = found.manifest, by_class(found.manifest)
    if len(table):
        more = f" (the first {_CLASSES_SHOWN} of {len(table)})" if len(table) > _CLASSES_SHOWN else ""
        rows = [[str(name), *(f"{number:,}" for number in row)] for name, row in table.iterrows()]
        screen.table(f"Pictures by class{more}", ["class", *headings(table)], rows[:_CLASSES_SHOWN])
    findings = found.findings
    screen.say(f"{count_of(len(manifest), 'picture')}, {count_of(len(findings), 'finding')}.")
    for one in findings:
        screen.say(f"{_WORDS[one.severity]}: {one.sentence} {one.advice}".rstrip())
        if one.kind.startswith(_NAMED):
            _name_groups(one, manifest, screen)


def _name_groups(finding: Finding, manifest: Manifest, screen: Screen) -> None:
    """The first groups of a finding by their paths."""
    captions = finding.captions or ("",) * len(finding.groups)
    for group, caption in list(zip(finding.groups, captions, strict=True))[:_GROUPS_NAMED]:
        names = [escaped(manifest.paths[row]) for row in group[:_GROUPS_NAMED]]
        more = len(group) - len(names)
        paths = " = ".join([*names, *([f"{more:,} more"] if more > 0 else [])])
        screen.say(f"  {paths}: {caption}" if caption else f"  {paths}")
    if len(finding.groups) > _GROUPS_NAMED:
        screen.say(f"  and {len(finding.groups) - _GROUPS_NAMED:,} more on the page")
