import pytest
import torch
from torch import nn

from efficientnetv2.base.errors import InputError
from efficientnetv2.data.manifest import read
from efficientnetv2.training import plan
from efficientnetv2.training.changes import with_settings
from efficientnetv2.training.plan import StepTime, epochs_within
from efficientnetv2.training.recipes import named

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch):
    """10 ms a picture at 64 px, 30 ms at 128 px."""
    times = [StepTime(64, 0.010), StepTime(128, 0.030)]
    monkeypatch.setattr(plan, "measure", lambda *_: times)
    settings = ["progressive={stages: 2, image_px: {start: 64, end: 128}}", "batch_images=8"]
    return with_settings(named("quick"), settings)


def test_epochs_are_what_fits_into_the_minutes(measured, class_folders):
    """20 ms a picture on average, 48 pictures: 0.96 s an epoch; of 2 minutes 8 % go to saving and validating."""
    epochs = epochs_within(2, measured, nn.Identity(), read(class_folders), CPU)
    assert epochs == pytest.approx(120 * 0.92 / 0.96, rel=0.01)


def test_too_few_minutes_are_refused(measured, class_folders):
    """Two steps of 8 pictures take 0.32 s."""
    with pytest.raises(InputError, match=r"--minutes 0.005"):
        epochs_within(0.005, measured, nn.Identity(), read(class_folders), CPU)
