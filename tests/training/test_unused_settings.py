"""Notes on config fields without an effect."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.messages import mentions
from tests.recipes import with_overrides

from efficientnetv2.training.head_init import resolve_head_init
from efficientnetv2.training.recipes import get_recipe, named_recipes
from efficientnetv2.training.startup_notes import unused_settings

STAGES = "progressive={stages: 2, image_size: {start: 64, end: 128}}"


def said(*settings, scratch=False, processes=1):
    return unused_settings(with_overrides(get_recipe("finetune"), settings), scratch=scratch, processes=processes)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (["sync_batch_norm=true"], "sync_batch_norm"),
        (["progressive={stages: 1, image_size: 64}", "stage_time=equal"], "stage_time"),
        (["effective_beta=0.99"], "effective_beta"),
        (["schedule={name: cosine, gamma: 0.9}"], "schedule.gamma (for staircase, and schedule.name is cosine)"),
        (["schedule={name: constant, min_lr_ratio: 0.1}"], "schedule.min_lr_ratio"),
        (["compile=true", "progressive={image_size: {start: 64, end: 128, continuous: true}}"], "compile"),
        (["augment.randaugment_layers=3"], "augment.randaugment_layers"),
        (["augment.randaugment_colors=possible"], "augment.randaugment_colors"),
        (["augment.cutout_fill=mean"], "augment.cutout_fill"),
    ],
)
def test_field_without_effect_is_named(settings, name):
    [line] = said(*settings)
    assert mentions(line, name)


def test_unfreezing_and_linear_probe_have_no_effect_from_scratch():
    settings = ("optimizer.gradual_unfreeze=0.5", "head_init=linear_probe")
    [line] = said(*settings, scratch=True)
    assert "optimizer.gradual_unfreeze" in line
    assert "head_init=linear_probe" in line
    assert said(*settings) == []
    for stages in ("3", "all"):
        [line] = said(f"freeze_stages={stages}", scratch=True)
        assert "freeze_stages" in line
        assert said(f"freeze_stages={stages}") == []


@pytest.mark.parametrize(
    "settings",
    [
        ["class_sampling=effective", "effective_beta=0.99"],
        [STAGES, "stage_time=equal", "compile=true"],
        ["schedule={name: staircase, gamma: 0.9, step_epochs: 1}"],
        ["progressive.randaugment=5", "augment.randaugment_layers=3", "augment.randaugment_colors=possible"],
        ["progressive.cutout=0.5", "augment.cutout_fill=mean"],
    ],
)
def test_field_with_an_effect_is_not_named(settings):
    assert said(*settings) == []
    assert said("sync_batch_norm=true", "freeze_bn=false", processes=2) == []


def test_synchronized_batch_norm_has_no_effect_on_kept_statistics():
    (line,) = said("sync_batch_norm=true", processes=2)
    assert "sync_batch_norm (freeze_bn keeps the statistics)" in line


@pytest.mark.parametrize("name", list(named_recipes()))
@pytest.mark.parametrize("scratch", [False, True])
def test_no_recipe_sets_a_field_without_effect(name, scratch):
    recipe = get_recipe(name)
    if scratch:
        recipe = recipe.model_copy(update={"weights": "none"})
    train = type("Part", (), {"class_names": ("cat", "dog"), "__len__": lambda self: 48})()
    data = SimpleNamespace(train=train, dataset=SimpleNamespace(separator=None))
    assert unused_settings(resolve_head_init(recipe, data), scratch=scratch, processes=1) == []
