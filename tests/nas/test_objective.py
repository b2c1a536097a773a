"""The reward of a measurement, by hand, in order, and with invalid values rejected."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.messages import mentioning

from efficientnetv2.nas.objective import Measurement, Reward
from efficientnetv2.utils.errors import InputError

BACKBONE = Measurement(
    parameters=1_000_000, multiply_adds=10, top1=0.5, step_seconds=0.1, step_spread=0.02, epochs=5, seeds=(0,)
)


def test_reward_by_hand():
    """Twice the step time, 4 times the parameters: 0.6 * 2^-0.07 * 4^-0.05 = 0.6 * 0.952638 * 0.933033 = 0.533306."""
    measured = replace(BACKBONE, top1=0.6, step_seconds=0.2, parameters=4_000_000)
    assert Reward().compute(measured, BACKBONE) == pytest.approx(0.533306, abs=1e-6)


def test_reward_of_the_backbone_is_its_accuracy():
    assert Reward().compute(BACKBONE, BACKBONE) == 0.5


def test_order_by_hand():
    """Half the step time multiplies the reward by 2^0.07 = 1.0497, half the parameters by 2^0.05 = 1.0353."""
    quick = replace(BACKBONE, step_seconds=0.05)
    little = replace(BACKBONE, parameters=500_000)
    right = replace(BACKBONE, top1=0.52)  # 1.04 times
    slow = replace(BACKBONE, top1=0.52, step_seconds=0.2)  # 1.04 * 0.9526 = 0.9907 times
    failed = replace(BACKBONE, top1=None, failure="out of memory")
    best_first = [quick, right, little, BACKBONE, slow, failed]
    assert sorted(best_first, key=lambda one: Reward().compute(one, BACKBONE), reverse=True) == best_first
    # With accuracy only, the two models of higher accuracy are equal.
    alone = Reward(step_seconds=0, parameters=0)
    assert {alone.compute(one, BACKBONE) for one in (right, slow)} == {0.52}


@given(st.floats(0.01, 1), st.floats(1e-3, 10), st.integers(1, 10**9), st.floats(1.01, 100))
def test_higher_cost_lowers_and_higher_accuracy_raises_the_reward(top1, seconds, parameters, times):
    measured = replace(BACKBONE, top1=top1, step_seconds=seconds, parameters=parameters)
    value = Reward().compute(measured, BACKBONE)
    assert Reward().compute(replace(measured, step_seconds=seconds * times), BACKBONE) == pytest.approx(
        value * times**-0.07
    )
    assert Reward().compute(replace(measured, parameters=parameters * 2), BACKBONE) < value
    assert Reward().compute(replace(measured, top1=top1 / times), BACKBONE) < value


def test_costs_with_an_exponent_are_included():
    """Latency and memory: 0.5 * 4^-0.1 * 2^-0.2 = 0.5 * 0.870551 * 0.870551 = 0.378929."""
    backbone = replace(BACKBONE, inference_seconds=0.01, peak_memory_bytes=2**30)
    measured = replace(backbone, inference_seconds=0.04, peak_memory_bytes=2**31)
    reward = Reward(step_seconds=0, parameters=0, inference_seconds=-0.1, peak_memory_bytes=-0.2)
    assert reward.compute(measured, backbone) == pytest.approx(0.378929, abs=1e-6)
    assert Reward().compute(measured, backbone) == 0.5
    assert str(reward) == "A · I^-0.1 · M^-0.2"
    assert [*reward.costs] == ["I", "M"]


def test_failed_model_has_reward_zero():
    assert Reward().compute(replace(BACKBONE, top1=None, step_seconds=None, failure="diverged"), BACKBONE) == 0.0


@pytest.mark.parametrize("name", ["step_seconds", "parameters", "inference_seconds", "peak_memory_bytes"])
def test_positive_exponent_is_rejected(name):
    with pytest.raises(ValidationError, match=mentioning(name, "0.07", "0")):
        Reward(**{name: 0.07})
    with pytest.raises(ValidationError, match=name):
        Reward(**{name: float("nan")})


def test_missing_measurement_of_a_used_cost_is_rejected():
    untimed = replace(BACKBONE, step_seconds=None)
    with pytest.raises(InputError, match=mentioning("step_seconds")):
        Reward().compute(untimed, BACKBONE)
    with pytest.raises(InputError, match=mentioning("inference_seconds")):
        Reward(inference_seconds=-0.1).compute(BACKBONE, BACKBONE)
    with pytest.raises(InputError, match="of the backbone"):
        Reward().compute(BACKBONE, untimed)


def test_measurement_survives_json():
    failed = replace(BACKBONE, top1=None, failure="killed by signal 11", peak_memory_bytes=7)
    assert Measurement.from_json(failed.to_json()) == failed


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("top1", 54.2, "top1: must be at most 1"),
        ("top1", None, "top1 is missing"),
        ("step_seconds", 0.0, "step_seconds: must be above 0"),
        ("step_seconds", float("nan"), "step_seconds: must be a finite number"),
        ("step_spread", -0.1, "step_spread: must be at least 0"),
        ("parameters", 0, "parameters: must be above 0"),
        ("epochs", float("inf"), "epochs: must be a finite number"),
    ],
)
def test_invalid_measurement_is_rejected(field, value, rule):
    with pytest.raises(ValidationError, match=field):
        replace(BACKBONE, **{field: value})
    with pytest.raises(InputError, match=rule):
        Measurement.from_json(BACKBONE.to_json() | {field: value})
