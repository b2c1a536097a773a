"""Count the training images that become unreadable during a run, and end it when they are too many."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from efficientnetv2.data.file_probe import MAX_UNREADABLE
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.utils.errors import InputError

_logger = logging.getLogger(__name__)


class UnreadableImages:
    """Counts the training images that have become unreadable during the run."""

    def __init__(self, setup: RunSetup) -> None:
        self._setup = setup
        # Those that this process has met: some that a resumed run lists may be readable again.
        self._lost: set[int] = set()

    def add(self, unreadable: Sequence[tuple[int, str]]) -> None:
        """Skip images from now on: sample and reason of each, from all processes.

        Raises InputError if there are too many; or, if the run is strict, any.
        """
        folder, train = self._setup.folder, self._setup.train
        for sample, reason in unreadable:
            image = f"{train.paths[sample]}: {reason}"
            if self._setup.strict:
                raise InputError(f"{image}. Repair it or leave out `strict`, then continue with `resume`.")
            self._lost.add(sample)
            if folder.skip(train.paths[sample], reason):
                _logger.info(f"Skipped from now on: {image}.")
            if len(self._lost) > MAX_UNREADABLE * len(train):
                raise InputError(
                    f"{len(self._lost)} of {len(train)} training images have become unreadable, above the limit of "
                    f"{MAX_UNREADABLE:.0%}; the last is {image}. Restore the images that {folder.skipped_file} lists, "
                    "then continue with `resume`."
                )
