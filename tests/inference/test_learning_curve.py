"""The learning curve of the probe, on embeddings with a known true gain."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import f1_score
from tests.messages import mentions

from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.report_sections import label_efficiency_verdict, learning_curve_section
from efficientnetv2.inference import learning_curve as label_curve_module
from efficientnetv2.inference.learning_curve import (
    LearningCurve,
    LearningCurvePoint,
    _carried,
    _macro_f1,
    learning_curve,
)
from efficientnetv2.inference.linear_probe import fit_classifier
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.inference.probe_splits import GroupedData
from efficientnetv2.utils.random_key import Key

FIT = partial(fit_classifier, strength=0.01, balanced=False)


def section_of(curve):
    """The section of a report."""
    section = learning_curve_section(curve)
    return render(section.template, part=section)


def embeddings(generator, count, *, apart=0.6, width=60):
    """Three classes with normal noise of standard deviation 1 around their centers."""
    centers = np.random.default_rng(99).normal(size=(3, width)) * apart / 3
    labels = np.arange(count) % 3
    vectors = (centers[labels] + generator.normal(size=(count, width))).astype(np.float32)
    return Embeddings(np.arange(count), labels, vectors)


def curve(seed, *, train=240, labeled=None, apart=0.6, val=300):
    """The curve, the macro-F1 of a probe of ``train`` images, and that of a probe of twice ``labeled`` images."""
    generator, labeled = np.random.default_rng(seed), labeled or train
    every, evaluated = embeddings(generator, 2 * labeled, apart=apart), embeddings(generator, val, apart=apart)
    learn = Embeddings(every.samples[:train], every.labels[:train], every.vectors[:train])
    predicted = fit_classifier(learn.vectors, learn.labels, 0.01, False).predict(evaluated.vectors)
    found = learning_curve(learn, evaluated, predicted, fit=FIT, num_labeled=labeled, key=Key.of(seed))
    twice = fit_classifier(every.vectors, every.labels, 0.01, False).predict(evaluated.vectors)
    return (
        found,
        f1_score(evaluated.labels, predicted, average="macro"),
        f1_score(evaluated.labels, twice, average="macro"),
    )


def test_last_point_is_the_probe_and_the_interval_contains_twice_the_images():
    """Twelve datasets. The probe is also fitted to the twice as many images of the forecast."""
    inside, gains = 0, []
    for seed in range(12):
        found, whole, twice = curve(seed)
        assert found.points[-1].macro_f1 == pytest.approx(whole)
        assert [one.num_images for one in found.points] == [15, 30, 60, 120, 240]
        inside += found.forecast.low <= twice <= found.forecast.high
        gains.append((found.gain, twice - whole))
    assert inside >= 10, inside
    forecast, real = np.mean(gains, axis=0)
    assert forecast == pytest.approx(real, abs=0.02)
    assert real > 0.02


def test_verdict_without_and_with_a_gain_from_more_labels():
    found, whole, _ = curve(0, apart=6.0)
    assert whole > 0.99
    assert label_efficiency_verdict(found)[0] == "Little."
    found, _, _ = curve(0)
    verdict, text = label_efficiency_verdict(found)
    assert verdict == ("Probably." if found.gain_low > 0.005 else "Perhaps.")
    assert mentions(text, "120")
    assert "with 240" in text
    assert "sample" not in text
    assert "the last of all training images" in section_of(found)


@pytest.mark.parametrize("carried", [None, LearningCurvePoint(960, 0.41, 0.3, 0.5, 5)])
def test_falling_curve_forecasts_no_loss(carried):
    """53.7 % with 48 images, 46.5 % with 96: the effect of more labels is not known."""
    points = (LearningCurvePoint(48, 0.537, 0.4, 0.66, 5), LearningCurvePoint(96, 0.465, 0.33, 0.6, 1))
    found = LearningCurve(points, LearningCurvePoint(192, 0.431, 0.2, 0.6, 1), -0.034, -0.12, 0.06, carried)
    verdict, text = label_efficiency_verdict(found)
    assert verdict == "Not known."
    assert mentions(" ".join(text.split()), "53.7", "48", "46.5", "96")
    assert "192" not in text
    assert label_efficiency_verdict(replace(found, gain=0.001))[0] == "Perhaps."
    assert label_efficiency_verdict(replace(found, gain_high=0.01))[0] == "Little."


def test_interval_of_a_sample_contains_twice_the_labeled_images():
    """240 of 1,920 are measured: 3,840 are four doublings away, where a power law alone overestimates."""
    inside = 0
    for seed in range(8):
        found, whole, twice = curve(seed, labeled=1920)
        assert found.points[-1].num_images == 240
        assert found.points[-1].macro_f1 == pytest.approx(whole)
        assert (found.carried.num_images, found.forecast.num_images) == (1920, 3840)
        inside += found.forecast.low <= twice <= found.forecast.high
    assert inside >= 7, inside


def test_forecast_from_a_sample_names_the_sample_and_is_uncertain():
    found, _, _ = curve(0, labeled=1920)
    verdict, text = label_efficiency_verdict(found)
    assert verdict == "Perhaps."
    assert found.gain_low == 0
    assert mentions(text, "240", "1,920")
    assert mentions(text, "1,920")
    assert mentions(text, "3,840")
    assert f"{100 * found.gain:+.1f} points (+0.0 to {100 * found.gain_high:+.1f})" in text
    assert "whole sample of 240" in section_of(found)


@pytest.mark.parametrize("made", [True, False])
def test_copies_do_not_count_as_more_labels(made):
    """Each image three times, as copies or at one location. No group is in both parts of a split."""
    generator = np.random.default_rng(0)
    one, evaluated = embeddings(generator, 240), embeddings(generator, 300)
    vectors = np.tile(one.vectors, (3, 1)) + 0.1 * generator.normal(size=(720, 60)).astype(np.float32)
    train = Embeddings(np.arange(720), np.tile(one.labels, 3), vectors)
    number = np.tile(np.arange(240), 3)
    family = number if made else np.arange(720)
    together = GroupedData(number, family, made & (np.arange(720) >= 240))
    predicted = fit_classifier(vectors, train.labels, 0.01, False).predict(evaluated.vectors)
    of = 240 if made else 720
    found = learning_curve(train, evaluated, predicted, fit=FIT, num_labeled=of, key=Key.of(0), groups=together)
    assert [one.num_images for one in found.points] == pytest.approx([of / 16, of / 8, of / 4, of / 2, of], abs=3)
    assert found.points[-1].num_images == of
    assert found.carried is None
    for learnt, rest in together.draw_splits(train.labels, key=Key.of(1), draws=3, train_size=of // 4):
        assert not set(number[learnt]) & set(number[rest])
        assert len(learnt) == pytest.approx(180, abs=6)


def test_power_law_is_extrapolated():
    """Errors 0.8 n^-0.5 become 0.8 (2n)^-0.5 with twice the images, by both fits."""
    sizes = np.array([25.0, 50.0, 100.0, 200.0])
    scores = (1 - 0.8 * sizes**-0.5)[:, None]
    assert _carried(scores, sizes, 200, 400) == pytest.approx(1 - 0.8 * 400.0**-0.5)


def test_power_law_of_a_sample_is_extrapolated_at_three_rates():
    """200 of 800: 1,600 are three doublings away. A rise of the error may be chance and is not extrapolated."""
    sizes = np.array([25.0, 50.0, 100.0, 200.0])
    scores = (1 - 0.8 * sizes**-0.5)[:, None]
    expected = [1 - 0.8 * 200**-0.5 * 8**-rate for rate in (0.5, 0.5, 0.25, 0.25, 0, 0)]
    assert _carried(scores, sizes, 800, 1600)[:, 0] == pytest.approx(expected)
    assert _carried(scores[::-1], sizes, 800, 1600) == pytest.approx(scores[0, 0])


def test_weighted_macro_f1_equals_repeated_images():
    generator = np.random.default_rng(0)
    true, predicted = generator.integers(0, 3, (2, 40))
    times = generator.integers(0, 3, 40)
    expected = f1_score(np.repeat(true, times), np.repeat(predicted, times), average="macro")
    assert _macro_f1(times[None].astype(float), true, predicted, 3) == pytest.approx(expected)


def test_few_images_give_no_curve_and_equal_keys_equal_curves():
    assert curve(0, train=30)[0] is None
    assert curve(1)[0] == curve(1)[0]


def test_sizes_without_the_rare_class_are_omitted(monkeypatch):
    """7 of 2,000 images: a sixteenth has 0.44 of them (rounds to 0), an eighth has 0.9 (rounds to 1)."""
    generator = np.random.default_rng(0)
    labels = (np.arange(2000) >= 1993).astype(np.int64)
    vectors = (generator.normal(size=(2000, 4)) + 3 * labels[:, None]).astype(np.float32)
    train = Embeddings(np.arange(2000), labels, vectors)
    predicted = fit_classifier(vectors, labels, 0.01, False).predict(vectors)

    def found():
        return learning_curve(train, train, predicted, fit=FIT, num_labeled=2000, key=Key.of(0))

    assert [one.num_images for one in found().points] == [250, 500, 1000, 2000]
    monkeypatch.setattr(label_curve_module, "MOST_WORK", 2e6)  # of a sixteenth and an eighth
    assert found() is None
