"""Results of a study, on trials with rewards by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.messages import mentioning
from tests.nas.test_study import PLAN
from tests.nas.tiny import SPACE

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.nas.objective import Measurement, Reward
from efficientnetv2.nas.results import TrialRow, architecture_table, best, best_so_far, importances, pareto_front
from efficientnetv2.nas.storage import Storage, import_optuna
from efficientnetv2.nas.study import create_study, open_study
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows.search_report import draw_fronts, draw_importances, draw_rewards


def row(number: int, top1: float, ms: float, reward: float, end: str = "finished", **more) -> TrialRow:
    failure = "diverged: at step 3" if end == "failed" else None
    found = Measurement(
        parameters=int(1e6 * ms),
        multiply_adds=1,
        top1=None if failure else top1,
        step_seconds=ms / 1000,
        failure=failure,
    )
    return TrialRow(number, (number,), found, reward, end, 1.0, **more)


ROWS = [
    row(0, 0.50, 10, 0.50),
    row(1, 0.60, 20, 0.57),
    row(2, 0.55, 30, 0.51),  # slower than 1 and worse
    row(3, 0.90, 40, 0.99, "stopped"),
    row(4, 0.0, 50, 0.0, "failed"),
    row(5, 0.70, 40, 0.62),
    row(6, 0.70, 40, 0.62, same_as=5),
    row(7, 0.40, 10, 0.40),  # as fast as 0 and worse
]


def test_pareto_front_has_no_dominated_trial():
    assert [one.number for one in pareto_front(ROWS, lambda found: found.step_seconds)] == [0, 1, 5]


def test_best_trials_are_finished_and_different():
    assert [one.number for one in best(ROWS, most=3)] == [5, 1, 2]
    assert [one.number for one in best(ROWS, most=99)] == [5, 1, 2, 0, 7]


def test_architecture_trained_twice_is_listed_once():
    """Two workers may train the same architecture at the same time."""
    twice = replace(row(8, 0.71, 40, 0.63), point=ROWS[5].point)
    assert [one.number for one in best([*ROWS, twice], most=3)] == [8, 1, 2]


def test_study_without_a_finished_trial_is_an_error():
    with pytest.raises(InputError, match=mentioning("3", "step")):
        best(ROWS[3:5])


def test_best_reward_so_far_ignores_stopped_trials():
    assert best_so_far(ROWS) == [0.5, 0.57, 0.57, 0.57, 0.57, 0.62, 0.62, 0.62]


def test_architecture_table_equals_table_4_of_the_paper():
    """arXiv:2104.00298, Table 4: EfficientNetV2-S."""
    _, rows = architecture_table(get_architecture("efficientnetv2_s"))
    assert [" | ".join(one) for one in rows] == [
        "0 | Conv3x3 | 2 | 24 | 1",
        "1 | Fused-MBConv1, k3x3 | 1 | 24 | 2",
        "2 | Fused-MBConv4, k3x3 | 2 | 48 | 4",
        "3 | Fused-MBConv4, k3x3 | 2 | 64 | 4",
        "4 | MBConv4, k3x3, SE0.25 | 2 | 128 | 6",
        "5 | MBConv6, k3x3, SE0.25 | 1 | 160 | 9",
        "6 | MBConv6, k3x3, SE0.25 | 2 | 256 | 15",
        "7 | Conv1x1 & Pooling & FC | - | 1280 | 1",
    ]


def test_reward_is_printed_as_a_formula():
    assert str(Reward()) == "A · S^-0.07 · P^-0.05"
    assert str(Reward(step_seconds=0, peak_memory_bytes=-0.1)) == "A · P^-0.05 · M^-0.1"


def test_plots_show_fronts_rewards_and_importances():
    fronts = draw_fronts(ROWS)
    assert len(fronts.axes) == 2
    edge = fronts.axes[0].lines[0].get_xydata().tolist()
    assert edge == [[10.0, 50.0], [20.0, 60.0], [40.0, 70.0]]
    rewards = draw_rewards(ROWS).axes[0]
    assert [text.get_text() for text in rewards.get_legend().get_texts()] == [
        "finished", "stopped", "failed", "largest so far",
    ]  # fmt: skip
    bars = draw_importances({"stage2.kind": 0.7, "stage3.layers": 0.3}).axes[0]
    assert [bar.get_width() for bar in bars.patches] == [70.0, 30.0]


def test_decision_that_determines_the_reward_has_the_highest_importance(tmp_path):
    """Accuracy is 0.6 if stage 2 is fused, otherwise 0.5. Other decisions have no effect."""
    storage = Storage(f"sqlite:///{tmp_path}/study.db", timeout_s=5, create=True)
    create_study(storage, "study", PLAN.model_copy(update={"reward": Reward(step_seconds=0, parameters=0)}), trials=40)
    study = open_study(storage, "study")
    assert not importances(study)
    for number in range(40):
        point = SPACE.sample(Key.of(number))
        top1 = 0.6 if SPACE.choices(point)["stage2.kind"] == "fused" else 0.5
        measured = Measurement(1000, 1000, top1=top1, step_seconds=0.01).to_json()
        attributes = {"point": list(point), "measurement": measured}
        study.optuna_study.add_trial(import_optuna().trial.create_trial(value=top1, user_attrs=attributes))
    found = importances(study)
    assert set(found) == {name for name, _ in SPACE.decisions}
    assert max(found, key=found.get) == "stage2.kind"
    assert found["stage2.kind"] > 0.9


def test_plots_without_trials_are_none():
    assert draw_fronts([]) is None
    assert draw_rewards(ROWS[3:5]) is None
    assert draw_importances({}) is None
