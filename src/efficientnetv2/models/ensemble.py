"""An ensemble of models: the mean of their probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor, nn

from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.provenance import Calibration, TrainingFingerprint, merge_fingerprints
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.legacy import SCHEMA_VERSION
from efficientnetv2.utils.probability import probabilities, to_logits

NAME = "ensemble.json"  # in a directory whose model files form an ensemble


class Ensemble(Network):
    """Models with the same classes, meaning of the logits and preprocessing, in evaluation mode.

    Messages call the members by ``names``, by default their numbers from 0. Raises InputError if they differ.
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
        self.activation, self.recipe = first.activation, first.recipe
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
        return self.mean_logits(lambda member: member(x))

    def mean_logits(self, predict: Callable[[Network], Tensor]) -> Tensor:
        """Logits (N, num_classes) of the members' mean probabilities; ``predict`` gives a member's logits.

        With test-time augmentation these are the mean over the views, which is what the temperature was fitted to.
        """
        outputs = []
        for member in self._networks():
            temperature = 1.0 if member.calibration is None else member.calibration.temperature
            outputs.append(probabilities(predict(member).float() / temperature, self.activation))
        return to_logits(torch.stack(outputs).mean(dim=0), self.activation)

    def _networks(self) -> list[Network]:
        return [member for member in self.members if isinstance(member, Network)]


def require_compatible(members: Sequence[Any], names: Sequence[str]) -> None:
    """Raise InputError for models, or headers of model files, that cannot form an ensemble."""
    first = members[0]
    for name, member in zip(names, members, strict=True):
        difference = ""
        if member.class_names != first.class_names:
            difference = f"classes {list(member.class_names)}, not {list(first.class_names)}"
        elif member.activation != first.activation:
            difference = f"{member.activation} probabilities, not {first.activation}"
        elif member.preprocessing != first.preprocessing:
            difference = f"another preprocessing ({_difference(member.preprocessing, first.preprocessing)})"
        if difference:
            raise InputError(f"{name} of the ensemble has {difference}. Predict with each model separately.")


def _difference(one: Preprocessing, other: Preprocessing) -> str:
    ours, theirs = one.to_json(), other.to_json()
    names, parts = [name for name in ours if ours[name] != theirs[name]], []
    if "bands" in names and one.bands and other.bands and one.bands.numbers == other.bands.numbers:
        names = [name for name in names if name not in ("bands", "mean", "std")]  # measured together
        parts = ["how bands are read was measured on its own training images"]
    return "; ".join(parts + [f"{name} is {ours[name]}, not {theirs[name]}" for name in names])


def require_single_model(network: Network) -> None:
    """Refuse an ensemble where one model is needed."""
    if isinstance(network, Ensemble):
        raise InputError(f"this is an ensemble of {len(network.members)} models. Use one, as network.members[0].")


def member_calibrations(network: Network) -> tuple[Calibration | None, ...]:
    """The temperatures of an ensemble's members; () for a single model. The ensemble itself has none."""
    if not isinstance(network, Ensemble):
        return ()
    return tuple(member.calibration for member in network._networks())


def remove_calibration(network: Network) -> bool:
    """Remove the temperature of a model, or of an ensemble's members. Returns whether there was one."""
    models = [model for model in network.modules() if isinstance(model, Network)]
    found = any(model.calibration is not None for model in models)
    for model in models:
        model.calibration = None
    return found


def ensemble_members(folder: Path) -> list[Path]:
    """The model files of an ensemble's directory; [] if the path is none. Raises InputError for a damaged list."""
    listed = folder / NAME
    if not listed.is_file():
        return []
    try:
        names = json.loads(listed.read_text(encoding="utf-8"))["members"]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError("its 'members' are not a list of names")
        for name in names:  # a directory cannot list itself, and can be copied as a whole
            path = PureWindowsPath(name)  # knows the separators of all systems
            if path.anchor or ".." in path.parts or (folder / name).is_dir():
                raise ValueError(f"member '{name}' is not a file in it")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{listed} is not a list of model files: {error}. Copy the folder again.") from error
    return [folder / name for name in names]


def write_members(folder: Path, members: Sequence[str]) -> None:
    """Make the model files of a directory, by their relative paths, an ensemble."""
    write_text_atomically(
        folder / NAME, json.dumps({"schema_version": SCHEMA_VERSION, "members": list(members)}, indent=1) + "\n"
    )


def _merged_fingerprint(parts: Sequence[TrainingFingerprint | None]) -> TrainingFingerprint | None:
    """The images that trained any member; None if they are unknown for one."""
    if None in parts:
        return None
    known = [part for part in parts if part is not None]
    # Images that selected one member and trained another have trained the ensemble; ``workflows.evaluate`` counts so.
    selections = [fingerprint for part in known for fingerprint in part.selections]
    trained = merge_fingerprints([training for part in known for training in part.parts])
    return replace(trained, selection=merge_fingerprints(selections) if selections else None)
