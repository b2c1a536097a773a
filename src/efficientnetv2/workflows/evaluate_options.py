"""What ``evaluate`` is asked beyond the figures: slices, costs, abstention, another run beside, a temperature."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.predictions import load_predictions
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.calibration import MIN_TEMPERATURE_IMAGES, fit_temperature
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ensemble import Ensemble
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import check_writable_file
from efficientnetv2.workflows.cost_matrix import read_cost_matrix
from efficientnetv2.workflows.leakage import TrainOverlap
from efficientnetv2.workflows.previous_runs import Other
from efficientnetv2.workflows.report_sections import Wanted, check_slices

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateOptions:
    """What is asked beyond the figures, in the words of the options of these names; None: not."""

    slices: str | None = None
    costs: Path | None = None
    abstain_below: float | None = None
    against: Path | None = None
    calibrate: Path | None = None

    def wanted(self, dataset: ImageDataset, class_names: Sequence[str]) -> Wanted:
        """The same, checked as far as can be before any picture is answered.

        Args:
            dataset: of the pictures.
            class_names: of the network.

        Raises:
            InputError: a column, a file or a folder is not what it has to be, or answers nothing of these pictures.
        """
        for_one = {"--costs": self.costs, "--baseline": self.against, "--calibrate": self.calibrate}
        option = next((name for name, value in for_one.items() if value is not None), None)
        if dataset.separator is not None and option is not None:
            raise InputError(f"{option} is for pictures of one label, but these have several. Leave it out.")
        names: tuple[str, ...] | None = None
        if self.slices is not None:
            names = () if self.slices == "none" else tuple(one.strip() for one in self.slices.split(","))
        if names:
            check_slices(dataset, names)
        against = (
            None
            if self.against is None
            else Other.named(self.against, load_predictions(self.against), dataset)
        )
        costs = None if self.costs is None else read_cost_matrix(self.costs, class_names)
        return Wanted(names, costs, self.abstain_below, against)


def check_calibration(
    out: Path, network: Network, dataset: ImageDataset, name: str, looking: Preprocessing
) -> None:
    """Refuse a model, pictures and a file that can't be calibrated, before any picture is answered.

    Args:
        out: file to write.
        network: to calibrate.
        dataset: of the pictures.
        name: what they are called, for the message.
        looking: how they are looked at.

    Raises:
        InputError: the model is several networks, the pictures are too few or are looked at with other
            views or another size than its own, or the file is there already or can't be written.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"--calibrate {out}: a model file ends in .safetensors. Name it so.")
    if out.exists():
        raise InputError(f"--calibrate {out} exists already. Give another name, or remove it.")
    check_writable_file(out, "--calibrate", such_as="calibrated.safetensors")
    if isinstance(network, Ensemble):
        raise InputError(f"--calibrate {out}: the model is several networks. Give the model file of one.")
    own, views, px = network.preprocessing, looking.views, looking.image_px
    if views != own.views:
        raise InputError(
            f"--calibrate {out}: with --views {views} the answers are others than the model's own, whose views are "
            f"'{own.views}'. Leave --views out; or keep these views first: effnetv2 convert MODEL OUT --views {views}"
        )
    if px != own.image_px:
        raise InputError(
            f"--calibrate {out}: at {px} px the answers are others than the model's own, which are at {own.image_px} "
            f"px. Leave --image-px out; or keep that size first: effnetv2 convert MODEL OUT --image-px {px}"
        )
    if len(dataset) < MIN_TEMPERATURE_IMAGES:
        raise InputError(
            f"--calibrate {out}: a temperature is fitted on {MIN_TEMPERATURE_IMAGES} pictures or more, but there "
            f"{'is' if len(dataset) == 1 else 'are'} {pluralize(len(dataset), 'picture')} of {name}. Give more."
        )


def require_unseen(out: Path, known: TrainOverlap, name: str) -> None:
    """Refuse pictures to calibrate by that trained the model.

    Args:
        out: for the message.
        known: whether they did.
        name: what they are called. Those of ``train`` did, unless it is known of each that it did not.

    Raises:
        InputError: they did.
    """
    if known.pictures or (name == "train" and not known.none):
        raise InputError(
            f"--calibrate {out}: pictures of {name} trained the model, which is surer of them than of others. Give "
            "pictures that it has not seen."
        )


def write_calibrated(
    out: Path, network: Network, predictions: Predictions, known: TrainOverlap, name: str
) -> None:
    """Write the model with a temperature that makes these answers' probabilities true.

    Args:
        out: file to write; see ``check_calibrates``.
        network: that answered; its own temperature, if it has one, is in the answers.
        predictions: of labelled pictures.
        known: whether these trained the network.
        name: what they are called.

    Raises:
        InputError: the pictures trained the network, too few of them could be read, or the file can't be written.
    """
    require_unseen(out, known, name)
    before = 1.0 if network.calibration is None else network.calibration.temperature
    temperature = before * fit_temperature(predictions.labels, predictions.logits.numpy())
    network.calibration = Calibration(temperature, len(predictions.labels), name)
    model_file.save(out, network)
    _logger.info(
        f"Written to {out}: the same model with temperature {temperature:.3g}, fitted on these "
        f"{len(predictions.labels)} pictures. Its calibration on them would be optimistic: evaluate it on others."
    )
