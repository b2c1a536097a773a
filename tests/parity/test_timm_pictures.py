"""Equal pixels to timm's transform for the same JPEG file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.models.conversion.timm_config import stated_preprocessing
from efficientnetv2.models.pretrained import get_weights, weight_names

timm = pytest.importorskip("timm")

PHOTOGRAPHS = sorted((Path(__file__).parents[2] / "examples/land_cover/images").glob("*.jpg"))[::60]
LEVELS = 2  # of 255, because timm rounds after each step and in the decoder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Square images of 160 px, one that is decoded at half size, and one that is wider than high."""
    folder = tmp_path_factory.mktemp("photographs")
    with Image.open(PHOTOGRAPHS[3]) as image:
        image.resize((2400, 2400), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=92)
        image.resize((1800, 1200), Image.Resampling.BICUBIC).save(folder / "wide.jpg", quality=92)
    return [*PHOTOGRAPHS, folder / "large.jpg", folder / "wide.jpg"]


def config_of(name):
    return timm.get_pretrained_cfg(f"tf_{name}").to_dict()


def pixels_of_timm(config, path):
    transform = timm.data.create_transform(
        input_size=config.get("test_input_size") or config["input_size"],
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        normalize=False,
    )
    with Image.open(path) as image:
        return transform(image.convert("RGB")).permute(1, 2, 0).numpy().astype(int)


def difference(pixels, theirs):
    assert pixels.shape == theirs.shape
    return np.abs(pixels.astype(int) - theirs)


@pytest.mark.parametrize("name", ["efficientnetv2_b0.in1k", "efficientnetv2_b1.in1k", "efficientnetv2_m.in1k"])
def test_pixels_equal_timm(name, photographs):
    """Center crop (224 of 256 px, 240 of 272 px) and squash (480 px)."""
    preprocessing = get_weights(name).preprocessing
    for path in photographs:
        assert difference(load_eval_image(path, preprocessing), pixels_of_timm(config_of(name), path)).max() <= LEVELS


@pytest.mark.parametrize(
    ("name", "resized_px"), [("efficientnetv2_b3.in1k", 331), ("efficientnetv2_b3.in21k_ft_in1k", 333)]
)
def test_odd_margin_in_timm_is_half_a_pixel_off_the_center(name, resized_px):
    """300 of 331 or 333 px leave 15.5 or 16.5 px on each side. timm starts at pixel 16.

    At an edge, half a pixel is half of its step, so pixels have no small bound. These differences are at most 2 levels:
    with timm's crop, with a crop at the exact center, and the mean over a photo.
    """
    preprocessing, config = get_weights(name).preprocessing, config_of(name)
    assert preprocessing.image_size / preprocessing.crop_pct == pytest.approx(resized_px)

    def cut_at(image, offset_px):
        box = [side / resized_px * place for place in (offset_px, offset_px + 300) for side in image.size]
        return np.array(image.resize((300, 300), Image.Resampling.BICUBIC, box=box))

    for path in PHOTOGRAPHS:
        theirs, ours = pixels_of_timm(config, path), load_eval_image(path, preprocessing)
        with Image.open(path) as image:
            assert difference(cut_at(image, 16), theirs).max() <= LEVELS
            assert difference(ours, cut_at(image, (resized_px - 300) / 2).astype(int)).max() <= LEVELS
        assert difference(ours, theirs).max() > LEVELS
        assert difference(ours, theirs).mean() < 2


@pytest.mark.parametrize("name", [name for name in weight_names() if get_weights(name).source == "timm"])
def test_name_and_config_of_timm_give_the_same_preprocessing(name):
    stated, notes = stated_preprocessing(config_of(name), Path("config.json"))
    assert stated == get_weights(name).preprocessing
    assert not notes
