"""An ensemble of models: the mean of their probabilities."""

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
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.probability import Answer, probabilities, to_logits

NAME = "ensemble.json"  # in a directory whose model files form an ensemble


class Member(Protocol):
    """What decides whether models can form an ensemble: a model, or the header of its file."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the outputs, in order."""

    @property
    def answer(self) -> Answer:
        """Meaning of the logits."""

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image of any size to the input."""


class Ensemble(Network):
    """Models with the same classes, meaning of the logits and preprocessing.

    Args:
        members: At least one, in evaluation mode.
        names: For messages; by default the members' numbers, from 0.

    Raises:
        InputError: The members differ, see ``require_compatible``.
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
        self.trained_on = _merged_fingerprint([member.trained_on for member in members])
        self.eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """The members' maps at each resolution, concatenated along channels."""
        maps = zip(*(member.features(x) for member in self._networks()), strict=True)
        return [torch.cat(same_size, dim=1) for same_size in maps]

    def embed(self, x: Tensor) -> Tensor:
        """The members' embeddings, concatenated: (N, embed_dim)."""
        return torch.cat([member.embed(x) for member in self._networks()], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of the members' mean probabilities, each calibrated by its own temperature."""
        return self.blended(lambda member: member(x))

    def blended(self, ask: Callable[[Network], Tensor]) -> Tensor:
        """Logits (N, num_classes) of the members' mean probabilities, as ``forward``.

        Args:
            ask: A member's logits before its temperature, (N, num_classes). With test-time augmentation this is the
                mean over the views, which is what the temperature was fitted to.
        """
        found = []
        for member in self._networks():
            temperature = 1.0 if member.calibration is None else member.calibration.temperature
            found.append(probabilities(ask(member).float() / temperature, self.answer))
        return to_logits(torch.stack(found).mean(dim=0), self.answer)

    def _networks(self) -> list[Network]:
        return [member for member in self.members if isinstance(member, Network)]


def require_compatible(members: Sequence[Member], names: Sequence[str]) -> None:
    """Refuse models, or headers of model files, that cannot form an ensemble.

    Raises:
        InputError: They differ in classes, in the meaning of their logits, or in their preprocessing.
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
                f"({_preprocessing_difference(member.preprocessing, first.preprocessing)}), so that they cannot be "
                "asked together. Ask each by itself."
            )


def require_single_model(network: Network, why: str) -> None:
    """Refuse an ensemble where one model is needed; ``why`` follows "but" in the message."""
    if isinstance(network, Ensemble):
        raise InputError(
            f"these are {pluralize(len(network.members), 'network')} that answer together, but {why}. Give one of "
            "them, as network.members[0]."
        )


def member_calibrations(network: Network) -> tuple[Calibration | None, ...]:
    """The temperatures of an ensemble's members; () for a single model.

    The ensemble itself has none, since each member's logits are divided by its own.
    """
    if not isinstance(network, Ensemble):
        return ()
    return tuple(member.calibration for member in network.members if isinstance(member, Network))


def remove_calibration(network: Network) -> bool:
    """Remove the temperature of a model, or of an ensemble's members. Returns whether there was one."""
    parts = [part for part in network.modules() if isinstance(part, Network)]
    found = any(part.calibration is not None for part in parts)
    for part in parts:
        part.calibration = None
    return found


def ensemble_members(folder: Path) -> list[Path]:
    """The model files of an ensemble's directory; [] if the path is none.

    Raises:
        InputError: The list cannot be read, or names something else than files below the directory.
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
    """Names of files below a directory, so that it cannot list itself and can be copied as a whole."""
    if not isinstance(names, list) or not names:
        raise ValueError("its 'members' are no list with a name or more")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"member {name!r} is no name of a file")
        as_path = PureWindowsPath(name)  # knows the separators of all systems
        if as_path.anchor or ".." in as_path.parts or (folder / name).is_dir():
            raise ValueError(f"member '{name}' is no file in it")
    return names


def write_members(folder: Path, members: Sequence[str]) -> None:
    """Make the model files of a directory, by their relative paths, an ensemble."""
    write_text_atomically(folder / NAME, json.dumps({"members": list(members)}, indent=1) + "\n")


def _preprocessing_difference(one: Preprocessing, other: Preprocessing) -> str:
    mine, theirs = one.to_json(), other.to_json()
    names = [name for name in mine if mine[name] != theirs[name]]
    parts = []
    if "bands" in names and one.bands and other.bands and one.bands.numbers == other.bands.numbers:
        parts = ["which values of the bands become 0 to 255 was measured on its own training pictures"]
        names = [name for name in names if name not in ("bands", "mean", "std")]  # measured together
    return "; ".join(parts + [f"{name} is {mine[name]}, not {theirs[name]}" for name in names])


def _merged_fingerprint(parts: Sequence[TrainingFingerprint | None]) -> TrainingFingerprint | None:
    """The images that trained any member; None if they are unknown for one."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    # Images that selected one member and trained another have trained the ensemble; ``workflows.leakage`` counts so.
    choosing = [fingerprint for part in known for fingerprint in part.choosing]
    trained = merge_fingerprints([training for part in known for training in part.parts])
    return replace(trained, chose=merge_fingerprints(choosing) if choosing else None)
