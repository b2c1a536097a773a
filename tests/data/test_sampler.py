import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.data.sampler import TrainSampler, class_members, epoch_order
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
