"""Studies: config, compatibility of workers, and pruning of the worst trials."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from tests.messages import mentioning, mentions
from tests.nas.tiny import SPACE
from tests.recipes import with_overrides

from efficientnetv2.nas.objective import Measurement, Reward
from efficientnetv2.nas.samplers import BottomQuartilePruner, suggest
from efficientnetv2.nas.space import small_space
from efficientnetv2.nas.storage import Storage, import_optuna
from efficientnetv2.nas.study import (
    RequestedConfig,
    StudyConfig,
    create_study,
    load_config,
    open_study,
    require_same_config,
    version_warning,
)
from efficientnetv2.nas.trial_queue import TrialQueue
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.errors import InputError

RECIPE = with_overrides(get_recipe("proxy_small"), ["precision=fp32"])
PLAN = StudyConfig(
    space=SPACE,
    reward=Reward(),
    recipe=RECIPE,
    requested_recipe=RECIPE,
    seeds=(0, 1),
    step_time="measured",
    sampler="random",
    seed=0,
    prune=True,
    dataset_digest="0123456789abcdef",
    bands=(4, 3, 2),
    nodata=(),
    class_names=("blue", "green", "red"),
    hardware="a machine",
    reference=Measurement(1000, 1000, step_seconds=0.01, failure="not trained"),
    reference_group=RECIPE.ghost_batch_size,
    reference_at_a_time=1,
    version="1.0",
)


def storage(tmp_path) -> Storage:
    return Storage(f"sqlite:///{tmp_path}/study.db", timeout_s=5, create=True)


def test_config_is_read_back_equal(tmp_path):
    assert create_study(storage(tmp_path), "study", PLAN, trials=7) == PLAN
    study = open_study(storage(tmp_path), "study")
    assert (study.config, study.target) == (PLAN, 7)
    assert [there.study_name for there in study.storage.rdb.get_all_studies()] == ["study"]


def test_other_package_version_gives_a_warning():
    assert version_warning("1.0", "1.0") is None
    assert mentions(version_warning("0.1", "1.0"), "efficientnetv2", "0.1", "1.0")


def test_second_worker_gets_the_config_of_the_first(tmp_path):
    create_study(storage(tmp_path), "study", PLAN, trials=7)
    other = PLAN.model_copy(update={"sampler": "tpe"})
    assert create_study(storage(tmp_path), "study", other, trials=9) == PLAN
    assert open_study(storage(tmp_path), "study").target == 7


def test_missing_study_is_an_error_that_lists_the_others(tmp_path):
    create_study(storage(tmp_path), "study", PLAN, trials=7)
    with pytest.raises(InputError, match=mentioning("other", "study")):
        open_study(storage(tmp_path), "other")


def test_config_of_another_format_is_rejected(tmp_path):
    one = storage(tmp_path)
    create_study(one, "study", PLAN, trials=7)
    study_id = one.rdb.get_study_id_from_name("study")
    one.rdb.set_study_user_attr(study_id, "plan", PLAN.to_json() | {"format": 2})
    with pytest.raises(InputError, match=mentioning("version")):
        open_study(one, "study")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (RequestedConfig(space=small_space()), ("space: ",)),
        (RequestedConfig(recipe=RECIPE.model_copy(update={"epochs": 9.0})), ("5.0", "9.0", "epoch")),
        (RequestedConfig(reward=Reward(step_seconds=-0.2)), ("reward: ",)),
        (RequestedConfig(seeds=(0,)), ("seeds: (0, 1) there, (0,) here",)),
        (RequestedConfig(step_time="cached"), ("step time: measured there, cached here",)),
        (RequestedConfig(sampler="tpe"), ("sampler: random there, tpe here",)),
        (RequestedConfig(seed=3), ("0", "3", "seed")),
        (RequestedConfig(prune=False), ("prune: True there, False here",)),
        (RequestedConfig(dataset_digest="other"), ("data: ",)),
        (RequestedConfig(bands=(3, 2, 1)), ("`bands`", "4,3,2", "3,2,1")),
        (RequestedConfig(bands=()), ("`bands`", "4,3,2")),
        (RequestedConfig(nodata=(-9999.0, 0.0)), ("`nodata`", "none there", "-9999,0 here")),
        (RequestedConfig(hardware="another one"), ("hardware, and so step times: a machine there, another one here",)),
    ],
)
def test_different_config_is_rejected_with_the_difference(wanted, said):
    with pytest.raises(InputError) as error:
        require_same_config(PLAN, wanted, "the study 'study'")
    assert mentions(str(error.value), *said)


@pytest.mark.parametrize(
    ("wanted", "resumed", "fix"),
    [
        (RequestedConfig(seed=3), False, "search resume"),
        (RequestedConfig(dataset_digest="other"), False, "search resume"),
        (RequestedConfig(dataset_digest="other"), True, "dataset.csv"),
        (RequestedConfig(hardware="another one"), False, "Use hardware"),
        (RequestedConfig(hardware="another one"), True, "Use hardware"),
        (RequestedConfig(dataset_digest="other", hardware="another one"), True, "dataset.csv"),
    ],
)
def test_error_of_a_different_config_names_one_fix(wanted, resumed, fix):
    """Not the command that was run, and no fix that would fail for the same reason."""
    with pytest.raises(InputError, match="another under another name") as error:
        require_same_config(PLAN, wanted, "the study 'study'", resumed=resumed)
    fixes = ("search resume", "dataset.csv", "Use hardware")
    assert [known for known in fixes if known in str(error.value)] == [fix]


def test_equal_config_is_accepted():
    same = RequestedConfig(
        space=SPACE, recipe=RECIPE, reward=Reward(), seeds=(0, 1), dataset_digest=PLAN.dataset_digest
    )
    require_same_config(PLAN, same, "the study 'study'")
    require_same_config(PLAN, replace(same, space=None, recipe=None), "the study 'study'")


def test_reference_timing_is_that_of_the_reference():
    timed = replace(PLAN.reference, inference_seconds=0.003)
    timing = PLAN.model_copy(update={"reference": timed}).reference_timing
    assert (timing.architecture, timing.seconds, timing.inference_seconds) == (SPACE.backbone, 0.01, 0.003)


@pytest.mark.parametrize("done", range(5))
def test_study_whose_creation_was_interrupted_is_completed(done, tmp_path, monkeypatch):
    """A worker is killed after each of the steps that create a study. The fifth step removes the mark."""
    one, steps = storage(tmp_path), []

    def killed(step, *words):
        steps.append(step)
        if len(steps) > done:
            raise KeyboardInterrupt
        return step(*words)

    with monkeypatch.context() as patched:
        for name in ("create_new_study", "set_study_user_attr", "delete_study"):
            patched.setattr(one.rdb, name, partial(killed, getattr(one.rdb, name)))
        with pytest.raises(KeyboardInterrupt):
            create_study(one, "study", PLAN, trials=7)
    if done < 4:
        with pytest.raises(InputError, match=mentioning("study")):
            open_study(one, "study")
    assert create_study(one, "study", PLAN, trials=7) == PLAN
    assert open_study(one, "study").target == 7
    assert [there.study_name for there in one.rdb.get_all_studies()] == ["study"]


@pytest.mark.parametrize("trials", [0, 2])
def test_study_of_another_program_is_unchanged(trials, tmp_path):
    one = storage(tmp_path)
    theirs = import_optuna().create_study(study_name="study", storage=one.rdb, direction="minimize")
    for _ in range(trials):
        theirs.tell(theirs.ask({"x": import_optuna().distributions.FloatDistribution(0, 1)}), 0.5)
    theirs.set_user_attr("trials", 100)
    database = (tmp_path / "study.db").read_bytes()
    for ask in (open_study, load_config, partial(create_study, config=PLAN, trials=7)):
        with pytest.raises(InputError, match="did not make") as error:
            ask(one, "study")
        assert mentions(str(error.value), "'study'", tmp_path / "study.db")
    assert (tmp_path / "study.db").read_bytes() == database


def test_database_without_studies_is_an_error(tmp_path):
    with pytest.raises(InputError, match=mentioning("other", "study")):
        open_study(storage(tmp_path), "other")


def test_study_may_get_more_trials_but_not_fewer_than_started(tmp_path):
    create_study(storage(tmp_path), "study", PLAN, trials=7)
    study = open_study(storage(tmp_path), "study")
    for _ in range(3):
        study.optuna_study.ask()
    with pytest.raises(InputError, match=mentioning("trials=2", "3")):
        study.extend(2)
    assert study.target == 7
    study.extend(3)
    assert open_study(storage(tmp_path), "study").target == 3


def test_sampling_depends_on_the_seed(tmp_path):
    drawn = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        one = storage(tmp_path / str(seed))
        create_study(one, "study", PLAN.model_copy(update={"seed": seed}), trials=7)
        study = open_study(one, "study").optuna_study
        drawn.append([suggest(study.ask(), SPACE) for _ in range(4)])
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(("before", "prune", "hopeless"), [(10, True, {0, 1, 2}), (9, True, set()), (10, False, set())])
def test_worst_quarter_is_pruned_at_the_second_point(before, prune, hopeless, tmp_path):
    """Ten trials ended with 0.0 to 0.9 at every point, a quarter of them below 0.225. New trials have 0.01 more."""
    create_study(storage(tmp_path), "study", PLAN.model_copy(update={"prune": prune}), trials=20)
    study = open_study(storage(tmp_path), "study").optuna_study
    trial = import_optuna().trial
    for place in range(before):
        curve = {1: place / 10, 2: place / 10}
        study.add_trial(trial.create_trial(value=place / 10, intermediate_values=curve))
    stopped = set()
    for rank in (0, 2, 3, 9, 1):
        one = study.ask()
        one.report(rank / 10 + 0.01, 1)
        assert not one.should_prune()
        one.report(rank / 10 + 0.01, 2)
        stopped |= {rank} if one.should_prune() else set()
    assert stopped == hopeless


def test_a_quarter_of_sequential_trials_is_pruned():
    """Pruned trials have no final value but count. Otherwise the limit would rise and prune most trials."""
    study = import_optuna().create_study(direction="maximize", pruner=BottomQuartilePruner())
    stopped = 0
    for value in np.random.default_rng(0).random(160).tolist():
        one = study.ask()
        for point in (1, 2):
            one.report(value, point)
        if one.should_prune():
            stopped += 1
            study.tell(one, state=import_optuna().trial.TrialState.PRUNED)
            continue
        one.report(-1.0, 3)  # pruning is decided once; later points do not matter
        assert not one.should_prune()
        study.tell(one, value)
    assert 25 <= stopped <= 50


def test_failed_trials_do_not_count_for_pruning(tmp_path):
    """Six trials without a curve and four with one are too few to prune others."""
    create_study(storage(tmp_path), "study", PLAN, trials=20)
    study = open_study(storage(tmp_path), "study").optuna_study
    trial = import_optuna().trial
    for place in range(10):
        curve = {1: place / 10, 2: place / 10} if place > 5 else {}
        study.add_trial(trial.create_trial(value=place / 10 if curve else 0.0, intermediate_values=curve))
    one = study.ask()
    for point in (1, 2):
        one.report(0.01, point)
        assert not one.should_prune()


def test_requeued_trial_keeps_its_architecture(tmp_path):
    create_study(storage(tmp_path), "study", PLAN, trials=2)
    study = open_study(storage(tmp_path), "study")
    ledger = TrialQueue(study.storage, "study")
    points = []
    for _ in range(2):
        claim = ledger.acquire(2)
        assert claim.number == 0
        trial = import_optuna().trial.Trial(study.optuna_study, ledger.trial_id(claim.number))
        points.append(suggest(trial, SPACE))
        ledger.give_back(claim)
    assert points[0] == points[1]


def test_backbone_is_timed_with_its_initial_groups():
    """Less memory later would make only the steps of the backbone slower, so relative times would be wrong."""
    assert PLAN.model_copy(update={"reference_group": 8}).reference_timing.recipe.ghost_batch_size == 8
    assert PLAN.model_copy(update={"reference_at_a_time": 4}).reference_timing.groups_per_pass == 4
