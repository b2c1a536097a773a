"""Detection of unknown images: they are flagged, and known images at the stated rate."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.inference.test_predictor import PREPROCESSING, tiny_network
from tests.messages import mentioning

from efficientnetv2.inference.predict import predict
from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file
from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.unknown import KEY, UnknownDetector
from efficientnetv2.utils.errors import InputError


def draw(count, seed, *, far=False):
    """Points around three directions of 40 dimensions, or around the opposite directions."""
    generator = torch.Generator().manual_seed(seed)
    centers = 4 * torch.eye(40)[torch.randint(0, 3, (count,), generator=generator)]
    return (-centers if far else centers) + torch.randn(count, 40, generator=generator) / 2


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_new_known_images_are_flagged_at_the_stated_rate(rate):
    flagged = []
    for seed in range(20):
        detector = UnknownDetector.fit(draw(200, seed), "val", false_alarm_rate=rate)
        flagged.append((detector.scores(draw(500, 100 + seed)) > detector.threshold).float().mean())
    assert float(torch.stack(flagged).mean()) == pytest.approx(rate, abs=0.02)


def in_groups(seed):
    """Four images of each of 50 patients, who differ more than the images of one."""
    generator = torch.Generator().manual_seed(seed)
    patients = torch.randn(50, 40, generator=generator).repeat_interleave(4, dim=0)
    return patients + torch.randn(200, 40, generator=generator) / 10


@pytest.mark.parametrize(("known", "low", "high"), [(True, 0.02, 0.08), (False, 0.9, 1.1)])
def test_images_of_new_groups_are_flagged_at_the_stated_rate(known, low, high):
    ids = torch.arange(50).repeat_interleave(4) if known else None
    flagged = []
    for seed in range(20):
        detector = UnknownDetector.fit(in_groups(seed), "val", groups=ids)
        flagged.append((detector.scores(in_groups(100 + seed)) > detector.threshold).float().mean())
    assert low < float(torch.stack(flagged).mean()) < high


@pytest.mark.parametrize("others_of_class", [0, 1])
@pytest.mark.parametrize(("named", "is_raised"), [(True, False), (False, True)])
def test_class_of_a_single_group_does_not_raise_the_threshold(named, is_raised, others_of_class):
    """Its images are far from all others here, but new images of the class will not be. Of one more group, too."""
    generator = torch.Generator().manual_seed(7)
    rare = torch.randn(20 + others_of_class, 41, generator=generator) / 100
    rare[:, 40] += 1  # a direction of its own
    others = torch.cat([in_groups(0), torch.zeros(200, 1)], dim=1)
    ids = torch.cat([torch.arange(50).repeat_interleave(4), torch.full((20,), 50), torch.full((others_of_class,), 51)])
    labels = torch.cat([torch.zeros(200), torch.ones(len(rare))]) if named else None
    without = UnknownDetector.fit(others, "val", groups=ids[:200])
    found = UnknownDetector.fit(torch.cat([others, rare]), "val", groups=ids, labels=labels)
    assert (found.threshold > without.threshold + 0.05) == is_raised
    assert len(found.bank) == 200 + len(rare), "they are neighbors of new images"


def test_a_single_image_of_a_class_counts():
    """With 49 of 50 images, there would be no detector."""
    labels = torch.cat([torch.zeros(49), torch.ones(1)])
    assert UnknownDetector.fit(draw(50, 0), "val", groups=torch.arange(50), labels=labels) is not None


def test_no_detector_is_fitted_on_a_single_group():
    assert UnknownDetector.fit(draw(60, 0), "val", groups=torch.zeros(60)) is None


def test_images_like_one_outlier_of_the_fitted_images_are_flagged():
    outlier = draw(1, 0, far=True)
    detector = UnknownDetector.fit(torch.cat([draw(200, 0), outlier]), "val")
    assert (detector.scores(outlier) > detector.threshold).all()


def test_far_images_are_flagged():
    detector = UnknownDetector.fit(draw(200, 0), "val")
    assert (detector.scores(draw(100, 1, far=True)) > detector.threshold).all()


def test_length_of_an_embedding_has_no_effect():
    detector, points = UnknownDetector.fit(draw(60, 0), "val"), draw(20, 1)
    torch.testing.assert_close(detector.scores(1000 * points), detector.scores(points))
    assert UnknownDetector.fit(3 * draw(60, 0), "val").threshold == pytest.approx(detector.threshold, abs=1e-5)
    assert detector.scores(torch.zeros(1, 40)).isfinite().all()


@pytest.fixture
def fitted():
    network = tiny_network()
    network.unknown = UnknownDetector.fit(Predictor(network).embed(list(images(60).numpy())), "val")
    return network


def images(count, seed=0):
    """Noisy images of one color each, (n, 16, 16, 3)."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randint(60, 200, (count, 1, 1, 3), generator=generator)
    return (colors + torch.randint(-20, 20, (count, 16, 16, 3), generator=generator)).to(torch.uint8)


def test_detector_is_saved_in_the_model_file(fitted, tmp_path):
    model_file.save(tmp_path / "m.safetensors", fitted)
    loaded = model_file.load(tmp_path / "m.safetensors")
    ours, theirs = fitted.unknown, loaded.unknown
    assert torch.equal(ours.bank, theirs.bank)
    assert (ours.threshold, ours.false_alarm_rate, ours.fitted_on) == (theirs.threshold, 0.05, "val")
    assert adapt(loaded, num_classes=5).unknown is None


def test_file_without_a_detector_loads_and_predicts(tmp_path):
    model_file.save(tmp_path / "m.safetensors", tiny_network())
    prediction = Predictor(tmp_path / "m.safetensors")(images(1).numpy())[0]
    assert prediction.unknown_score is prediction.is_unknown is None


@pytest.mark.parametrize("change", [('"num_images": 60', '"num_images": 59'), ('"bank"', '"other"'), ("{", "[")])
def test_damaged_detector_is_rejected(fitted, tmp_path, change):
    model_file.save(tmp_path / "m.safetensors", fitted)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "bad.safetensors", metadata | {KEY: metadata[KEY].replace(*change)})
    with pytest.raises(InputError, match=mentioning(KEY)):
        model_file.load(tmp_path / "bad.safetensors")


def test_predictor_scores_equal_those_of_its_embeddings(fitted):
    given = [*images(3, seed=1).numpy(), *torch.eye(16).mul(255).byte()[..., None].expand(1, 16, 16, 3).numpy()]
    predictor = Predictor(fitted, batch_size=3)
    predictions = predictor(given)
    assert [one.unknown_score for one in predictions] == pytest.approx(
        fitted.unknown.scores(predictor.embed(given)).tolist(), abs=1e-5
    )
    assert [one.is_unknown for one in predictions] == [
        one.unknown_score > fitted.unknown.threshold for one in predictions
    ]
    assert predictions[-1].unknown_score > max(one.unknown_score for one in predictions[:-1])


def test_score_does_not_depend_on_augmentation_and_changes_no_logits(fitted):
    batch = images(5).permute(0, 3, 1, 2)
    plain, views = (
        predict(fitted, [batch], preprocessing=replace(PREPROCESSING, tta=tta), unknown=True) for tta in ("none", "d4")
    )
    torch.testing.assert_close(plain[:, 3], views[:, 3])
    torch.testing.assert_close(plain[:, :3], predict(fitted, [batch], preprocessing=PREPROCESSING))
    assert plain.shape == (5, 4)
    assert not torch.allclose(plain[:, :3], views[:, :3])


def test_threads_that_share_a_model_get_their_own_scores(fitted):
    predictor, given = Predictor(fitted), list(images(40, seed=2).numpy())
    with ThreadPoolExecutor(4) as pool:
        found = [one.unknown_score for (one,) in pool.map(predictor, given)]
    assert found == pytest.approx([one.unknown_score for one in predictor(given)], abs=1e-5)
