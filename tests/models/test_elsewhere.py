"""A word that names no network of ours is answered with the word that would."""

import pytest
from tests.messages import mentioning, mentions

from efficientnetv2.models import factory
from efficientnetv2.models.factory import create
from efficientnetv2.utils.errors import InputError


def absent(*_):
    raise InputError("not to be had")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("tf_efficientnetv2_s", "efficientnetv2_s"),
        ("tf_efficientnetv2_s.in21k_ft_in1k", "efficientnetv2_s.in21k_ft_in1k"),
        ("tf_efficientnetv2_s.in1kk", "efficientnetv2_s"),
        ("efficientnet_v2_m", "efficientnetv2_m"),
        ("EfficientNetV2B3", "efficientnetv2_b3"),
        ("efficientnetb4", "efficientnet_b4"),
    ],
)
def test_ours_by_the_names_of_others(word, meant):
    with pytest.raises(InputError, match=mentioning(word, "did you mean", meant)):
        create(word)


@pytest.mark.parametrize(
    ("word", "there"),
    [
        ("resnet18", ["timm:resnet18", "torchvision:resnet18"]),
        ("squeezenet1_0", ["torchvision:squeezenet1_0"]),
        ("resnet18.a1_in1k", ["timm:resnet18.a1_in1k"]),
        ("resnet18.IMAGENET1K_V1", ["torchvision:resnet18.IMAGENET1K_V1"]),
        ("resnet18.no_such_tag", ["timm:resnet18", "torchvision:resnet18"]),
        ("efficientnetv2_rw_s", ["timm:efficientnetv2_rw_s"]),
    ],
)
def test_networks_that_others_have(word, there):
    pytest.importorskip("timm")
    with pytest.raises(InputError) as error:
        create(word)
    assert mentions(str(error.value), " or ".join(map(repr, there)))


def test_without_timm_torchvision_is_named(monkeypatch):
    monkeypatch.setattr(factory, "import_optional", absent)
    with pytest.raises(InputError, match=mentioning("torchvision:resnet18")):
        create("resnet18")


def test_a_word_that_nobody_has():
    with pytest.raises(InputError, match=mentioning("banana", "timm:NAME")):
        create("banana")
    with pytest.raises(InputError, match=mentioning("did you mean", "efficientnetv2_xl")):
        create("efficientnetv2_x")


def test_a_library_that_cannot_be_imported_is_passed_over(monkeypatch):
    """It is only one of the places to look; the word is as unknown without it."""
    monkeypatch.setattr(factory, "import_torchvision", absent)
    assert mentions(str(factory.unknown_model_error("efficientnetv2_sx")), "did you mean", "efficientnetv2_s")
    assert "torchvision:" not in str(factory.unknown_model_error("efficientnet_v2_s"))
