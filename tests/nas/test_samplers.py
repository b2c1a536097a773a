"""Who is tried next: learning by hand, nothing tried twice, the same whoever asks and however often he stops."""

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
    distributions,
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


def worth(point):
    """Made up: MBConv early, layers late and little cost, none of which a sampler is told."""
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
        tried.append(PastTrial(point, worth(point)))
    return tried


def test_what_a_policy_learns_by_hand():
    """Rewards 1 and 0 about their mean, one standard deviation each way; two options, a rate of 0.5.

    The first moves each logit by 0.5 * (1 - 0.5) = 0.25: chances 1/(1 + e^-0.5) = 0.622459 and 0.377541. The second
    took the other options and is made less likely by 0.5 * (1 - 0.377541) = 0.311230.
    """
    policy = PolicyGradient(learning_rate=0.5, warmup=2, entropy=0.0)
    tried = [PastTrial((0, 0, 0, 0, 0), 1.0), PastTrial((1, 1, 1, 1, 0), 0.0)]
    logits = policy.logits(TINY, tried)
    assert logits[:4].tolist() == pytest.approx(np.array([[0.56123, -0.56123]] * 4), abs=1e-5)
    # The last decision took the same option both times: up by 0.25, then down by 0.5 * 0.377541.
    assert logits[4].tolist() == pytest.approx([0.061230, -0.061230], abs=1e-5)


def test_a_policy_learns_nothing_from_decisions_without_effect():
    """The second stage is removed: of its decisions only that is taught."""
    policy = PolicyGradient(warmup=2, entropy=0.0)
    logits = policy.logits(TINY, [PastTrial((0, 0, 0, 0, 1), 1.0), PastTrial((1, 0, 0, 0, 1), 0.0)])
    assert (logits[2:4] == 0).all()
    assert (logits[[0, 4]] != 0).all()


def test_equal_rewards_teach_nothing_and_options_that_are_not_there_stay_so():
    policy = PolicyGradient(warmup=3)
    tried = [PastTrial(RICH.sample(Key.of(seed)), 0.5) for seed in range(20)]
    logits = policy.logits(RICH, tried)
    sizes = [len(decision.options) for decision in RICH.decisions]
    for row, size in zip(logits, sizes, strict=True):
        assert row[:size] == pytest.approx(0, abs=1e-12)
        assert (row[size:] == -np.inf).all()


def test_entropy_pulls_towards_even_chances():
    """The third reward is the usual one, so its step is that of entropy alone: the gradient by finite differences."""
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


def test_the_parent_is_the_best_of_the_living():
    """Of 6 trials the youngest 4 live, all in the tournament: the best of all has died."""
    evolution = RegularizedEvolution(population=4, tournament=4)
    points = [TINY.sample(Key.of(seed).fold("first")) for seed in range(6)]
    tried = [PastTrial(point, reward) for point, reward in zip(points, (9, 1, 2, 5, 3, 4), strict=True)]
    for seed in range(20):
        child = evolution.propose(TINY, tried, Key.of(seed))
        assert child in TINY.neighbors(points[3])


def test_a_small_tournament_lets_others_be_parents():
    evolution = RegularizedEvolution(population=4, tournament=1)
    points = list(itertools.islice(SPACE.points(), 0, 73728, 20000))
    tried = [PastTrial(point, number) for number, point in enumerate(points)]
    children = [evolution.propose(SPACE, tried, Key.of(seed)) for seed in range(60)]
    assert all(any(child in SPACE.neighbors(point) for child in children) for point in points)


def test_which_decision_changes_is_drawn_evenly():
    """Of 3 decisions that have an effect, however many options the removed stage may come back with.

    900 draws: chi-square with 2 degrees of freedom is below 13.8 with probability 0.999.
    """
    removed = (0, 0, 0, 0, 1)
    drawn = Counter(mutate(TINY, removed, Key.of(seed)) for seed in range(900))
    assert set(drawn) == set(TINY.neighbors(removed))
    kinds = (drawn[(1, 0, 0, 0, 1)], drawn[(0, 1, 0, 0, 1)])
    assert sum((count - 300) ** 2 / 300 for count in (*kinds, 900 - sum(kinds))) < 13.8


@pytest.mark.parametrize("name", OURS)
def test_nothing_is_tried_twice_until_everything_was(name):
    """20 networks, each once; then again."""
    tried = []
    for number in range(TINY.count + 2):
        point = OURS[name].propose(TINY, tried, Key.of(3).fold(number))
        tried.append(PastTrial(point, float(number % 7)))
    assert {one.point for one in tried[: TINY.count]} == set(TINY.points())


def test_the_last_network_is_found_whatever_is_drawn():
    *known, left = TINY.points()
    tried = [PastTrial(point, 0.0) for point in known]
    for seed in range(30):
        assert sample_untried(TINY.sample, TINY, tried, Key.of(seed)) == left


@pytest.mark.parametrize("name", ["policy", "evolution"])
def test_learning_beats_drawing(name):
    """Best of 60 trials over 8 seeds, paired with random search's: a 95 % interval above zero."""
    better = [
        max(one.reward for one in searched(OURS[name], seed, 60))
        - max(one.reward for one in searched(OURS["random"], seed, 60))
        for seed in range(8)
    ]
    assert stats.ttest_1samp(better, 0).confidence_interval(0.95).low > 0


def test_a_policy_of_the_papers_space_goes_on_for_a_thousand_trials():
    """Ever more certain, without overflow."""
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
    study.tell(trial, worth(point) if space is SPACE else float(sum(point)))
    return point


@pytest.mark.parametrize("name", NAMES)
def test_a_study_that_is_opened_anew_goes_on_as_if_it_had_never_stopped(name):
    """27 trials at once; and the same with a new sampler and a new study of the same database every 9."""
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
def test_a_proposal_is_that_of_the_studys_trials(name):
    study = optuna.create_study(direction="maximize", sampler=create_sampler(name, SPACE, seed=1))
    points = [one_trial(study) for _ in range(30)]
    tried, key = [], Key.of(1).fold("sampler")
    for number, point in enumerate(points):
        assert OURS[name].propose(SPACE, tried, key.fold(number)) == point
        tried.append(PastTrial(point, worth(point)))
    assert past_trials(study, SPACE) == tried


@pytest.mark.parametrize("name", NAMES)
def test_workers_of_one_seed_try_different_networks(name):
    """Four begin at once, before any has finished."""
    study = optuna.create_study(direction="maximize")
    workers = [
        optuna.load_study(
            study_name=study.study_name, storage=study._storage, sampler=create_sampler(name, SPACE, seed=5)
        )
        for _ in range(4)
    ]
    assert len({suggest(worker.ask(), SPACE) for worker in workers}) == 4


def test_what_became_of_a_trial_counts_as_it_should():
    """Finished: its reward; pruned or failed: the lowest; killed: not at all; running: known, without a reward."""
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


def test_a_queued_network_is_tried_as_it_was_queued():
    """The backbone first, say."""
    study = optuna.create_study(direction="maximize", sampler=create_sampler("policy", SPACE, seed=0))
    backbone = SPACE.encode(SPACE.backbone)
    study.enqueue_trial(SPACE.choices(backbone))
    assert one_trial(study) == backbone
    assert one_trial(study) != backbone


@pytest.mark.parametrize("name", OURS)
def test_a_study_of_another_aim_is_refused(name):
    study = optuna.create_study(sampler=create_sampler(name, TINY, seed=0))
    with pytest.raises(InputError, match=mentioning("minimize", "maximize")):
        study.ask(distributions(TINY))
    several = optuna.create_study(directions=["maximize", "minimize"], sampler=create_sampler(name, TINY, seed=0))
    with pytest.raises(InputError, match="maximize, minimize"):
        several.ask(distributions(TINY))


def test_nsga2_seeks_fronts():
    """Fewer parameters and more reward."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=create_sampler("nsga2", SPACE, seed=0))
    for _ in range(8):
        trial = study.ask()
        point = suggest(trial, SPACE)
        parameters = count_flops(SPACE.decode(point), image_size=64, num_classes=10).total.parameters
        study.tell(trial, (worth(point), parameters))
    assert study.best_trials


def test_what_is_no_decision_is_refused():
    study = optuna.create_study(direction="maximize", sampler=create_sampler("policy", TINY, seed=0))
    with pytest.raises(InputError, match=mentioning("'lr'")):
        study.ask().suggest_float("lr", 0, 1)
    with pytest.raises(InputError, match=mentioning("evolutoin", "did you mean", "evolution")):
        create_sampler("evolutoin", TINY, seed=0)


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (PolicyGradient, {"warmup": 0}),
        (RegularizedEvolution, {"population": 0}),
        (RegularizedEvolution, {"tournament": 0}),
    ],
)
def test_samplers_that_could_never_propose_are_refused_where_they_are_made(sampler, words):
    with pytest.raises(ValueError, match="at least 1"):
        sampler(**words)


@pytest.mark.parametrize(("most", "last"), [(3.0, 4.25 / 3.6875**0.5), (1.5, 1.5)])
def test_the_baseline_moves_and_what_is_far_above_it_is_cut_off(most, last):
    """Baselines 0.5 up to the third reward, then half way to that, 0.75; variances 1/4, 2/9 and 59/16."""
    policy = PolicyGradient(warmup=2, baseline_decay=0.5, most_advantage=most)
    found = policy._advantages(np.array([1.0, 0.0, 1.0, 5.0]))
    assert found == pytest.approx([1, -1, 0.5 / (2 / 9) ** 0.5, last])


@pytest.mark.parametrize(("name", "made"), [("tpe", TPESampler), ("nsga2", NSGAIISampler)])
def test_samplers_are_those_of_their_names(name, made):
    assert isinstance(create_sampler(name, SPACE, seed=0), made)
