"""Names, tags, shapes and preprocessing of all published models equal timm and torchvision."""

import numpy as np
import pytest
import torch
import torchvision as their_torchvision
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import mentioning

from efficientnetv2.architectures.registry import NAMES, get_architecture, get_model_info
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.models.conversion import timm_config, torchvision_config
from efficientnetv2.models.conversion.detect import published_name
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.conversion.weight_writer import rounded_crop
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.pretrained import timm_crop_pct
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError

their_timm = pytest.importorskip("timm")


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def ours_renamed(name, source):
    with torch.device("meta"):
        network = EfficientNet(get_architecture(name))
    names = tensor_names(source, get_architecture(name))
    return {names[ours]: shape for ours, shape in shapes(network).items()}


@pytest.mark.parametrize("name", NAMES)
def test_shapes_equal_timm(name):
    with torch.device("meta"):
        theirs = their_timm.create_model(f"tf_{name}")
    assert ours_renamed(name, "timm") == shapes(theirs)


@pytest.mark.parametrize("name", list(torchvision_config.MODELS))
def test_shapes_equal_torchvision(name):
    with torch.device("meta"):
        theirs = their_torchvision.models.get_model(torchvision_config.MODELS[name], weights=None)
    assert ours_renamed(name, "torchvision") == shapes(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_epsilon_equal_timm_with_and_without_tf(name):
    for model in (f"tf_{name}", name):
        if not their_timm.is_model(model):
            with pytest.raises(InputError, match=r"not one of the timm models|timm has no model"):
                timm_config.published_name(model)
            continue
        with torch.device("meta"):
            theirs = their_timm.create_model(model)
        table = timm_config.architecture_of(name, tf=timm_config.published_name(model)[1])
        assert timm_config.published_name(model)[0] == name
        assert {table.batch_norm_epsilon} == {m.eps for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)}
        assert (table.padding == "same") == (type(theirs.conv_stem).__name__ == "Conv2dSame")
        assert timm_config.model_name(table) == (model, {})


@pytest.mark.parametrize("name", list(torchvision_config.MODELS))
def test_padding_and_epsilon_equal_torchvision(name):
    with torch.device("meta"):
        theirs = their_torchvision.models.get_model(torchvision_config.MODELS[name], weights=None)
    table = torchvision_config.architecture_of(name)
    assert {table.batch_norm_epsilon} == {m.eps for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert table.padding == "symmetric"
    assert (
        torchvision_config.model_name(table)
        == torchvision_config.MODELS[name]
        == torchvision_config.MODELS[published_name("torchvision", torchvision_config.MODELS[name])]
    )


@pytest.mark.parametrize("tag", ["tf_efficientnetv2_s.in1k", "tf_efficientnetv2_s_in21ft1k", "tf_efficientnetv2_s"])
def test_tags_of_timm_do_not_change_the_architecture(tag):
    assert timm_config.published_name(tag) == ("efficientnetv2_s", True)


def test_names_of_this_package_suggest_those_of_the_library():
    """timm has no B0 of V2 without tf_, and torchvision spells S differently."""
    with pytest.raises(InputError, match=mentioning("did you mean", "tf_efficientnetv2_b0")):
        timm_config.published_name("efficientnetv2_b0")
    with pytest.raises(InputError, match=mentioning("did you mean", "efficientnet_v2_s")):
        published_name("torchvision", "efficientnetv2_s")
    assert published_name("torchvision", "efficientnet_b0") == "efficientnet_b0"


@pytest.mark.parametrize("model", ["tf_efficientnet_l2_ns", "tf_efficientnet_l2_ns_475", "tf_efficientnet_l2"])
def test_l2_of_noisy_student_is_known(model):
    assert timm_config.published_name(model) == ("efficientnet_l2", True)


@pytest.mark.parametrize(
    "model",
    ["resnet50", "efficientnet_lite0", "efficientnet_b0_gn", "efficientnet_b1_pruned", "tf_efficientnet_es",
     "efficientnetv2_b0", "efficientnet_x_b3", "tf_efficientnet_cc_b0_4e", "tf_efficientnet_b0_ap_ns",
     "tf_efficientnet_b0_ap.in1k"],
)  # fmt: skip
def test_other_timm_models_are_rejected(model):
    with pytest.raises(InputError, match=model):
        timm_config.published_name(model)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith("efficientnetv2") and not name.endswith(("0", "1", "2", "3"))]
)
def test_default_preprocessing_of_s_to_xl_equals_timm(name):
    theirs = their_timm.get_pretrained_cfg(f"tf_{name}.in21k_ft_in1k").to_dict()
    stated, notes = timm_config.stated_preprocessing(theirs, "config.json")
    assert timm_config.default_preprocessing(name, tf=True) == (stated, f"tf_{name}")
    assert not notes
    assert stated.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_name_without_a_tag_has_the_preprocessing_of_the_default_weights(name):
    theirs = their_timm.get_pretrained_cfg(f"tf_{name}")
    stated, _ = timm_config.stated_preprocessing(theirs.to_dict(), "config.json")
    assert timm_config.default_preprocessing(name, tf=True) == (stated, f"tf_{name}")
    assert timm_config.default_preprocessing(name, tf=True, num_classes=7)[0] == stated
    assert timm_config.default_preprocessing(name, tf=True, tag=theirs.tag) == (stated, f"tf_{name}.{theirs.tag}")


def test_number_of_classes_selects_the_preprocessing_of_imagenet_21k():
    """timm's B3 with 21,843 classes uses a center crop. The fine-tuned B3 uses the full image."""
    theirs = their_timm.get_pretrained_cfg("tf_efficientnetv2_b3.in21k").to_dict()
    stated, _ = timm_config.stated_preprocessing(theirs, "config.json")
    known = timm_config.default_preprocessing("efficientnetv2_b3", tf=True, num_classes=theirs["num_classes"])[0]
    assert known == stated != timm_config.default_preprocessing("efficientnetv2_b3", tf=True)[0]


OLD = {
    old: today
    for old, today in their_timm.models._registry._deprecated_models.items()
    if old.startswith("tf_efficientnet")
}


@pytest.mark.parametrize("old", OLD)
def test_deprecated_tags_are_mapped_to_current_ones(old):
    name, _, tag = OLD[old].partition(".")
    assert timm_config.published_name(old) == (name.removeprefix("tf_"), True)
    assert timm_config.tag_of(old) == tag == timm_config.tag_of(OLD[old])
    assert timm_config.tag_of(name) == ""


@pytest.mark.parametrize("name", ["efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l", "efficientnetv2_xl"])
def test_timm_s_to_xl_without_tf_are_bicubic_and_published_ones_bilinear(name):
    plain, title = timm_config.default_preprocessing(name, tf=False)
    theirs, _ = timm_config.stated_preprocessing(their_timm.get_pretrained_cfg(name).to_dict(), "config.json")
    assert (plain, title) == (theirs, f"{name}.untrained")
    assert plain.interpolation == "bicubic"
    assert get_model_info(name).preprocessing.interpolation == "bilinear"


@pytest.mark.parametrize(
    "weights", [name for name in their_timm.list_pretrained("efficientnet_b*") if name.partition(".")[0] in NAMES]
)
def test_v1_models_without_tf_have_the_preprocessing_of_their_weights(weights):
    """Without a tag it is that of timm's default weights."""
    name, _, tag = weights.partition(".")
    stated, notes = timm_config.stated_preprocessing(their_timm.get_pretrained_cfg(weights).to_dict(), "config.json")
    assert timm_config.default_preprocessing(name, tf=False, tag=tag) == (stated, weights)
    assert not notes
    own = their_timm.get_pretrained_cfg(name).tag
    assert timm_config.default_preprocessing(name, tf=False)[1] == f"{name}.{own}"


def test_unknown_tag_is_rejected():
    with pytest.raises(InputError, match=mentioning("efficientnet_b3.in1k", "ra2_in1k")):
        timm_config.default_preprocessing("efficientnet_b3", tf=False, tag="in1k")
    with pytest.raises(InputError, match=mentioning("tf_efficientnetv2_b0.in21k", "in1k")):
        timm_config.default_preprocessing("efficientnetv2_b0", tf=True, tag="in21k")
    with pytest.raises(InputError, match=mentioning("tf_efficientnet_b1.tv_in1k", "weight")):  # of torchvision
        timm_config.default_preprocessing("efficientnet_b1", tf=True, tag="tv_in1k")


def test_preprocessing_of_b3_squashes_and_then_crops():
    """crop_pct 0.9: timm resizes both sides to 333 px and crops the center 300."""
    theirs = their_timm.get_pretrained_cfg("tf_efficientnetv2_b3.in21k_ft_in1k").to_dict()
    stated, notes = timm_config.stated_preprocessing(theirs, "config.json")
    assert (stated.image_size, stated.crop_mode, stated.mean) == (300, "squash", (0.5, 0.5, 0.5))
    assert stated.crop_pct == 300 / 333
    assert not notes


def test_default_crop_pct_of_padded_images_is_reported():
    theirs = {"input_size": [3, 64, 64], "mean": [0.5], "std": [0.5], "crop_mode": "border"}
    stated, [note] = timm_config.stated_preprocessing(theirs, "config.json")
    assert (stated.crop_mode, stated.crop_pct) == ("border", 1.0)
    assert "0.875" in note  # the default of timm
    assert timm_config.stated_preprocessing(theirs | {"crop_pct": 1.0}, "config.json")[1] == ()
    assert rounded_crop(Preprocessing(image_size=64, crop_mode="border", crop_pct=0.8)) is None


@given(px=st.integers(1, 1100), data=st.data())
def test_crop_of_integer_size_is_exact_in_timm(px, data):
    resized_px = data.draw(st.integers(px, 2 * px))
    preprocessing = Preprocessing(image_size=px, crop_mode="center", crop_pct=px / resized_px)
    assert rounded_crop(preprocessing) is None
    assert timm_crop_pct(px, px / (resized_px + 0.5)) == px / resized_px


def test_crop_of_fractional_size_is_rounded_in_timm():
    """224 px with 0.9 is an image of 248.9 px, 249 in timm."""
    preprocessing = Preprocessing(image_size=224, crop_mode="center", crop_pct=0.9)
    assert rounded_crop(preprocessing) == 224 / 249


@pytest.mark.parametrize(("name", "px"), [("efficientnet_b0", 224), ("efficientnetv2_l", 480)])
def test_preprocessing_equals_the_transform_of_torchvision(name, px):
    preprocessing, weights = torchvision_config.default_preprocessing(name)
    transform = their_torchvision.models.get_weight(weights).transforms()
    assert preprocessing.image_size == px == transform.crop_size[0]
    assert preprocessing.crop_pct == px / transform.resize_size[0]
    gray = torch.full((3, 600, 600), 0.25)
    normalized = (0.25 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    assert torch.allclose(transform(gray)[:, 5, 5], normalized, atol=1e-6)


@pytest.mark.parametrize("name", list(torchvision_config.MODELS))
def test_center_of_a_wide_image_is_seen_as_in_torchvision(name):
    """White sides outside of the center square. A squashed image would have them."""
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, :80] = wide[:, 220:] = 255
    preprocessing, weights = torchvision_config.default_preprocessing(name)
    transform = their_torchvision.models.get_weight(weights).transforms()
    theirs = transform(torch.from_numpy(wide).permute(2, 0, 1))
    black = -torch.tensor(preprocessing.mean) / torch.tensor(preprocessing.std)
    assert torch.allclose(theirs, black[:, None, None].expand_as(theirs), atol=1e-5)
    assert load_eval_image(wide, preprocessing).max() == 0
    assert preprocessing.interpolation == transform.interpolation.value
