"""Samplers: updates by hand, no repeated architectures, and equal results after stops or with several workers."""

import itertools
import math
from collections import Counter

import numpy as np
import optuna
import pytest
from optuna.samplers import NSGAIISampler, TPESampler
from optuna.trial import TrialState
from scipy import stats
from tests.messages import mentioning
from tests.nas.test_space import RICH, TINY

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.nas.samplers import (
    NAMES,
    PastTrial,
    PolicyGradient,
    RandomSearch,
    RegularizedEvolution,
    create_sampler,
    mutate,
    past_trials,
    sample_untried,
    suggest,
)
from efficientnetv2.nas.space import paper_space, small_space
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

SPACE = small_space()
OURS = {"policy": PolicyGradient(), "evolution": RegularizedEvolution(), "random": RandomSearch()}


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def synthetic_reward(point):
    """A synthetic reward, unknown to samplers: MBConv early, layers late, few parameters."""
    choices = SPACE.choices(point)
    liked = sum(choices[f"stage{number}.kind"] == "mbconv" for number in (2, 3))
    liked += choices["stage4.layers"] + choices["stage5.layers"] - (choices["stage6.expand"] == 1)
    parameters = count_flops(SPACE.decode(point), image_size=64, num_classes=10).total.parameters
    return (0.5 + 0.02 * liked) * (parameters / 200_000) ** -0.05


def searched(proposer, seed, trials):
    """The points and rewards of a search by one worker."""
    tried, key = [], Key.of(seed)
    for number in range(trials):
        point = proposer.propose(SPACE, tried, key.fold(number))
        tried.append(PastTrial(point, synthetic_reward(point)))
    return tried


def test_policy_update_by_hand():
    """Rewards 1 and 0, one standard deviation from their mean. Two options, learning rate 0.5.

    The first update changes each logit by 0.5 * (1 - 0.5) = 0.25: probabilities 1/(1 + e^-0.5) = 0.622459 and 0.377541.
    The second trial has the other options and changes logits by 0.5 * (1 - 0.377541) = 0.311230.
    """
    policy = PolicyGradient(learning_rate=0.5, warmup=2, entropy=0.0)
    tried = [PastTrial((0, 0, 0, 0, 0), 1.0), PastTrial((1, 1, 1, 1, 0), 0.0)]
    logits = policy.logits(TINY, tried)
    assert logits[:4].tolist() == pytest.approx(np.array([[0.56123, -0.56123]] * 4), abs=1e-5)
    # The last decision had the same option both times: +0.25, then -0.5 * 0.377541.
    assert logits[4].tolist() == pytest.approx([0.061230, -0.061230], abs=1e-5)


def test_policy_does_not_update_decisions_without_effect():
    """The second stage is removed: only its decision on removal is updated."""
    policy = PolicyGradient(warmup=2, entropy=0.0)
    logits = policy.logits(TINY, [PastTrial((0, 0, 0, 0, 1), 1.0), PastTrial((1, 0, 0, 0, 1), 0.0)])
    assert (logits[2:4] == 0).all()
    assert (logits[[0, 4]] != 0).all()


def test_equal_rewards_change_no_logits_and_missing_options_stay_impossible():
    policy = PolicyGradient(warmup=3)
    tried = [PastTrial(RICH.sample(Key.of(seed)), 0.5) for seed in range(20)]
    logits = policy.logits(RICH, tried)
    sizes = [len(decision.options) for decision in RICH.decisions]
    for row, size in zip(logits, sizes, strict=True):
        assert row[:size] == pytest.approx(0, abs=1e-12)
        assert (row[size:] == -np.inf).all()


def test_entropy_makes_probabilities_more_equal():
    """The third reward equals the baseline, so its update is that of entropy: the gradient by finite differences."""
    policy = PolicyGradient(warmup=2, entropy=0.1, learning_rate=1.0, baseline_decay=1.0)
    tried = [PastTrial((0, 0, 0, 0, 0), 1.0), PastTrial((0, 0, 0, 0, 1), 0.0), PastTrial((1, 1, 1, 1, 1), 0.5)]

    def entropy(logits):
        chances = np.exp(logits) / np.exp(logits).sum()
        return -(chances * np.log(chances)).sum()

    start = policy.logits(TINY, tried[:2])[4]
    shift = 1e-6 * np.eye(2)
    gradient = [(entropy(start + one) - entropy(start - one)) / 2e-6 for one in shift]
    assert abs(gradient[0]) > 0.01
    assert policy.logits(TINY, tried)[4] - start == pytest.approx(0.1 * np.array(gradient), abs=1e-7)


def test_parent_is_the_best_of_the_current_population():
    """The last 4 of 6 trials are the population and the tournament. The best trial is older."""
    evolution = RegularizedEvolution(population=4, tournament=4)
    points = [TINY.sample(Key.of(seed).fold("first")) for seed in range(6)]
    tried = [PastTrial(point, reward) for point, reward in zip(points, (9, 1, 2, 5, 3, 4), strict=True)]
    for seed in range(20):
        child = evolution.propose(TINY, tried, Key.of(seed))
        assert child in TINY.neighbors(points[3])


def test_small_tournament_allows_every_parent():
    evolution = RegularizedEvolution(population=4, tournament=1)
    points = list(itertools.islice(SPACE.points(), 0, 73728, 20000))
    tried = [PastTrial(point, number) for number, point in enumerate(points)]
    children = [evolution.propose(SPACE, tried, Key.of(seed)) for seed in range(60)]
    assert all(any(child in SPACE.neighbors(point) for child in children) for point in points)


def test_mutated_decision_is_drawn_uniformly():
    """From 3 decisions with an effect, however many options the removed stage has.

    900 draws: chi-square with 2 degrees of freedom is below 13.8 with probability 0.999.
    """
    removed = (0, 0, 0, 0, 1)
    drawn = Counter(mutate(TINY, removed, Key.of(seed)) for seed in range(900))
    assert set(drawn) == set(TINY.neighbors(removed))
    kinds = (drawn[(1, 0, 0, 0, 1)], drawn[(0, 1, 0, 0, 1)])
    assert sum((count - 300) ** 2 / 300 for count in (*kinds, 900 - sum(kinds))) < 13.8


@pytest.mark.parametrize("name", OURS)
def test_no_architecture_is_repeated_before_all_are_tried(name):
    """20 architectures, each once, then repetitions."""
    tried = []
    for number in range(TINY.count + 2):
        point = OURS[name].propose(TINY, tried, Key.of(3).fold(number))
        tried.append(PastTrial(point, float(number % 7)))
    assert {one.point for one in tried[: TINY.count]} == set(TINY.points())


def test_last_untried_architecture_is_always_found():
    *known, left = TINY.points()
    tried = [PastTrial(point, 0.0) for point in known]
    for seed in range(30):
        assert sample_untried(TINY.sample, TINY, tried, Key.of(seed)) == left


@pytest.mark.parametrize("name", ["policy", "evolution"])
def test_policy_and_evolution_beat_random_search(name):
    """Best of 60 trials over 8 seeds, paired with random search: a 95 % interval above zero."""
    better = [
        max(one.reward for one in searched(OURS[name], seed, 60))
        - max(one.reward for one in searched(OURS["random"], seed, 60))
        for seed in range(8)
    ]
    assert stats.ttest_1samp(better, 0).confidence_interval(0.95).low > 0


def test_policy_of_the_paper_space_is_finite_after_a_thousand_trials():
    """Probabilities approach 1 without overflow."""
    space = paper_space()
    tried = [PastTrial(space.sample(Key.of(seed)), seed % 10 / 10) for seed in range(40)]
    good = tried[9].point
    tried += [PastTrial(good, 1.0), PastTrial(space.sample(Key.of(41)), 0.1)] * 480
    logits = PolicyGradient().logits(space, tried)
    assert all(math.isfinite(logits[row, index]) for row, index in enumerate(good))
    point = PolicyGradient().propose(space, tried, Key.of(5))
    assert point != good
    assert sum(mine == theirs for mine, theirs in zip(point, good, strict=True)) > len(good) // 2


def one_trial(study, space=SPACE):
    trial = study.ask()
    point = suggest(trial, space)
    study.tell(trial, synthetic_reward(point) if space is SPACE else float(sum(point)))
    return point


@pytest.mark.parametrize("name", NAMES)
def test_reopened_study_continues_like_an_uninterrupted_one(name):
    """27 trials at once, and the same trials with a new sampler and study object after every 9."""
    whole = optuna.create_study(direction="maximize", sampler=create_sampler(name, RICH, seed=5))
    expected = [one_trial(whole, RICH) for _ in range(27)]
    database = optuna.storages.InMemoryStorage()
    found = []
    for _ in range(3):
        study = optuna.create_study(
            study_name="s",
            storage=database,
            direction="maximize",
            load_if_exists=True,
            sampler=create_sampler(name, RICH, seed=5),
        )
        found += [one_trial(study, RICH) for _ in range(9)]
    assert found == expected
    other = optuna.create_study(direction="maximize", sampler=create_sampler(name, RICH, seed=6))
    assert [one_trial(other, RICH) for _ in range(27)] != expected


@pytest.mark.parametrize("name", OURS)
def test_sampler_proposes_from_the_trials_of_the_study(name):
    study = optuna.create_study(direction="maximize", sampler=create_sampler(name, SPACE, seed=1))
    points = [one_trial(study) for _ in range(30)]
    tried, key = [], Key.of(1).fold("sampler")
    for number, point in enumerate(points):
        assert OURS[name].propose(SPACE, tried, key.fold(number)) == point
        tried.append(PastTrial(point, synthetic_reward(point)))
    assert past_trials(study, SPACE) == tried


@pytest.mark.parametrize("name", NAMES)
def test_parallel_workers_of_one_seed_get_different_architectures(name):
    """Four trials start before any of them has finished."""
    study = optuna.create_study(direction="maximize")
    workers = [
        optuna.load_study(
            study_name=study.study_name, storage=study._storage, sampler=create_sampler(name, SPACE, seed=5)
        )
        for _ in range(4)
    ]
    assert len({suggest(worker.ask(), SPACE) for worker in workers}) == 4


def test_past_trials_have_rewards_by_their_state():
    """Finished: the reward. Pruned or failed: the lowest reward. Killed: omitted. Running: no reward."""
    study = optuna.create_study(direction="maximize", sampler=create_sampler("random", TINY, seed=0))
    trials = [study.ask() for _ in range(7)]
    points = [suggest(trial, TINY) for trial in trials[:6]]
    study.tell(trials[0], 0.6)
    study.tell(trials[1], 0.4)
    study.tell(trials[2], state=TrialState.PRUNED)
    study.tell(trials[3], state=TrialState.FAIL)
    study.tell(trials[5], 0.0)
    assert past_trials(study, TINY) == [
        PastTrial(points[0], 0.6), PastTrial(points[1], 0.4), PastTrial(points[2], 0.4), PastTrial(points[4], None),
        PastTrial(points[5], 0.4),
    ]  # fmt: skip


def test_enqueued_architecture_is_tried_next():
    """For example the backbone first."""
    study = optuna.create_study(direction="maximize", sampler=create_sampler("policy", SPACE, seed=0))
    backbone = SPACE.encode(SPACE.backbone)
    study.enqueue_trial(SPACE.choices(backbone))
    assert one_trial(study) == backbone
    assert one_trial(study) != backbone


def test_nsga2_accepts_two_objectives():
    """Fewer parameters and a higher reward: no other trial is at least as good in both."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=create_sampler("nsga2", SPACE, seed=0))
    for _ in range(8):
        trial = study.ask()
        point = suggest(trial, SPACE)
        parameters = count_flops(SPACE.decode(point), image_size=64, num_classes=10).total.parameters
        study.tell(trial, (synthetic_reward(point), parameters))
    values = np.array([trial.values for trial in study.trials]) * [-1, 1]
    best = np.array([trial.values for trial in study.best_trials]) * [-1, 1]
    assert len(np.unique(values, axis=0)) > 1
    for one in best:
        assert not ((values <= one).all(axis=1) & (values < one).any(axis=1)).any()


def test_unknown_parameter_or_sampler_is_rejected():
    study = optuna.create_study(direction="maximize", sampler=create_sampler("policy", TINY, seed=0))
    with pytest.raises(InputError, match=mentioning("'lr'")):
        study.ask().suggest_float("lr", 0, 1)
    with pytest.raises(InputError, match=mentioning("evolutoin", "did you mean", "evolution")):
        create_sampler("evolutoin", TINY, seed=0)


@pytest.mark.parametrize(("most", "last"), [(3.0, 4.25 / 3.6875**0.5), (1.5, 1.5)])
def test_baseline_is_updated_and_large_advantages_are_clipped(most, last):
    """Baselines 0.5 up to the third reward, then 0.75, halfway to it. Variances 1/4, 2/9 and 59/16."""
    policy = PolicyGradient(warmup=2, baseline_decay=0.5, most_advantage=most)
    found = policy._advantages(np.array([1.0, 0.0, 1.0, 5.0]))
    assert found == pytest.approx([1, -1, 0.5 / (2 / 9) ** 0.5, last])


@pytest.mark.parametrize(("name", "made"), [("tpe", TPESampler), ("nsga2", NSGAIISampler)])
def test_sampler_names_of_optuna(name, made):
    assert isinstance(create_sampler(name, SPACE, seed=0), made)
