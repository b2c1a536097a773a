"""The networks of a cross-validation's folds: whether they answer together, and one of them at a time.

All of them at once may be more than memory holds: ten folds of three are thirty networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.typed import typed
from efficientnetv2.commands.crossval_before import run_name
from efficientnetv2.commands.outcome import hashes
from efficientnetv2.models import ensemble, modelfile
from efficientnetv2.models.calibrated import Calibration
from efficientnetv2.models.network import Network


@dataclass(frozen=True)
class Networks:
    """Those of all folds.

    Args:
        folder: of the cross-validation.
        folds: how many.
        members: that answer each fold together.
    """

    folder: Path
    folds: int
    members: int

    @property
    def runs(self) -> list[str]:
        """The runs that trained them, as seen from the folder, those of a fold side by side."""
        return [run_name(number, place) for number in range(self.folds) for place in range(self.members)]

    @property
    def files(self) -> list[str]:
        """The model files, likewise."""
        return [f"{run}/{modelfile.NAME}" for run in self.runs]

    def hashes(self) -> dict[str, str]:
        """Of the manifest and of the model files, by where they lie in the folder."""
        names = ["manifest.csv", *self.files]
        return {name: digest for name in names for digest in hashes(self.folder / name).values()}

    def first_of(self, number: int) -> Network:
        """The first network of a fold, loaded anew.

        Args:
            number: of the fold, from 0.
        """
        return modelfile.load(self.folder / run_name(number))

    def calibrations(self) -> tuple[Calibration | None, ...]:
        """Their temperatures, in the order of ``files``."""
        return tuple(modelfile.described(self.folder / file).calibration for file in self.files)

    def together(self) -> str:
        """Let them answer together from now on, if they can; a sentence on that."""
        try:
            headers = [modelfile.described(self.folder / file).header for file in self.files]
            ensemble.refuse_unlike(headers, self.runs)
        except InputError as error:
            return (
                f"The folds' networks do not answer together: {error} For new pictures: effnetv2 predict "
                f"{typed([str(self.folder / 'fold1')])} NEW_PICTURES, or train one network on all of these."
            )
        ensemble.write_members(self.folder, self.files)
        alone = (
            "each alone, on pictures that it"
            if self.members == 1
            else f"{self.members} at a time, on pictures that they"
        )
        return (
            f"The folds' networks answer together for new pictures: effnetv2 predict {typed([str(self.folder)])} "
            f"NEW_PICTURES. The figures here are of {alone} had not seen."
        )
