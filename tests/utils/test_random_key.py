"""Random draws are functions of a key and an id, and are uniform and independent."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from efficientnetv2.utils.random_key import Key

IDS = st.lists(st.integers(0, 2**53), min_size=1, max_size=6)


@given(st.integers(), IDS, st.integers(1, 9))
def test_row_depends_only_on_the_key_and_its_id(seed, ids, columns):
    key = Key.of(seed)
    rows = key.uniform_rows(ids, columns)
    alone = np.concatenate([key.uniform_rows([one], columns) for one in ids])
    assert np.array_equal(rows, alone)


@given(st.integers(0, 2**53), st.integers(1, 12), st.integers(1, 12))
def test_fewer_columns_are_a_prefix_of_more_columns(identity, one, other):
    few, many = sorted((one, other))
    key = Key.of(3)
    assert np.array_equal(key.uniform_rows([identity], many)[:, :few], key.uniform_rows([identity], few))


def test_numbers_of_a_seed_never_change():
    """Golden values: a change here changes every recorded run."""
    assert Key.of(0).words == (5851806113140399004, 2874644161212480648)
    assert Key.of(0).uniform_rows([0, 1], 2) == pytest.approx(
        np.array([[0.28401392256621916, 0.7766463972165473], [0.23661255196465836, 0.19804518653890113]]), abs=1e-15
    )


def test_different_seeds_names_and_steps_have_different_keys():
    root = Key.of(0)
    keys = [root, Key.of(1), Key.of(-1), root.fold("crop"), root.fold("flip"), root.fold(0), root.fold(1),
            root.fold("0"), root.fold(0, 1), root.fold(1, 0), root.fold(0).fold(1)]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_generator_always_starts_at_the_beginning():
    key = Key.of(5)
    assert np.array_equal(key.generator().random(7), key.generator().random(7))
    assert not np.array_equal(key.generator().random(7), key.fold("other").generator().random(7))


def test_torch_seed_fits_into_63_bits():
    seeds = [Key.of(seed).torch_seed() for seed in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 200


@pytest.mark.parametrize("epoch", [0, 1, 300])
def test_rows_are_uniform(epoch):
    """Neighboring ids, as in an epoch. Each column by Kolmogorov-Smirnov."""
    rows = Key.of(11).uniform_rows(np.arange(4000) + epoch * 2**32, 5)
    assert rows.min() >= 0
    assert rows.max() < 1
    for column in rows.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3


def test_neighboring_ids_epochs_and_columns_are_independent():
    """Chi-square over an 8 x 8 table of pairs, for every pair of draws that could depend on each other."""
    key, ids = Key.of(2), np.arange(6400)
    rows = key.uniform_rows(ids, 5)
    next_epoch = key.uniform_rows(ids + 2**32, 1)[:, 0]
    other_key = key.fold("other").uniform_rows(ids, 1)[:, 0]
    pairs = [(rows[:-1, 0], rows[1:, 0]), (rows[:, 0], next_epoch), (rows[:, 0], other_key)]
    pairs += [(rows[:, a], rows[:, b]) for a, b in itertools.combinations(range(5), 2)]
    # The last column of a row and the first of the next row would be equal if counter blocks overlapped.
    pairs.append((rows[:-1, 4], rows[1:, 0]))
    for first, second in pairs:
        table = np.histogram2d(first, second, bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_wide_rows_do_not_overlap():
    """16 columns use four blocks of the counter, and all values differ."""
    rows = Key.of(4).uniform_rows(range(50), 16)
    assert len(np.unique(rows)) == rows.size
