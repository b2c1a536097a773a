import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.data.sampler import (
    TrainSampler,
    class_fractions,
    class_members,
    effective_number,
    epoch_order,
    image_weights,
)
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.utils.rng import Key

LABELS = np.array([0] * 30 + [1] * 10 + [2] * 4)
PLAN = ProgressiveSchedule(image_size=Ramp(32, 64), stages=2)


def sampler(**changes):
    base = {
        "labels": LABELS,
        "progressive": PLAN,
        "steps": 11,
        "batch_size": 8,
        "ghost_batch_size": 4,
        "class_sampling": None,
        "key": Key.of(1),
    }
    return TrainSampler(**(base | changes))


def rows(requests):
    return [(r.step, r.group, r.setting.image_size, r.samples.tolist(), r.turns.tolist()) for r in requests]


def test_an_epoch_sees_every_image_once_even_if_steps_straddle_it():
    """88 draws of 44 images are two passes, whatever the batch."""
    drawn = np.concatenate([r.samples for r in sampler()])
    epochs = np.concatenate([r.turns for r in sampler()])
    for epoch in (0, 1):
        assert sorted(drawn[epochs == epoch]) == list(range(44))


@given(first=st.integers(0, 10))
def test_a_sampler_that_begins_later_gives_the_rest_of_the_same_run(first):
    assert rows(sampler(first_step=first)) == rows(sampler())[2 * first :]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_groups_of_one_run(world):
    """With more groups than processes, each process takes every ``world``-th group."""
    four = {"ghost_batch_size": 2}
    parts = [rows(sampler(**four, rank=rank, world=world)) for rank in range(world)]
    together = sorted(row for part in parts for row in part)
    assert together == sorted(rows(sampler(**four)))
    assert [len(part) for part in parts] == [len(sampler(**four, rank=r, world=world)) for r in range(world)]
    for rank, part in enumerate(parts):
        assert {group for _, group, *_ in part} == set(range(rank, 4, world))


def test_the_setting_of_the_step_travels_with_the_request():
    for request in sampler():
        assert request.setting == PLAN.at(request.step, total_steps=11)


def test_equal_balance_draws_each_class_a_third_and_every_image_equally_often():
    """44 draws over 3 classes: 15, 15, 14 by largest remainder; over many epochs no image is preferred."""
    order, _ = epoch_order(LABELS, "equal", Key.of(0), 0)
    assert sorted(np.bincount(LABELS[order])) == [14, 15, 15]
    seen = np.bincount(
        np.concatenate([epoch_order(LABELS, "equal", Key.of(0), epoch)[0] for epoch in range(20)]),
        minlength=44,
    )
    for cls in range(3):
        counts = seen[cls == LABELS]
        assert counts.max() - counts.min() <= 1


def test_square_root_balance_follows_the_root_of_the_class_size():
    """Roots 5.477, 3.162, 2 of 10.64: 22.65, 13.08, 8.27 of 44, by largest remainder 23, 13, 8."""
    order, _ = epoch_order(LABELS, "sqrt", Key.of(0), 3)
    assert np.bincount(LABELS[order]).tolist() == [23, 13, 8]


def test_balanced_classes_are_dealt_evenly_over_the_epoch():
    labels = np.repeat([0, 1], [900, 100])
    order = labels[epoch_order(labels, "equal", Key.of(5), 0)[0]]
    halves = order.reshape(10, 100).mean(axis=1)  # each tenth of the epoch has about half of either
    assert np.abs(halves - 0.5).max() < 0.06


@given(epoch=st.integers(0, 2**20))
def test_order_depends_on_seed_and_epoch_alone(epoch):
    one, again = (epoch_order(LABELS, None, Key.of(4), epoch) for _ in range(2))
    assert (one == again).all()
    assert (one != epoch_order(LABELS, None, Key.of(4), epoch + 1)).any()
    assert (one != epoch_order(LABELS, None, Key.of(5), epoch)).any()


@pytest.mark.parametrize("class_sampling", [None, "sqrt", "equal"])
def test_no_two_draws_of_a_run_have_the_same_id(class_sampling):
    """A rare class's image that comes several times an epoch is cut and augmented anew each time."""
    ids = np.concatenate([r.ids for r in sampler(class_sampling=class_sampling, steps=60)])
    assert len(set(ids.tolist())) == len(ids)


@given(labels=st.lists(st.integers(0, 6), max_size=40))
def test_members_of_each_class_are_found_at_once(labels):
    found = class_members(np.array(labels, dtype=np.int64), 7)
    assert [one.tolist() for one in found] == [
        [place for place, label in enumerate(labels) if label == cls] for cls in range(7)
    ]


COUNTS = st.lists(st.integers(1, 5000), min_size=2, max_size=8).map(np.array)


def test_the_effective_number_by_hand():
    """With beta 0.9: 1, 1 + 0.9, 1 + 0.9 + 0.81, and towards 10."""
    assert effective_number([1, 2, 3, 10_000], 0.9) == pytest.approx([1, 1.9, 2.71, 10])


@given(COUNTS)
def test_between_one_image_a_class_and_all_of_them(counts):
    assert effective_number(counts, 0.0) == pytest.approx(np.ones(len(counts)))
    assert effective_number(counts, 1 - 1e-9) == pytest.approx(counts, rel=1e-4)
    assert class_fractions(counts, "effective", 0.0) == pytest.approx(class_fractions(counts, None))
    assert class_fractions(counts, "effective", 1 - 1e-9) == pytest.approx(
        class_fractions(counts, "equal"), rel=1e-4
    )


def test_shares_of_three_classes_by_hand():
    """30, 10 and 4: as they are; a third each; roots 5.477, 3.162, 2."""
    assert class_fractions([30, 10, 4], None) == pytest.approx([30 / 44, 10 / 44, 4 / 44])
    assert class_fractions([30, 10, 4], "equal") == pytest.approx([1 / 3] * 3)
    assert class_fractions([30, 10, 4], "sqrt") == pytest.approx([0.5148, 0.2972, 0.1880], abs=1e-4)


def test_a_class_without_images_has_no_share():
    assert class_fractions([8, 0, 8], "equal").tolist() == [0.5, 0, 0.5]
    assert image_weights([8, 0], "sqrt")[1] == 0


@given(COUNTS, st.sampled_from(["sqrt", "effective", "equal"]))
def test_rare_classes_come_forward_and_never_past_the_frequent_ones(counts, class_sampling):
    before, after = class_fractions(counts, None), class_fractions(counts, class_sampling)
    rarest, commonest = counts.argmin(), counts.argmax()
    assert after[rarest] >= before[rarest] - 1e-12
    assert after[rarest] <= after[commonest] + 1e-12


def test_an_epoch_draws_by_the_effective_number():
    labels = np.repeat([0, 1], [900, 100])
    drawn = np.bincount(labels[epoch_order(labels, "effective", Key.of(0), 0, beta=0.99)[0]])
    share = class_fractions([900, 100], "effective", 0.99)
    assert drawn.tolist() == np.round(1000 * share).astype(int).tolist()
    assert 100 < drawn[1] < 500
