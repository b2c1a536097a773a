"""``effnetv2 train --preview``: the preview shows the images that training feeds to the model, denormalized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.command_line import run_ok, run_refused
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides

import efficientnetv2
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.thumbnails import ImageRow
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.transforms.geometric import symmetry
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows import augmentation_preview
from efficientnetv2.workflows.augmentation_preview import (
    _with_contrast,
    eval_row,
    is_sheet,
    sample_by_class,
    stage_settings,
    train_row,
)

SEEN = Preprocessing(image_size=64)


def rows(data, *settings: str):
    """The images as evaluation sees them, and as training sees them at the recipe's last stage."""
    recipe = with_overrides(get_recipe("quick"), ["progressive.image_size=64", "crop_scale_min=1", *settings])
    samples = sample_by_class(data, 6, Key.of(0))
    trained = train_row(data, samples, recipe, SEEN, recipe.progressive.last, 0)
    return eval_row(data, samples, SEEN), trained


def mean_difference(first, second) -> float:
    """Mean difference of pixel values; training decodes slightly less exactly than evaluation."""
    return float(np.abs(first.astype(float) - second).mean())


def test_unaugmented_images_match_evaluation(class_folders):
    """After denormalization each image is closest to itself."""
    plain, trained = rows(load_dataset(class_folders), "augment.flip=none")
    for number, one in enumerate(trained.images):
        distances = [mean_difference(one, other) for other in plain.images]
        assert distances[number] < 0.5 * min(np.delete(distances, number))
    assert plain.captions == ("blue", "green", "red", "blue", "green", "red")
    assert set(trained.captions) == {""}


def test_flips_and_rotations_are_visible(class_folders):
    plain, trained = rows(load_dataset(class_folders), "augment.flip=d4")
    found = set()
    for one, other in zip(plain.images, trained.images, strict=True):
        image = torch.from_numpy(one).permute(2, 0, 1)[None]
        views = [symmetry(image, index)[0].permute(1, 2, 0).numpy() for index in range(8)]
        distances = [mean_difference(other, view) for view in views]
        found.add(int(np.argmin(distances)))
        assert min(distances) < 0.5 * sorted(distances)[1]
    assert len(found) > 2


def test_caption_lists_both_mixed_labels(class_folders):
    """The caption has the shares of both labels; label smoothing alone is not mixing."""
    plain, trained = rows(
        load_dataset(class_folders), "augment.flip=none", "progressive.mixup_alpha=5", "progressive.label_smoothing=0.1"
    )
    mixed = [caption for caption in trained.captions if caption]
    assert mixed
    for caption in mixed:
        shares = [int(part.split("%")[0]) for part in caption.split(" + ")]
        assert len(shares) == 2
        assert 99 <= sum(shares) <= 101
    assert any((one != other).any() for one, other in zip(plain.images, trained.images, strict=True))


def test_terms_of_the_loss_are_not_mixing(class_folders):
    """With logit adjustment, label smoothing goes to the classes by their frequency."""
    for number in range(3, 16):
        (class_folders / "red" / f"red_{number:02d}.jpg").unlink()
    settings = (
        "class_sampling=sqrt",
        "logit_adjustment=1",
        "minority_randaugment_scale=2",
        "progressive.randaugment=2",
    )
    _, trained = rows(load_dataset(class_folders), *settings, "progressive.label_smoothing=0.3")
    assert set(trained.captions) == {""}


def test_preview_covers_all_stages_and_a_continuous_ramp():
    stages = ProgressiveSchedule(stages=3, image_size=Ramp(32, 64))
    assert [setting.image_size for setting in stage_settings(stages)] == [stages.stage(i).image_size for i in range(3)]
    continuous = ProgressiveSchedule(image_size=Ramp(32, 64, continuous=True), size_multiple=8)
    sizes = [setting.image_size for setting in stage_settings(continuous)]
    assert (sizes[0], sizes[-1]) == (32, 64)
    assert sizes == sorted(sizes)


def test_preview_file_is_written(class_folders, tmp_path):
    args = ("--weights", "none", "--recipe", "quick", "--model", "efficientnetv2_b0", "--image-size", "64")
    done = run_ok("train", class_folders, *args, "--preview", "sheet.png", "--preview-images", "3", cwd=tmp_path)
    assert mentions(done.stdout, "sheet.png")
    assert is_sheet(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        levels = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    for channel in range(3):  # red, green and blue images are visible
        assert ((levels[:, channel] - np.delete(levels, channel, axis=1).max(axis=1)) > 60).mean() > 0.02
    overrides = {"weights": "none", "recipe": "quick", "model": "efficientnetv2_b0", "image_size": 64}
    drawn = efficientnetv2.preview(class_folders, num_images=3, **overrides)
    np.testing.assert_array_equal(np.asarray(drawn.convert("RGB")).reshape(-1, 3), levels)
    with pytest.raises(InputError, match=mentioning("preview", "minutes")):
        efficientnetv2.preview(class_folders, minutes=5)
    size = (tmp_path / "sheet.png").stat().st_size
    again = run_ok("train", class_folders, *args, "--preview", "sheet.png", "--preview-images", "2", cwd=tmp_path)
    assert mentions(again.stdout, "sheet.png exists", "replaced")
    assert (tmp_path / "sheet.png").stat().st_size < size
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    for out, fact in (
        ("sheet.jpg", "the sheet is a PNG"),
        ("nowhere/sheet.png", "there is no folder nowhere"),
        ("photo.png", "is not a sheet"),
    ):
        assert fact in run_refused("train", class_folders, *args, "--preview", out, cwd=tmp_path).stderr


def test_contrast_of_dark_images_is_stretched_equally():
    """A training image half as bright as in evaluation stays half as bright in the preview."""
    ramp = np.tile(np.linspace(0, 30, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    dark = [ImageRow("evaluation", (ramp,), ("a",)), *(ImageRow("", (one,), ("",)) for one in (ramp // 2, 255 - ramp))]
    evaluated, darker, negative = _with_contrast(dark)
    assert evaluated.images[0].max() == 255
    assert "stretched" in evaluated.title
    assert abs(float(darker.images[0].mean()) * 2 - float(evaluated.images[0].mean())) < 12
    assert np.array_equal(negative.images[0], 255 - ramp)
    light = [ImageRow("evaluation", (ramp + 100,), ("a",)), ImageRow("", (ramp,), ("",))]
    assert _with_contrast(light) == light


def test_preview_shows_cached_images(tmp_path):
    """The cache stores small images, so enlarged crops of them are softer."""
    for name, color in COLORS.items():
        for number in range(4):
            paint(tmp_path / "pictures" / name / f"{number}.jpg", color, number, px=96)
    args = ("--weights", "none", "--recipe", "quick", "--model", "efficientnetv2_b0", "--image-size", "32",
            "--set", "progressive.stages=1", "--set", "crop_scale_min=0.1", "--preview-images", "6")  # fmt: skip
    grain = {}
    for name, further in (("files", ()), ("cached", ("--cache", "disk", "--set", "cache_resolution=0.01"))):
        out = f"{name}.png"
        run_ok("train", "pictures", *args, *further, "--preview", out, cwd=tmp_path)
        with Image.open(tmp_path / out) as sheet:
            levels = np.asarray(sheet.convert("RGB")).astype(float)
        grain[name] = float(np.abs(np.diff(levels, axis=1)).mean())
    assert grain["cached"] < 0.9 * grain["files"], grain


def test_preview_names_missing_images_before_it_looks_for_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(augmentation_preview, "requested_recipe", None)
    sheet = {"num_images": 4, "device": "cpu", "strict": False, "argument": "--preview"}
    with pytest.raises(InputError, match=mentioning("nowhere")):
        augmentation_preview.draw_sheet(TrainOverrides(), DataConfig("nowhere"), tmp_path / "sheet.png", **sheet)


def test_number_of_images_needs_a_preview(tmp_path):
    assert "--preview PNG" in run_refused("train", "photos", "--preview-images", "3", cwd=tmp_path).stderr


@pytest.mark.parametrize("option", [("--output", "run"), ("--baseline", "run"), ("--json",), ("--minutes", "5")])
def test_options_without_effect_on_a_preview_are_refused(option, tmp_path):
    run_refused("train", "photos", "--preview", "sheet.png", *option, cwd=tmp_path, names=("--preview", option[0]))
