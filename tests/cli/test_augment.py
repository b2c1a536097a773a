"""``effnetv2 train --preview``: the sheet shows what training feeds to the network, undone for the eye."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tests.command_line import effnetv2
from tests.conftest import COLORS, paint
from tests.messages import mentions
from tests.recipes import with_overrides

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.thumbnails import ImageRow
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.transforms.geometric import symmetry
from efficientnetv2.utils.random_key import Key
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
    """The images as evaluated, and as trained on at the recipe's last stage."""
    recipe = with_overrides(get_recipe("quick"), ["progressive.image_size=64", "crop_scale_min=1", *settings])
    samples = sample_by_class(data, 6, Key.of(0))
    trained = train_row(data, samples, recipe, SEEN, recipe.progressive.last, 0)
    return eval_row(data, samples, SEEN), trained


def apart(one, other) -> float:
    """Levels between two images; training decodes a little less exactly than evaluation."""
    return float(np.abs(one.astype(float) - other).mean())


def test_with_nothing_done_to_them_pictures_are_as_evaluation_sees_them(class_folders):
    """Normalized, and back again: far nearer to itself than to any other."""
    plain, trained = rows(load_dataset(class_folders), "augment.flip=none")
    for number, one in enumerate(trained.images):
        distances = [apart(one, other) for other in plain.images]
        assert distances[number] < 0.5 * min(np.delete(distances, number))
    assert plain.captions == ("blue", "green", "red", "blue", "green", "red")
    assert set(trained.captions) == {""}


def test_the_symmetries_of_the_square_are_to_be_seen(class_folders):
    plain, trained = rows(load_dataset(class_folders), "augment.flip=d4")
    found = set()
    for one, other in zip(plain.images, trained.images, strict=True):
        image = torch.from_numpy(one).permute(2, 0, 1)[None]
        turned = [symmetry(image, index)[0].permute(1, 2, 0).numpy() for index in range(8)]
        distances = [apart(other, view) for view in turned]
        found.add(int(np.argmin(distances)))
        assert min(distances) < 0.5 * sorted(distances)[1]
    assert len(found) > 2


def test_what_is_mixed_says_so(class_folders):
    """Next to the label's own share that of the partner's; smoothing, alike for all, is no mixing."""
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


def test_every_stage_and_moments_of_what_grows_all_the_time():
    stages = ProgressiveSchedule(stages=3, image_size=Ramp(32, 64))
    assert [setting.image_size for setting in stage_settings(stages)] == [stages.stage(i).image_size for i in range(3)]
    always = ProgressiveSchedule(image_size=Ramp(32, 64, continuous=True), size_multiple=8)
    sizes = [setting.image_size for setting in stage_settings(always)]
    assert (sizes[0], sizes[-1]) == (32, 64)
    assert sizes == sorted(sizes)


def test_the_sheet_is_written(class_folders, tmp_path):
    words = ("--weights", "none", "--recipe", "quick", "--model", "efficientnetv2_b0", "--image-size", "64")
    done = effnetv2("train", class_folders, *words, "--preview", "sheet.png", "--preview-images", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "sheet.png")
    assert is_sheet(tmp_path / "sheet.png"), "another sheet may replace it"
    with Image.open(tmp_path / "sheet.png") as sheet:
        levels = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    for channel in range(3):  # red, green and blue images are on it, in their colors
        assert ((levels[:, channel] - np.delete(levels, channel, axis=1).max(axis=1)) > 60).mean() > 0.02
    for out, said in (("sheet.jpg", "the sheet is a PNG"), ("nowhere/sheet.png", "there is no folder nowhere")):
        refused = effnetv2("train", class_folders, *words, "--preview", out, cwd=tmp_path)
        assert refused.returncode == 2
        assert said in refused.stderr


def test_a_dark_sets_columns_are_stretched_alike_and_other_sets_are_not():
    """Half as bright as evaluated is half as bright on the sheet; a negative is there to be seen as it is."""
    ramp = np.tile(np.linspace(0, 30, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    dark = [ImageRow("evaluation", (ramp,), ("a",)), *(ImageRow("", (one,), ("",)) for one in (ramp // 2, 255 - ramp))]
    evaluated, darker, negative = _with_contrast(dark)
    assert evaluated.images[0].max() == 255
    assert "stretched" in evaluated.title
    assert abs(float(darker.images[0].mean()) * 2 - float(evaluated.images[0].mean())) < 12
    assert np.array_equal(negative.images[0], 255 - ramp)
    light = [ImageRow("evaluation", (ramp + 100,), ("a",)), ImageRow("", (ramp,), ("",))]
    assert _with_contrast(light) == light


def test_kept_pictures_are_shown_as_they_are_kept(tmp_path):
    """Shrunk by far before the crops are drawn, of which the small ones are then enlarged: they are softer."""
    for name, color in COLORS.items():
        for number in range(4):
            paint(tmp_path / "pictures" / name / f"{number}.jpg", color, number, px=96)
    words = ("--weights", "none", "--recipe", "quick", "--model", "efficientnetv2_b0", "--image-size", "32",
             "--set", "progressive.stages=1", "--set", "crop_scale_min=0.1", "--preview-images", "6")  # fmt: skip
    grain = {}
    for name, further in (("files", ()), ("kept", ("--cache", "disk", "--set", "cache_resolution=0.01"))):
        out = f"{name}.png"
        done = effnetv2("train", "pictures", *words, *further, "--preview", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / out) as sheet:
            levels = np.asarray(sheet.convert("RGB")).astype(float)
        grain[name] = float(np.abs(np.diff(levels, axis=1)).mean())
    assert grain["kept"] < 0.9 * grain["files"], grain
