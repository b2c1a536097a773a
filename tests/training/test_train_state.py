"""Steps at which stages end, rows are written and validations run; and checkpoints of the state."""

from __future__ import annotations

import errno

import pytest
import torch
from tests.messages import mentioning
from tests.recipes import with_overrides
from torch import nn

from efficientnetv2.training import optim
from efficientnetv2.training.checkpoints import checkpoint_steps, load_latest_checkpoint, save_checkpoint
from efficientnetv2.training.recipe import Optimizer
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import RunLength, log_steps, validation_steps
from efficientnetv2.training.train_state import EMA, TrainState
from efficientnetv2.utils.errors import InputError


def recipe(*settings: str, stages: int = 2):
    plan = f"progressive={{stages: {stages}, image_size: {{start: 64, end: 128}}}}"
    return with_overrides(get_recipe("quick"), [plan, *settings])


def test_validations_are_at_each_epoch_and_at_the_end_of_each_stage():
    """Two stages of 20 steps, epochs of 8. Step 16 is half an epoch before the end of a stage, so it has one."""
    length = RunLength(40, 8.0)
    assert recipe().progressive.stage_ends(40) == [20, 40]
    assert validation_steps(recipe(), length) == {8, 16, 20, 24, 32, 40}


def test_no_validation_shortly_before_or_after_the_end_of_a_stage():
    """Epochs of 9: 18 and 36 are within half an epoch of an end. Epochs of 101: 202 is 2 steps after an end."""
    assert validation_steps(recipe(), RunLength(40, 9.0)) == {9, 20, 27, 40}
    assert validation_steps(recipe(), RunLength(400, 101.0)) == {101, 200, 303, 400}
    assert validation_steps(recipe(), RunLength(400, 120.0)) == {120, 200, 240, 400}


def test_validation_interval_is_in_epochs():
    assert validation_steps(recipe("val_interval_epochs=2", stages=1), RunLength(40, 8.0)) == {16, 32, 40}


def test_epochs_shorter_than_a_step_have_one_validation_per_step():
    assert validation_steps(recipe(), RunLength(4, 0.1)) == {1, 2, 3, 4}


def test_continuous_ramp_is_one_stage():
    always = with_overrides(
        get_recipe("quick"), ["progressive={stages: 4, image_size: {start: 64, end: 128, continuous: true}}"]
    )
    assert always.progressive.stage_ends(40) == [40]
    assert validation_steps(always, RunLength(40, 8.0)) == {8, 16, 24, 32, 40}


def test_short_run_has_a_row_per_step_and_a_long_run_about_200_rows():
    """1,001 steps: every fifth, and the last of each stage, 501 (half, rounded up) and 1,001."""
    assert log_steps(recipe(), RunLength(40, 8.0)) == set(range(1, 41))
    long = RunLength(1001, 8.0)
    assert log_steps(recipe(), long) == set(range(5, 1002, 5)) | set(recipe().progressive.stage_ends(1001))
    assert recipe().progressive.stage_ends(1001)[-1] == 1001


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ESTALE, "Stale file handle"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_temporarily_unreadable_checkpoint_is_not_treated_as_damaged(error, tmp_path, monkeypatch):
    """It is not moved. A short outage of a network share must not lose training."""
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step}, step)
    real, calls = torch.load, []

    def failing_once(*arguments, **words):
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return real(*arguments, **words)

    monkeypatch.setattr(torch, "load", failing_once)
    with pytest.raises(InputError, match=mentioning("step_00000002.pt", "`resume`")):
        load_latest_checkpoint(tmp_path)
    assert load_latest_checkpoint(tmp_path) == ({"step": 2}, [])


def test_checkpoint_of_another_model_is_kept(tmp_path):
    """For example after the recipe or the library of the model was changed, which can be undone."""
    state = {"network": {}, "optimizer": {}, "step": 2}
    save_checkpoint(tmp_path, state, 2)
    with pytest.raises(InputError, match=mentioning("another model", "resume")):
        load_latest_checkpoint(tmp_path, lambda saved: False)
    assert load_latest_checkpoint(tmp_path) == (state, [])


def test_run_with_only_damaged_checkpoints_does_not_start_again(tmp_path):
    """A launcher that repeats the command would lose the history of the run."""
    save_checkpoint(tmp_path, {"step": 1}, 1).write_bytes(b"no zip")
    for _ in range(2):
        with pytest.raises(InputError, match=mentioning("step_00000001", "output")):
            load_latest_checkpoint(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint_is_moved_and_the_one_before_is_used(share, tmp_path):
    for step in (1, 2):
        path = save_checkpoint(tmp_path, {"weights": torch.full((5_000,), float(step))}, step)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    kept, damaged = load_latest_checkpoint(tmp_path)
    assert kept["weights"][0] == 1
    assert len(damaged) == 1
    assert checkpoint_steps(tmp_path) == [1]


def state(kind):
    """State of a tiny model with batch norm, including all that a step changes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = optim.build_optimizer(network, Optimizer(name=kind, lr=0.1, momentum=0.9))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    return TrainState(network, optimizer, EMA(network, 0.9), scaler=scaler)


def steps(state, count):
    for _ in range(count):
        images = torch.randn(8, 3, generator=torch.Generator().manual_seed(state.step))
        state.optimizer.zero_grad()
        state.scaler.scale(state.network(images).square().mean()).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.ema.update(state.network, state.step)
        state.step += 1


def numbers(kept):
    """All tensors and numbers of a state, in order."""
    if isinstance(kept, dict):
        return [one for value in kept.values() for one in numbers(value)]
    if isinstance(kept, list | tuple):
        return [one for value in kept for one in numbers(value)]
    return [kept.clone() if isinstance(kept, torch.Tensor) else kept]


@pytest.mark.parametrize("kind", ["adamw", "sgd", "rmsprop"])
def test_everything_that_a_step_changes_is_restored(kind, tmp_path):
    """Weights, statistics, moments, EMA, loss scale and step, which are equal after further steps too."""
    undisturbed, other = state(kind), state(kind)
    steps(undisturbed, 3)
    save_checkpoint(tmp_path, undisturbed.state_dict(), undisturbed.step)
    steps(other, 1)  # the restored state replaces these steps
    kept, damaged = load_latest_checkpoint(tmp_path)
    other.load_state_dict(kept)
    assert damaged == []
    for _ in range(2):
        pairs = list(zip(numbers(undisturbed.state_dict()), numbers(other.state_dict()), strict=True))
        assert len(pairs) > 20
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
        for one in (undisturbed, other):
            steps(one, 2)


@pytest.mark.parametrize("part", ["network", "optimizer", "ema", "scaler", "step"])
def test_checkpoint_with_a_missing_part_is_rejected(part):
    first, second = state("adamw"), state("adamw")
    steps(first, 2)
    kept = first.state_dict()
    assert kept[part], "it has something to lose"
    del kept[part]
    with pytest.raises(KeyError, match=part):
        second.load_state_dict(kept)
