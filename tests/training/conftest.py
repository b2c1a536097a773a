import pytest
import torch
from tests.recipes import with_overrides
from tests.training.test_loop import SMALL

from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_setup import RunSetup


@pytest.fixture
def small_run(tmp_path):
    """A function that sets up a small run of two stages in a folder. All runs begin with the same weights."""

    def of(name, train, val, *settings, **more):
        stages = "progressive={stages: 2, image_size: {start: 32, end: 48}, dropout: 0.3}"
        same = ("batch_size=8", "ghost_batch_size=8", "precision=fp32", "compile=false", "ema_decay=0.5")
        torch.manual_seed(0)
        return RunSetup(
            recipe=with_overrides(get_recipe("quick"), [stages, *same, *settings]),
            network=create(SMALL, num_classes=3),
            train=train,
            val=val,
            preprocessing=Preprocessing(image_size=48),
            folder=RunDir(tmp_path / name),
            device=torch.device("cpu"),
            workers=0,
            **more,
        )

    return of
