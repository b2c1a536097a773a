"""Where and how a run runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from efficientnetv2.data.data_module import SharedDataset
from efficientnetv2.utils.shell import option_args


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that are not in its recipe."""

    out: Path | None = None  # Run directory. None makes a new one under ``runs/``.
    resume: bool = False  # Whether to resume the run there
    device: str = "auto"  # Device, as ``--device`` takes it
    workers: int | None = None  # Processes that read images. None chooses by the machine.
    memory_gib: float | None = None  # Memory limit of each process
    strict: bool = False  # Whether an unreadable image is an error
    probe: bool = True  # Whether to compare with a linear probe of the given weights
    # Run to compare with. None takes the one of the resumed run, or else the last one beside it.
    against: Path | None = None
    # Recipe files of earlier runs of the same kind. The first with the same weights is repeated.
    settled: tuple[Path, ...] = ()
    common: SharedDataset | None = None  # Dataset that all runs of a cross-validation share

    @property
    def words(self) -> list[str]:
        """The options that a resumed run needs again, as typed on the command line."""
        return option_args(
            device=None if self.device == "auto" else self.device,
            workers=self.workers,
            memory_gib=self.memory_gib,
            strict=self.strict,
        )
