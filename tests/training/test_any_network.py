"""Training loop, EMA and schedules with any architecture, also with frozen layers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.models import model_file
from efficientnetv2.models.adapt import freeze
from efficientnetv2.models.factory import create
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.loop import StepContext, train_steps
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.training.train_state import init_state
from efficientnetv2.utils.random_key import Key

LABELS = np.arange(16) % 2
PLAN = ProgressiveSchedule(stages=2, image_size=Ramp(32, 64), dropout=Ramp(0, 0.2), drop_path=Ramp(0, 0.2))


def noise(request):
    px = request.setting.image_size
    values = np.random.default_rng(request.step).integers(0, 256, (len(request.samples), px, px, 3), dtype=np.uint8)
    images = torch.from_numpy(values).permute(0, 3, 1, 2)
    return Batch(request, images, torch.from_numpy(LABELS[request.samples]), ())


def own():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.1), nn.Linear(8, 2),
    )  # fmt: skip


def run(network, ghost_batch_size):
    """Train for four steps with one or two ghost batches. Return the model that would be saved."""
    plain = get_recipe("quick").to_json() | {
        "progressive": PLAN.to_json(), "epochs": 1, "ema_decay": 0.9, "batch_size": 8,
        "ghost_batch_size": ghost_batch_size,
        "precision": "fp32", "compile": False,
    }  # fmt: skip
    recipe = validate_recipe(plain, where="test")
    state = init_state(network, recipe)
    steps = train_steps(
        state,
        map(noise, TrainSampler(LABELS, PLAN, 4, 8, ghost_batch_size, None, Key.of(0))),
        StepContext(recipe, network.preprocessing, num_classes=2, key=Key.of(0), device=torch.device("cpu")),
        length=RunLength(4, steps_per_epoch=2),
    )
    losses = [float(done.loss) for done in steps]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    return state.eval_network


@pytest.mark.parametrize("ghost_batch_size", [8, 4])
@pytest.mark.parametrize("model", ["timm:resnet10t", "torchvision:mobilenet_v3_small", "own"])
def test_library_and_custom_models_train_and_are_saved(model, ghost_batch_size, tmp_path):
    network = create(own() if model == "own" else model, num_classes=2)
    before = copy.deepcopy(network.state_dict())
    best = run(network, ghost_batch_size)
    stem = f"module.{network.stem_name}.weight"
    assert not torch.equal(best.state_dict()[stem], before[stem])
    model_file.save(tmp_path / "m.safetensors", best, class_names=("a", "b"))
    again = model_file.load(tmp_path / "m.safetensors", network=own() if model == "own" else None)
    pictures = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(pictures), best.eval()(pictures))


@pytest.mark.parametrize("ghost_batch_size", [8, 4])
@pytest.mark.parametrize("model", ["efficientnetv2_b0", "timm:resnet10t"])
def test_frozen_layers_do_not_change_in_training(model, ghost_batch_size):
    network = create(model, num_classes=2)
    freeze(network, stages=3, statistics=True)
    before = copy.deepcopy(network.state_dict())
    best = run(network, ghost_batch_size)
    for after in (network.state_dict(), best.state_dict()):
        same = {name for name in before if torch.equal(before[name], after[name])}
        frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
        statistics = {name for name in before if "running" in name or "tracked" in name}
        assert frozen
        assert frozen | statistics <= same
        assert len(same) < len(before)
