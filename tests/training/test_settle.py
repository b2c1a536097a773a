from __future__ import annotations

import pytest
import torch

from efficientnetv2.arch.cost import cost
from efficientnetv2.arch.published import architecture
from efficientnetv2.base.errors import InputError
from efficientnetv2.training import settle as room
from efficientnetv2.training.changes import with_settings
from efficientnetv2.training.recipes import named
from efficientnetv2.training.settle import settle

CPU = torch.device("cpu")
CLASSES = ("cat", "dog")


def settled(*settings, recipe="quick", images=9469):
    # Speed is chosen by measuring, in test_speed.
    settings = ["precision=fp32", "compile=off", *settings]
    return settle(with_settings(named(recipe), settings), images=images, class_names=CLASSES, device=CPU)


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(480, 100.0), (2_000, 50.0), (9_469, 10.56), (50_000, 10.0)],  # 100,000 pictures seen, 10 to 100 epochs
)
def test_open_epochs_follow_the_number_of_pictures(images, epochs):
    assert settled(images=images).recipe.epochs == epochs


def test_nothing_is_left_open_and_each_choice_is_said():
    result = settled("precision=auto", "compile=auto", images=32)
    plain = result.recipe.to_json()
    assert "auto" not in plain.values()
    assert result.recipe.eval_px == 128
    assert result.recipe.group_images == 32
    assert any("efficientnetv2_b0" in note for note in result.notes)
    assert any("128 px" in note for note in result.notes)
    assert any("Precision: " in note for note in result.notes)
    assert settle(result.recipe, images=32, class_names=CLASSES, device=CPU).recipe == result.recipe, (
        "settling again changes nothing"
    )


def limited_to(monkeypatch, images, px):
    one = cost(architecture("efficientnetv2_b0"), image_px=px).total.activation_bytes
    monkeypatch.setattr(room, "free_memory_bytes", lambda device: int((images + 0.5) * one / 0.6))


def test_groups_are_the_largest_divisor_of_the_batch_that_fits(monkeypatch):
    limited_to(monkeypatch, 13, px=128)
    assert settled("batch_images=32").recipe.group_images == 8
    assert settled("batch_images=36").recipe.group_images == 12


def test_a_group_that_does_not_fit_names_the_largest_that_does(monkeypatch):
    limited_to(monkeypatch, 13, px=128)
    with pytest.raises(InputError, match=r"group_images is 16, but only 8 pictures of 128 px fit"):
        settled("group_images=16")


def test_a_network_that_does_not_fit_at_all_is_refused(monkeypatch):
    limited_to(monkeypatch, 0, px=128)
    with pytest.raises(InputError, match="Not even one picture of 128 px fits"):
        settled()


def test_one_picture_of_32_px_has_no_batch_norm():
    with pytest.raises(InputError, match="batch-norm one number per channel"):
        settled("batch_images=1", "progressive.image_px=32")
    assert (
        settled("batch_images=1", "progressive.image_px=64", "progressive.stages=1").recipe.group_images == 1
    )


def test_a_continuous_ramp_is_settled_at_its_end():
    ramp = "progressive.image_px={start: 64, end: 128, continuous: true}"
    assert settled(ramp).recipe.eval_px == 128


def test_finetune_without_weights_is_told_of_quick():
    assert any("quick learns faster" in note for note in settled(recipe="finetune").notes)
