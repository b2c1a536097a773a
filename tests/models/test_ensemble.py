"""Ensembles: the mean of the probabilities of several models, from a folder or from objects."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.messages import mentioning

from efficientnetv2 import create
from efficientnetv2.models import model_file
from efficientnetv2.models.adapt import freeze, layer_groups
from efficientnetv2.models.ensemble import Ensemble, write_members
from efficientnetv2.models.provenance import TrainingFingerprint
from efficientnetv2.preprocessing import Bands
from efficientnetv2.utils.errors import InputError


def members(count: int = 2):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = create("efficientnetv2_b0", num_classes=3)
        network.class_names = ("a", "b", "c")
        network.preprocessing = replace(network.preprocessing, image_size=32)
        network.trained_on = TrainingFingerprint(3, np.array([seed, seed + 1, 10]))
        made.append(network.eval())
    return made


def test_folder_of_model_files_predicts_the_mean(tmp_path):
    made = members()
    for number, network in enumerate(made):
        model_file.save(tmp_path / f"{number}.safetensors", network)
    write_members(tmp_path, ["0.safetensors", "1.safetensors"])
    together = model_file.load(tmp_path)
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected = torch.stack([network(images).softmax(dim=1) for network in made]).mean(dim=0)
        assert torch.allclose(together(images).softmax(dim=1), expected, atol=1e-6)
        assert together.embed(images).shape == (4, together.embed_dim)
        assert [one.shape[-1] for one in together.features(images)] == [16, 8, 4, 2, 1]
    assert (together.class_names, together.preprocessing.image_size) == (("a", "b", "c"), 32)
    # Training images of any member count as seen: 0, 1, 10 and 1, 2, 10.
    assert together.trained_on is not None
    assert (together.trained_on.num_images, together.trained_on.hashes.tolist()) == (4, [0, 1, 2, 10])


def test_ensemble_of_sigmoid_models_predicts_the_mean_per_class(tmp_path):
    made = members()
    for network in made:
        network.activation = "sigmoid"
    together, images = Ensemble(made), torch.randn(4, 3, 32, 32)
    assert together.activation == "sigmoid"
    with torch.inference_mode():
        expected = torch.stack([network(images).sigmoid() for network in made]).mean(dim=0)
        assert torch.allclose(together(images).sigmoid(), expected, atol=1e-6)
        assert not torch.allclose(expected.sum(dim=1), torch.ones(4))


def test_models_that_do_not_match_are_rejected():
    one, other = members()
    other.activation = "sigmoid"
    with pytest.raises(InputError, match=mentioning("1", "ensemble")):
        Ensemble([one, other])
    one, other = members()
    other.class_names = ("a", "b", "z")
    with pytest.raises(InputError, match=mentioning("1", "ensemble")):
        Ensemble([one, other])
    one, other = members()
    other.preprocessing = replace(other.preprocessing, image_size=64)
    with pytest.raises(InputError, match=mentioning("image_size", "64", "32")):
        Ensemble([one, other])
    for network, high in ((one, 3000.0), (other, 3010.0)):
        bands = Bands((4, 3, 2), high=(high,) * 3)
        network.preprocessing = replace(network.preprocessing, image_size=32, std=(high / 1e5,) * 3, bands=bands)
    with pytest.raises(InputError, match=mentioning("band", "training")):
        Ensemble([one, other])


def test_folder_of_runs_is_rejected_with_their_names(tmp_path):
    (tmp_path / "folds/fold1").mkdir(parents=True)
    (tmp_path / "folds/fold1" / model_file.NAME).touch()
    with pytest.raises(InputError, match=mentioning("model.safetensors", "folds/fold1")):
        model_file.load(tmp_path / "folds")


def test_training_images_are_unknown_if_those_of_a_member_are():
    one, other = members()
    other.trained_on = None
    assert Ensemble([one, other]).trained_on is None


def test_damaged_list_of_members_is_rejected(tmp_path):
    (tmp_path / "ensemble.json").write_text('{"member": []}')
    with pytest.raises(InputError, match=mentioning("ensemble.json")):
        model_file.load(tmp_path)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (["."], r"member '\.' is not a file in it"),
        (["inner"], r"member 'inner' is not a file in it"),
        (["../other.safetensors"], r"member '\.\./other\.safetensors' is not a file in it"),
        (["/elsewhere/other.safetensors"], "member '/elsewhere/other.safetensors' is not a file in it"),
        (["C:\\other.safetensors"], "is not a file in it"),
        ("0.safetensors", "not a list of names"),
        ([], "not a list of names"),
        ([3], "not a list of names"),
    ],
)
def test_member_that_is_not_a_file_in_the_folder_is_rejected(listed, said, tmp_path):
    """The folder may be from another person. A folder that lists itself would recurse."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": listed}))
    with pytest.raises(InputError, match=rf"ensemble\.json is not a list of model files: .*{said}"):
        model_file.load(tmp_path)


def test_custom_module_is_rejected_for_an_ensemble(tmp_path):
    model_file.save(tmp_path / "0.safetensors", members(1)[0])
    write_members(tmp_path, ["0.safetensors"])
    with pytest.raises(InputError, match=mentioning("1", "module")):
        model_file.load(tmp_path, network=members(1)[0])


def test_training_images_are_incomplete_if_members_store_a_part(tmp_path):
    """Four of eight each, with three different ones: at most seven of ten images are known."""
    one, other = members()
    one.trained_on = TrainingFingerprint(8, np.array([0, 1, 2, 3]))
    other.trained_on = TrainingFingerprint(8, np.array([1, 4, 5, 6]))
    known = Ensemble([one, other]).trained_on
    assert len(known.hashes) == 7
    assert known.stored_fraction < 1
    assert known.of_several
    assert not Ensemble([one]).trained_on.of_several


def test_selection_images_of_members_are_those_of_the_ensemble():
    one, other = members()
    one.trained_on = TrainingFingerprint(2, np.array([0, 1]), selection=TrainingFingerprint(1, np.array([7])))
    other.trained_on = TrainingFingerprint(2, np.array([2, 3]), selection=TrainingFingerprint(2, np.array([7, 8])))
    known = Ensemble([one, other]).trained_on
    assert known.selection.hashes.tolist() == [7, 8]
    assert known.complete
    other.trained_on = TrainingFingerprint(2, np.array([2, 3]), selection=TrainingFingerprint(9, np.array([7, 8])))
    assert not Ensemble([one, other]).trained_on.complete
    other.trained_on = TrainingFingerprint(2, np.array([2, 3]))
    assert Ensemble([one, other]).trained_on.selection.hashes.tolist() == [7]


def test_functions_for_one_model_reject_an_ensemble(tmp_path):
    """A saved file could not be loaded, and would lose the temperatures."""
    for number, network in enumerate(members()):
        model_file.save(tmp_path / f"{number}.safetensors", network)
    write_members(tmp_path, ["0.safetensors", "1.safetensors"])
    together = create(tmp_path)
    assert isinstance(together, Ensemble)
    one = tmp_path / "one.safetensors"
    told = r"ensemble of 2 models.*network\.members\[0\]"
    for refused in (
        lambda: model_file.save(one, together),
        lambda: create(tmp_path, num_classes=5),
        lambda: create(tmp_path, in_channels=4),
        lambda: create(tmp_path, features_only=True),
        lambda: freeze(together, stages=1),
        lambda: freeze(together, stages="all"),
        lambda: layer_groups(together),
    ):
        with pytest.raises(InputError, match=told):
            refused()
    assert not one.exists()
    model_file.save(one, together.members[0])


def test_training_images_of_initial_weights_are_included():
    one, other = members()
    one.trained_on = one.trained_on.started_from(TrainingFingerprint(2, np.array([7, 8])), most=100)
    known = Ensemble([one, other]).trained_on
    assert (known.num_images, known.hashes.tolist(), known.earlier) == (6, [0, 1, 2, 7, 8, 10], None)
