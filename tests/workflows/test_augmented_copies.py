"""Augmented copies as files: equal to training augmentation, and in the split of their source."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import COLORS, paint
from tests.data.test_splits import dataset
from tests.log_lines import logged_lines
from tests.messages import mentioning

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.folds import assign_folds, time_folds
from efficientnetv2.data.records import AUGMENTED_FROM, copy_groups, is_copy, validate_copies
from efficientnetv2.data.sampler import target_counts
from efficientnetv2.data.splits import with_holdout, with_minival
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.transforms import pipeline
from efficientnetv2.transforms.pipeline import AugmentPlan, augment_images
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows import data
from efficientnetv2.workflows.data import augmented_copies_of, spread_copies, write_copies

KEY = Key.of(0)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.sampled_from(["sqrt", "effective", "equal"]))
def test_copies_bring_each_class_to_its_target_count(counts, class_sampling):
    wanted = target_counts(counts, class_sampling)
    labels = np.repeat(np.arange(len(counts)), counts)
    copies = spread_copies(labels, wanted, key=KEY)
    assert [(1 + copies[labels == k]).sum() for k in range(len(counts))] == wanted.tolist()
    for label in range(len(counts)):
        mine = copies[labels == label]
        assert mine.min() >= 0
        assert mine.max() - mine.min() <= 1


def test_target_counts_by_hand():
    """100, 25 and 4 become 100 each, or 100, 50 and 20. With fewer=True: 4 each, or 20, 10 and 4."""
    assert target_counts([100, 25, 4], "equal").tolist() == [100, 100, 100]
    assert target_counts([100, 25, 4], "sqrt").tolist() == [100, 50, 20]
    assert target_counts([100, 25, 4], "equal", fewer=True).tolist() == [4, 4, 4]
    assert target_counts([100, 25, 4], "sqrt", fewer=True).tolist() == [20, 10, 4]
    assert target_counts([100, 0, 4], "equal").tolist() == [100, 0, 100]


def test_copies_equal_training_augmentation():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    setting, plan = (StepSettings(40, randaugment=5), AugmentPlan(flip="d4", randaugment_preset="monotone"))
    made = list(augmented_copies_of(image, row=7, count=3, setting=setting, plan=plan, key=KEY))
    for turn in range(3):
        trained = augment_images(torch.from_numpy(image).permute(2, 0, 1)[None], setting, KEY, [(turn << 32) | 7], plan)
        assert (trained[0].permute(1, 2, 0).numpy() == made[turn]).all()
    assert len({copy.tobytes() for copy in made}) == 3


def test_copies_in_portions_equal_copies_at_once(monkeypatch):
    """All copies of a large photo at once would not fit into memory."""
    image = np.random.default_rng(1).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    setting = StepSettings(40, randaugment=5, cutout=0.3)

    def made():
        return list(augmented_copies_of(image, row=7, count=12, setting=setting, plan=AugmentPlan(color=0.3), key=KEY))

    batches = []

    def spy(images, *words):
        batches.append(len(images))
        return augment_images(images, *words)

    monkeypatch.setattr(data, "augment_images", spy)
    together = made()
    monkeypatch.setattr(pipeline, "_PORTION_BYTES", 5 * image.nbytes + 1)
    apart = made()
    monkeypatch.setattr(pipeline, "_PORTION_BYTES", image.nbytes - 1)  # smaller than one copy
    alone = made()
    assert batches == [12, 5, 5, 2, *[1] * 12]
    np.testing.assert_array_equal(apart, together)
    np.testing.assert_array_equal(alone, together)


def test_written_files_and_rows(tmp_path):
    for number in range(3):
        paint(tmp_path / f"red/{number}.jpg", COLORS["red"], number)
        paint(tmp_path / f"blue/{number}.jpg", COLORS["blue"], number)
    data = load_dataset(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    copies = np.array([0, 2, 0, 0, 0, 1])
    plan = AugmentPlan(flip="none")
    made = write_copies(data, copies, out, setting=StepSettings(48), plan=plan, key=KEY)
    assert made[AUGMENTED_FROM].tolist() == [data.paths[1], data.paths[1], data.paths[5]]
    assert made["label"].tolist() == ["blue", "blue", "red"]
    assert sorted(made["path"]) == sorted(str(path.relative_to(out)) for path in out.rglob("*.jpg"))
    # Copies without augmentation look like their source, except for the JPEG compression.
    for path, origin in zip(made["path"], made[AUGMENTED_FROM], strict=True):
        levels = [np.asarray(Image.open(file), dtype=float) for file in (out / path, tmp_path / origin)]
        assert np.abs(levels[0] - levels[1]).mean() < 3


@st.composite
def sets_with_copies(draw):
    """Images of some classes, groups and locations, some of them copies of others."""
    count = draw(st.integers(12, 60))
    labels = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    origin = draw(st.lists(st.none() | st.integers(0, count - 1), min_size=count, max_size=count))
    own = [row for row in range(count) if origin[row] is None]
    chosen = [one if one is None or one in own else None for one in origin]
    labels = [label if one is None else labels[one] for label, one in zip(labels, chosen, strict=True)]
    labels = pd.factorize(np.array(labels), sort=True)[0]
    columns = {AUGMENTED_FROM: [np.nan if one is None else f"{one}.jpg" for one in chosen]}
    if draw(st.booleans()):
        columns["group"] = [f"g{g}" for g in draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))]
    if draw(st.booleans()):
        degrees = st.lists(st.integers(-50, 50), min_size=count, max_size=count)
        columns["latitude"], columns["longitude"] = draw(degrees), draw(degrees)
    columns["year"] = draw(st.lists(st.integers(2000, 2010), min_size=count, max_size=count))
    return dataset(labels, **columns)


@given(sets_with_copies(), st.integers(0, 3), st.sampled_from(["auto", "class"]))
def test_copies_stay_in_the_split_of_their_source(data, seed, by):
    """In hold-out, minival, folds and time folds."""
    family = copy_groups(data) if is_copy(data).any() else np.arange(len(data))

    def whole(split) -> bool:
        return bool(pd.Series(split).groupby(family).nunique().max() == 1)

    try:
        held, _ = with_holdout(data, seed=seed, by=by)
        assert whole(held.split)
        validate_copies(held)
        assert whole(with_minival(held, size=0.3)[0].split)
    except InputError:
        pass  # a class of one image and its copies
    for dealing in (lambda: assign_folds(data, k=3, seed=seed, by=by), lambda: time_folds(data, k=2, column="year")):
        try:
            dealt = dealing()
        except InputError:
            continue
        for part in dealt.parts:
            assert not set(family[part.train_rows]) & set(family[part.val_rows])
            assert not is_copy(data)[part.val_rows].any()


def test_copy_needs_the_label_of_its_original():
    data = dataset([0, 1, 0, 1, 0, 0], **{AUGMENTED_FROM: [np.nan] * 5 + ["1.jpg"]})
    with pytest.raises(InputError, match=mentioning("row 7", "5.jpg", "labels")):
        validate_copies(data)


@pytest.mark.parametrize(("origin", "is_named"), [("photos/1.jpg", True), ("1.jpg", False)])
def test_copies_without_any_original_are_named(origin, is_named):
    lines = logged_lines()
    validate_copies(dataset([0, 1, 0, 1, 0, 1], **{AUGMENTED_FROM: [np.nan] * 5 + [origin]}))
    assert any(AUGMENTED_FROM in line for line in lines) == is_named


def test_given_split_that_separates_a_copy_from_its_source_is_rejected():
    split = ["train"] * 4 + ["val"] * 2
    data = dataset([0, 1, 0, 1, 0, 1], split=split, **{AUGMENTED_FROM: [np.nan] * 5 + ["1.jpg"]})
    with pytest.raises(InputError, match=mentioning("all.csv", "7", "5.jpg", "val", "1.jpg")):
        validate_copies(data)
