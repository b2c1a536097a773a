"""Several networks that answer as one: the mean of their probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.provenance import TrainingFingerprint, merge_fingerprints
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, count_of
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.probability import Answer, logits_of, probabilities

NAME = "ensemble.json"  # in a folder whose model files answer together


class Member(Protocol):
    """What decides whether networks can be asked together: a network, or the header of its file."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the outputs, in order."""

    @property
    def answer(self) -> Answer:
        """What its logits mean."""

    @property
    def preprocessing(self) -> Preprocessing:
        """From any picture to the input."""


class Ensemble(Network):
    """Networks of the same classes, kind of answer and preprocessing, asked together.

    Args:
        members: in evaluation mode; at least one.
        names: what messages call them; without, by their place, from 0.

    Raises:
        InputError: they differ in classes, in what their answers mean or in how they look at a picture, so that they
            can't be asked together.
    """

    def __init__(self, members: Sequence[Network], names: Sequence[str] = ()) -> None:
        first = members[0]
        super().__init__(
            num_classes=first.num_classes,
            in_channels=first.in_channels,
            embed_dim=sum(member.embed_dim for member in members),
        )
        require_compatible(members, names or [f"member {number}" for number in range(len(members))])
        self.members = nn.ModuleList(members)
        self.preprocessing, self.class_names = first.preprocessing, first.class_names
        self.answer, self.recipe = first.answer, first.recipe
        self.trained_on = _united([member.trained_on for member in members])
        self.eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """The members' maps of every size, side by side in their channels.

        Args:
            x: (N, in_channels, H, W) float, normalised.
        """
        return [
            torch.cat(maps, dim=1) for maps in zip(*(m.features(x) for m in self._networks()), strict=True)
        ]

    def embed(self, x: Tensor) -> Tensor:
        """What the members' classifiers read, side by side.

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, embed_dim).
        """
        return torch.cat([member.embed(x) for member in self._networks()], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the members' mean probabilities, each by its own temperature (of softmax their logarithms).

        Args:
            x: (N, in_channels, H, W) float, normalised.

        Returns:
            (N, num_classes).
        """
        return self.blended(lambda member: member(x))

    def blended(self, ask: Callable[[Network], Tensor]) -> Tensor:
        """Logits of the members' mean probabilities, as ``forward``, however each of them is asked.

        A temperature is for what it was fitted to: where a member looks at several views of a picture, that is the mean
        over these.

        Args:
            ask: a member's logits before its temperature, (N, num_classes).

        Returns:
            (N, num_classes).
        """
        shares = []
        for member in self._networks():
            temperature = 1.0 if member.calibration is None else member.calibration.temperature
            shares.append(probabilities(ask(member).float() / temperature, self.answer))
        return logits_of(torch.stack(shares).mean(dim=0), self.answer)

    def _networks(self) -> list[Network]:
        return [member for member in self.members if isinstance(member, Network)]


def require_compatible(members: Sequence[Member], names: Sequence[str]) -> None:
    """Refuse what can't be asked together.

    Args:
        members: networks, or headers of model files; at least one.
        names: what the message calls them, as many.

    Raises:
        InputError: they differ in classes, in what their answers mean, or in how they look at a picture.
    """
    first = members[0]
    for name, member in zip(names, members, strict=True):
        if member.class_names != first.class_names:
            raise InputError(
                f"{name} of the ensemble knows other classes than the first: {list(member.class_names)}, "
                f"not {list(first.class_names)}. Ask each by itself."
            )
        if member.answer != first.answer:
            raise InputError(
                f"{name} of the ensemble answers by {member.answer}, the first by {first.answer}, so that the mean of "
                "their probabilities would mean nothing. Ask each by itself."
            )
        if member.preprocessing != first.preprocessing:
            raise InputError(
                f"{name} of the ensemble looks at pictures otherwise than the first "
                f"({_unlike(member.preprocessing, first.preprocessing)}), so that they cannot be asked together. "
                "Ask each by itself."
            )


def require_single_model(network: Network, why: str) -> None:
    """Refuse networks that answer together where one is needed.

    Args:
        network: any.
        why: what is for one network, in words, to follow "but".

    Raises:
        InputError: it is an ensemble.
    """
    if isinstance(network, Ensemble):
        raise InputError(
            f"these are {count_of(len(network.members), 'network')} that answer together, but {why}. Give one of them, "
            "as network.members[0]."
        )


def member_calibrations(network: Network) -> tuple[Calibration | None, ...]:
    """The temperatures of the networks that answer as one, in their order, None where one has none; () of one network.

    An ensemble has none itself, for each member has divided by its own.

    Args:
        network: any.
    """
    if not isinstance(network, Ensemble):
        return ()
    return tuple(member.calibration for member in network.members if isinstance(member, Network))


def remove_calibration(network: Network) -> bool:
    """Take a network's temperature away, of an ensemble its members'.

    Args:
        network: any; changed in place.

    Returns:
        Whether there was one.
    """
    parts = [one for one in network.modules() if isinstance(one, Network)]
    there = any(one.calibration is not None for one in parts)
    for one in parts:
        one.calibration = None
    return there


def ensemble_members(folder: Path) -> list[Path]:
    """The model files of a folder that answer together; none if it is no such folder.

    Args:
        folder: any path.

    Raises:
        InputError: its list can't be read, or names something else than files below the folder.
    """
    listed = folder / NAME
    if not listed.is_file():
        return []
    try:
        names = _checked(json.loads(listed.read_text(encoding="utf-8"))["members"], folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{listed} is no list of model files: {error}. Copy the folder again.") from error
    return [folder / name for name in names]


def _checked(names: Any, folder: Path) -> list[str]:
    """Names of files below a folder.

    Raises:
        ValueError: they are something else: a folder could list itself without end, and what lies elsewhere does not
            come along.
    """
    if not isinstance(names, list) or not names:
        raise ValueError("its 'members' are no list with a name or more")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"member {name!r} is no name of a file")
        as_path = PureWindowsPath(name)  # which knows the ways of other systems too
        if as_path.anchor or ".." in as_path.parts or (folder / name).is_dir():
            raise ValueError(f"member '{name}' is no file in it")
    return names


def write_members(folder: Path, members: Sequence[str]) -> None:
    """Let the model files of a folder answer together, whenever the folder is given as a model.

    Args:
        folder: that holds them.
        members: their places in it.
    """
    write_text_atomically(folder / NAME, json.dumps({"members": list(members)}, indent=1) + "\n")


def _unlike(one: Preprocessing, other: Preprocessing) -> str:
    """Where they part, in words."""
    mine, theirs = one.to_json(), other.to_json()
    names = [name for name in mine if mine[name] != theirs[name]]
    parts = []
    if "bands" in names and one.bands and other.bands and one.bands.numbers == other.bands.numbers:
        parts = ["which values of the bands become 0 to 255 was measured on its own training pictures"]
        names = [name for name in names if name not in ("bands", "mean", "std")]  # measured with them
    return "; ".join(parts + [f"{name} is {mine[name]}, not {theirs[name]}" for name in names])


def _united(parts: Sequence[TrainingFingerprint | None]) -> TrainingFingerprint | None:
    """What trained any of them: the ensemble has seen it. None if that is not known of one."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    # What chose one member and trained another has trained the ensemble; ``workflows.leakage`` counts it there.
    choosing = [one for part in known for one in part.choosing]
    trained = merge_fingerprints([training for part in known for training in part.parts])
    return replace(trained, chose=merge_fingerprints(choosing) if choosing else None)
