"""Training of every recipe on small images and models: schedule, regularization, augmentation, optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampler import BatchRequest, TrainSampler
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training import loop
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.training.train_state import init_state
from efficientnetv2.utils.random_key import Key

# The second and fourth of its blocks have a shortcut, so stochastic depth of 1/4 and 3/4 of the rate.
SMALL = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=2, kernel=3), stride=2, channels=8, layers=2),
        Stage(mbconv(expand=2, kernel=3), stride=2, channels=16, layers=2),
    ),
    head_channels=16,
)
SMALLS_SHARES = [1 / 4, 3 / 4]
PICTURES, CLASSES = 8, 4
ONE_EACH = np.arange(PICTURES) % CLASSES
# As in ImageDataset.targets. Below: the label fractions of each image.
SEVERAL = np.array([[0, -1, -1], [1, 0, -1], [2, 1, 0], [3, 2, -1]] * 2)
SEVERAL_SHARES = torch.tensor([[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 1 / 2, 1 / 2]])
# Stochastic depth modules of this package, timm and torchvision, and the attribute of the rate.
RATE = {"DropPath": ("rate", "drop_prob"), "StochasticDepth": ("p",)}
# Five seconds in total. The largest is a slow test.
TABLE_12 = [
    "resnet50_224_progressive",
    "resnet50_380_progressive",
    pytest.param("resnet152_380_progressive", marks=pytest.mark.slow),
    "efficientnet_b4_progressive",
    "efficientnet_b5_progressive",
]


def small(name: str, *, px: int, steps: int, stages: int | None = None) -> Recipe:
    """A recipe with small images, a small batch and few steps of two ghost batches of 4."""
    recipe = get_recipe(name)
    plain = recipe.to_json()
    plain["progressive"] = recipe.progressive.with_image_size(px).to_json() | {"size_multiple": 1}
    plain["progressive"] |= {"stages": stages} if stages else {}
    plain |= {
        "epochs": float(steps),
        "steps": None,
        "batch_size": PICTURES,
        "ghost_batch_size": 4,
        "eval_image_size": 32,
    }
    return validate_recipe(plain | {"precision": "fp32", "compile": False}, where=name)


@dataclass
class Pass:
    """One forward pass: image size, rates of the modules, and targets."""

    px: int
    dropout: list[float]
    drop_path: list[float]
    targets: Tensor = field(default_factory=lambda: torch.empty(0))


def trained(
    recipe: Recipe, network: nn.Module, labels: npt.NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[loop.StepOutput], list[tuple[BatchRequest, Pass]]]:
    """Train with the whole recipe. Return the steps, and the requests with their forward passes."""
    passes: list[Pass] = []
    real = loop.cross_entropy

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passes.append(Pass(inputs[0].shape[-1], dropouts(module), drop_paths(module)))

    def noted(logits: Tensor, targets: Tensor, **words: Any) -> Tensor:
        passes[-1].targets = targets
        return real(logits, targets, **words)

    monkeypatch.setattr(loop, "cross_entropy", noted)
    network.register_forward_pre_hook(look)
    key, length = Key.of(0), RunLength.of(recipe, PICTURES)
    first = labels if labels.ndim == 1 else labels[:, 0]
    requests = list(TrainSampler(first, recipe.progressive, length.steps, PICTURES, 4, recipe.class_sampling, key))
    noise = np.random.default_rng(0)

    def answered(request: BatchRequest) -> Batch:
        shape = (4, 3, request.setting.image_size, request.setting.image_size)
        images = torch.from_numpy(noise.integers(0, 256, shape, np.uint8))
        return Batch(request, images, torch.from_numpy(labels[request.samples]), ())

    steps = loop.train_steps(
        init_state(network, recipe),
        map(answered, requests),
        loop.StepContext(
            recipe, Preprocessing(image_size=32), num_classes=CLASSES, key=key, device=torch.device("cpu")
        ),
        length=length,
    )
    return list(steps), list(zip(requests, passes, strict=True))


def dropouts(network: nn.Module) -> list[float]:
    """Rate of each dropout module, in order. timm's models have the rate as an attribute."""
    found = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    return found or [module.drop_rate for module in network.modules() if hasattr(module, "drop_rate")][:1]


def drop_paths(network: nn.Module) -> list[float]:
    """Rate of each stochastic depth module, in order."""
    modules = [module for module in network.modules() if type(module).__name__ in RATE]
    return [getattr(m, name) for m in modules for name in RATE[type(m).__name__] if hasattr(m, name)]


def hot(samples: npt.NDArray[np.int64], setting: StepSettings, *, several: bool) -> Tensor:
    """Targets of unmixed images, by hand."""
    shares = SEVERAL_SHARES if several else torch.eye(CLASSES)
    smoothing = setting.label_smoothing
    return shares[samples % CLASSES] * (1 - smoothing) + smoothing / CLASSES


@pytest.mark.parametrize("name", named_recipes())
def test_recipe_trains_with_the_rates_and_targets_of_each_stage(name, monkeypatch):
    """Schedule, augmentation and optimizer of the recipe, at 48 px and batch size 8. ImageNet-21k is multi-label."""
    recipe, several = small(name, px=48, steps=8), get_recipe(name).expected_dataset == "imagenet21k"
    torch.manual_seed(0)
    network = create(SMALL, num_classes=CLASSES)
    before = {one: weight.detach().clone() for one, weight in network.named_parameters()}
    steps, passes = trained(recipe, network, SEVERAL if several else ONE_EACH, monkeypatch)
    stages = recipe.progressive.stages
    assert [done.setting for done in steps] == [recipe.progressive.stage(step * stages // 8) for step in range(8)]
    assert len({done.setting.image_size for done in steps}) == stages == get_recipe(name).progressive.stages
    assert np.isfinite([float(done.loss) for done in steps]).all()
    assert not [one for one, weight in network.named_parameters() if torch.equal(weight, before[one])]
    assert len(passes) == 2 * 8
    for request, met in passes:
        setting = request.setting
        assert met.px == setting.image_size
        assert met.dropout == [setting.dropout]
        assert met.drop_path == pytest.approx([setting.drop_path * share for share in SMALLS_SHARES])
        torch.testing.assert_close(met.targets.sum(dim=1), torch.ones(4))
        if not setting.mixup_alpha and not setting.cutmix_alpha:
            torch.testing.assert_close(met.targets, hot(request.samples, setting, several=several))


def test_recipes_cover_stages_stochastic_depth_dropout_and_multilabel():
    """Otherwise the test above would check nothing."""
    recipes = [get_recipe(name) for name in named_recipes()]
    assert {1, 3, 4} <= {recipe.progressive.stages for recipe in recipes}
    assert len({recipe.progressive.drop_path for recipe in recipes}) > 2
    growing = [r for r in recipes if r.progressive.stage(0).dropout < r.progressive.last.dropout]
    assert len(growing) > 10
    assert sum(recipe.expected_dataset == "imagenet21k" for recipe in recipes) == 5
    assert len(drop_paths(create(SMALL))) == len(SMALLS_SHARES)


@pytest.mark.parametrize("name", TABLE_12)
def test_table_12_models_train_in_the_first_and_last_stage(name, monkeypatch):
    """At 64 px. A ramp of two stages has the ends of a ramp of four."""
    recipe, own = small(name, px=64, steps=2, stages=2), get_recipe(name).progressive
    if recipe.model.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    network = create(recipe.model, num_classes=CLASSES)
    steps, passes = trained(recipe, network, ONE_EACH, monkeypatch)
    assert np.isfinite([float(done.loss) for done in steps]).all()
    assert [done.setting.image_size for done in steps] == [
        round(own.stage(0).image_size * 64 / own.last.image_size),
        64,
    ]
    for done, ends in zip(steps, (own.stage(0), own.last), strict=True):
        reached = [met for request, met in passes if request.step == done.step]
        assert len(reached) == 2
        for met in reached:
            if recipe.model.startswith("torchvision:resnet"):
                assert (met.dropout, met.drop_path) == ([], [])
            else:
                assert met.dropout == [ends.dropout]
                assert max(met.drop_path) == pytest.approx(ends.drop_path)
                assert met.drop_path == sorted(met.drop_path), "the deeper, the more"
