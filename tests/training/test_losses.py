"""Losses and per-class terms for rare classes, compared with formulas and PyTorch."""

from __future__ import annotations

import math
from dataclasses import astuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tests.command_line import TINY, effnetv2
from tests.conftest import paint
from tests.messages import mentioning
from tests.recipes import with_overrides
from torch.nn import functional

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.training.losses import NO_CLASS_TERMS, ClassTerms, binary_cross_entropy, class_terms, cross_entropy
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import train_sampler
from efficientnetv2.transforms.pipeline import AugmentPlan, augment_images, multi_hot
from efficientnetv2.utils.distributed import SINGLE_PROCESS
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def recipe(*settings: str):
    return with_overrides(get_recipe("finetune"), ["class_sampling=null", *settings])


def test_classes_are_equal_by_default():
    assert astuple(class_terms(LABELS, 3, recipe())) == astuple(NO_CLASS_TERMS) == (None,) * 4


def test_effective_class_weights_have_the_ratios_of_the_paper_and_mean_1():
    """(1 - beta) / (1 - beta^n), with mean 1 over the sampled images."""
    beta = 0.99
    weights = class_terms(LABELS, 3, recipe("class_weights=effective", f"effective_beta={beta}")).weights
    paper = np.array([(1 - beta) / (1 - beta**n) for n in (60, 30, 10)])
    assert (weights / weights[0]).tolist() == pytest.approx(paper / paper[0])
    assert float(weights[LABELS].mean()) == pytest.approx(1)
    even = class_terms(LABELS, 3, recipe("class_weights=equal", "class_sampling=equal")).weights
    assert float(even.mean()) == pytest.approx(1)  # balanced sampling: the mean over classes is the mean over images


def test_beta_of_the_recipe_reaches_the_sampler(class_folders):
    setup = SimpleNamespace(
        recipe=recipe("class_sampling=effective", "effective_beta=0.9"),
        train=load_dataset(class_folders),
        key=Key.of(0),
        world=SINGLE_PROCESS,
    )
    assert train_sampler(setup, steps=4).beta == 0.9


def test_weighted_loss_equals_pytorch_for_hard_labels():
    logits, labels = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 0, 1, 0, 2])
    weights = torch.tensor([0.5, 1.0, 3.0])
    expected = (torch.nn.functional.cross_entropy(logits, labels, reduction="none") * weights[labels]).mean()
    targets = ClassTerms(weights=weights).targets(multi_hot(labels, 3), 0.0)
    assert float(cross_entropy(logits, targets)) == pytest.approx(float(expected))
    # With label smoothing, PyTorch also weights the smoothed part by the label's class.
    smoothed = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    targets = ClassTerms(weights=weights).targets(multi_hot(labels, 3), 0.1)
    assert float(cross_entropy(logits, targets)) == pytest.approx(float((smoothed * weights[labels]).mean()))


def test_mixed_image_has_the_weights_of_both_classes():
    weights = torch.tensor([0.5, 1.0, 3.0])
    targets = ClassTerms(weights=weights).targets(torch.tensor([[0.75, 0.0, 0.25]]), 0.0)
    assert targets.tolist() == [[0.375, 0.0, 0.75]]


@pytest.mark.parametrize("word", ["class_weights=equal", "logit_adjustment=1", "logit_adjustment=2"])
@pytest.mark.parametrize("classes", [2, 10])
def test_label_smoothing_never_favors_rare_classes(word, classes):
    """Minimum of the loss for separable classes, 200 to 1, with the label smoothing of ``finetune``."""
    labels = np.repeat(np.arange(classes), [200] + [1] * (classes - 1))
    terms = class_terms(labels, classes, recipe(word))
    targets = terms.targets(multi_hot(torch.arange(classes), classes), 0.1)
    # One row for the images of each class: at the minimum of the loss the adjusted prediction is the target.
    offsets = torch.zeros(classes) if terms.offsets is None else terms.offsets
    logits = (targets.log() - offsets).requires_grad_()
    cross_entropy(logits, targets, offsets=terms.offsets).backward()
    assert logits.grad.abs().max() < 1e-6
    assert logits.argmax(dim=1).tolist() == list(range(classes))
    # The other classes have equal logits.
    others = logits.detach().masked_fill(torch.eye(classes, dtype=torch.bool), float("nan"))
    for row in others:
        rest = row[~row.isnan()]
        assert float(rest.max() - rest.min()) < 1e-4


def test_logit_adjustment_learns_the_boundary_of_balanced_data():
    """Two overlapping classes, 9 to 1: trained with the offsets, the boundary without offsets is in the middle."""
    drawn = np.random.default_rng(0)
    labels = np.repeat([0, 1], [1800, 200])
    x = drawn.normal(labels * 2.0 - 1.0, 1.0)  # equally likely at 0
    terms = class_terms(labels, 2, recipe("logit_adjustment=1"))
    assert terms.offsets.exp().tolist() == pytest.approx([0.9, 0.1])

    def boundary(offsets):
        layer = torch.nn.Linear(1, 2).double()
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")
        inputs = torch.from_numpy(x)[:, None]
        hot = torch.nn.functional.one_hot(torch.from_numpy(labels), 2).float()

        def closure():
            optimizer.zero_grad()
            loss = cross_entropy(layer(inputs), hot, offsets=offsets)
            loss.backward()
            return loss

        optimizer.step(closure)
        slope = (layer.weight[1] - layer.weight[0]).item()
        return -(layer.bias[1] - layer.bias[0]).item() / slope

    plain = LogisticRegression(C=1e6).fit(x[:, None], labels)
    assert boundary(None) == pytest.approx(-float(plain.intercept_[0] / plain.coef_[0, 0]), abs=0.02)
    assert boundary(None) > 0.8  # ln 9 / 2 = 1.1: the rare class is rarely predicted
    assert abs(boundary(terms.offsets)) < 0.15


def test_balanced_sampling_needs_no_logit_adjustment():
    offsets = class_terms(LABELS, 3, recipe("logit_adjustment=2", "class_sampling=equal")).offsets
    assert offsets.tolist() == pytest.approx([2 * np.log(1 / 3)] * 3)


def test_repeated_images_get_stronger_augmentation():
    """With 33 draws in an epoch of 100, images of classes of 30 and 10 repeat, those of a class of 60 do not."""
    words = ("class_sampling=equal", "minority_randaugment_scale=2", "progressive.randaugment=5")
    assert class_terms(LABELS, 3, recipe(*words)).stronger.tolist() == [1, 2, 2]
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    key, ids, plan = Key.of(0), np.arange(6), AugmentPlan(flip="none", randaugment_preset="monotone")
    factor = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    mixed = augment_images(images, StepSettings(32, randaugment=5), key, ids, plan, factor)
    for strength, rows in ((5, [0, 2, 4]), (10, [1, 3, 5])):
        alone = augment_images(images[rows], StepSettings(32, randaugment=strength), key, ids[rows], plan)
        assert torch.equal(mixed[rows], alone)


@pytest.mark.parametrize("class_sampling", ["sqrt", "effective", "equal"])
@pytest.mark.parametrize("classes", [3, 6, 7, 12, 100])
def test_equally_frequent_classes_get_equal_augmentation(classes, class_sampling):
    """Fractions that are computed in two ways differ by rounding."""
    words = recipe(f"class_sampling={class_sampling}", "minority_randaugment_scale=2", "progressive.randaugment=5")
    for each in (1, 7, 48, 500):
        counted = class_terms(np.repeat(np.arange(classes), each), classes, words)
        assert counted.stronger.tolist() == [1] * classes
    one_less = np.repeat(np.arange(3), [100_000, 100_000, 99_999])
    assert class_terms(one_less, 3, words).stronger.tolist() == [1, 1, 2 if class_sampling != "effective" else 1]


def test_minority_scale_without_effect_is_rejected():
    with pytest.raises(InputError, match=mentioning("minority_randaugment_scale", "2")):
        recipe("minority_randaugment_scale=2", "progressive.randaugment=5")
    with pytest.raises(InputError, match=mentioning("minority_randaugment_scale", "2", "progressive.randaugment")):
        recipe("minority_randaugment_scale=2", "class_sampling=equal")
    with pytest.raises(InputError, match="effective_beta"):
        recipe("effective_beta=1")


@pytest.mark.slow
def test_every_class_term_changes_the_predictions(class_folders, tmp_path):
    for path in sorted((class_folders / "red").glob("*"))[4:]:
        path.unlink()
    words = ("class_weights=effective", "logit_adjustment=1", "minority_randaugment_scale=2")
    answers = {}
    for name, settings in {"plain": (), **{word: (word,) for word in words}}.items():
        out = tmp_path / f"run{len(answers)}"
        given = [part for setting in (*settings, "class_sampling=sqrt") for part in ("--set", setting)]
        done = effnetv2(
            "train", class_folders, *TINY, "--recipe", "finetune", "--weights", "none", *given,
            "--set", "progressive.stages=1", "--set", "progressive.image_size=32", "--set", "progressive.randaugment=5",
            "--output", out, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answers[name] = (out / "predictions.csv").read_text()
    assert len(set(answers.values())) == 4


def test_multilabel_repetition_is_by_the_rarest_label():
    """B is the rare label. C is the only label of a few images, but is on most of the others too."""
    targets = np.repeat([[0, 2], [2, -1], [1, -1]], [100, 20, 5], axis=0)
    words = ("class_sampling=equal", "minority_randaugment_scale=2", "progressive.randaugment=5")
    assert class_terms(targets, 3, recipe(*words)).stronger.tolist() == [1, 2, 1]


def test_run_draws_images_by_how_many_have_each_label(tmp_path):
    """Not by how many have it as their rarest label."""
    for number in range(5):
        paint(tmp_path / f"{number}.png", (number, 90, 90), number, px=16)
    cells = "".join(f"{number}.png,{'dog;animal' if number < 3 else 'animal'}\n" for number in range(5))
    (tmp_path / "images.csv").write_text(f"path,label\n{cells}")
    train = load_dataset(tmp_path / "images.csv", label_separator=";")
    setup = SimpleNamespace(recipe=recipe("class_sampling=equal"), train=train, key=Key.of(0), world=SINGLE_PROCESS)
    sizes = train_sampler(setup, steps=4).sizes
    assert dict(zip(train.class_names, sizes.tolist(), strict=True)) == {"animal": 5, "dog": 3}


def test_multilabel_class_frequency_is_by_label_fraction():
    """Dog and animal, cat and animal, animal: "animal" has 1/2 + 1/2 + 1 of three images."""
    targets = np.array([[0, 2], [1, 2], [2, -1]])
    terms = class_terms(targets, 3, recipe("class_weights=equal", "logit_adjustment=1"))
    each = np.array([2, 2, 0.5])  # one over the frequency
    assert terms.weights.tolist() == pytest.approx(each / (each * [1 / 6, 1 / 6, 2 / 3]).sum(), rel=1e-6)
    assert terms.offsets.tolist() == pytest.approx(np.log([1 / 6, 1 / 6, 2 / 3]), rel=1e-6)
    # The image of "animal" alone is drawn a third as often: all three images have that label.
    balanced = class_terms(targets, 3, recipe("logit_adjustment=1", "class_sampling=equal"))
    assert balanced.offsets.tolist() == pytest.approx(np.log([3 / 14, 3 / 14, 8 / 14]), rel=1e-6)


def test_binary_cross_entropy_by_hand():
    """At logit 0 each class costs ln 2. At ln 3 (probability 3/4) a positive costs ln 4/3, a negative ln 4."""
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    targets = torch.tensor([[1.0, 1.0], [0.0, 0.5]])
    first, second = math.log(2) + math.log(4 / 3), math.log(4) + math.log(2)
    assert float(binary_cross_entropy(logits, targets)) == pytest.approx((first + second) / 2)


def test_binary_cross_entropy_is_that_of_pytorch_times_the_classes():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 5, generator=generator) * 9, torch.rand(7, 5, generator=generator)
    own = functional.binary_cross_entropy_with_logits(logits, targets)
    assert float(binary_cross_entropy(logits, targets)) == pytest.approx(5 * float(own))
    assert binary_cross_entropy(logits.bfloat16(), targets).dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 200])
def test_gradient_of_a_wrong_class_equals_cross_entropy_for_any_number_of_classes(classes):
    logits = torch.full((1, classes), -20.0)
    logits[0, 1] = 20.0  # confident in the second class, but the label is the first
    targets = functional.one_hot(torch.tensor([0]), classes).float()
    pulls = []
    for loss in (binary_cross_entropy, cross_entropy):
        there = logits.clone().requires_grad_()
        loss(there, targets).backward()
        pulls.append(there.grad[0, :2])
    torch.testing.assert_close(pulls[0], pulls[1])
    assert pulls[0].tolist() == pytest.approx([-1, 1])


def test_class_sampling_of_the_recipe_reaches_the_sampler(class_folders):
    """16, 16 and 4 images: of 36 draws each class has 12."""
    for path in sorted((class_folders / "blue").glob("*"))[4:]:
        path.unlink()
    train = load_dataset(class_folders)
    setup = SimpleNamespace(
        recipe=recipe("class_sampling=equal", "batch_size=6"), train=train, key=Key.of(0), world=SINGLE_PROCESS
    )
    drawn = np.concatenate([request.samples for request in train_sampler(setup, steps=6)])
    assert np.bincount(train.labels[drawn]).tolist() == [12, 12, 12]
