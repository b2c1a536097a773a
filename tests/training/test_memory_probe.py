"""Memory search: the largest batch that fits is found by trials, and trials change nothing."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import mentioning
from tests.training.test_loop import SMALL, recipe_of

from efficientnetv2.models.factory import create
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp, StepSettings
from efficientnetv2.training import memory_probe as room
from efficientnetv2.training.memory_probe import MemoryProbe, largest
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.memory import GIB, in_use_bytes

CPU = torch.device("cpu")
PLAN = ProgressiveSchedule(stages=2, image_size=Ramp(32, 64))


class Memory:
    """A memory of ``room`` bytes with items of ``each`` bytes, which records the trials."""

    def __init__(self, room, each, *, refuses=False):
        self.room, self.each, self.refuses, self.tried = room, each, refuses, []

    def taken(self, number):
        self.tried.append(number)
        bytes_taken = number * self.each
        return None if self.refuses and bytes_taken > self.room else bytes_taken


@given(
    each=st.integers(1, 50),
    truth=st.floats(0.5, 4),
    room=st.integers(1, 2000),
    batch=st.integers(1, 64),
    refuses=st.booleans(),
)
def test_largest_number_that_fits_is_found_despite_wrong_estimates(each, truth, room, batch, refuses):
    """Within 5 %, and without a trial if the estimate is far below the memory."""
    memory = Memory(room, max(1, round(each * truth)), refuses=refuses)
    among = [number for number in range(1, batch + 1) if batch % number == 0]
    found = largest(among, each=each, room=room, taken=memory.taken)
    if among[-1] * each <= room / 4:
        assert (found, memory.tried) == (among[-1], [])
        return
    fitting = [number for number in among if number * memory.each <= room]
    wanted = fitting[-1] if fitting else 0
    assert found in fitting or found == 0 == wanted
    assert wanted <= found * 1.05
    assert len(memory.tried) == len(set(memory.tried)), "nothing is tried twice"


def test_first_trial_is_below_the_estimated_limit():
    """At an estimated 10 of 100 bytes each, the first trial has at most 6."""
    memory = Memory(100, 12)
    assert largest(range(1, 33), each=10, room=100, taken=memory.taken) == 8
    assert memory.tried == [6, 8]


def network():
    torch.manual_seed(0)
    return create(SMALL, num_classes=3)


def preflight(net=None, *, limit_gib=None, **changes):
    recipe = recipe_of(PLAN, **({"batch_size": 32, "ghost_batch_size": 4} | changes))
    return MemoryProbe(recipe, net or network(), Hardware(CPU, limit_gib))


def test_trial_changes_nothing():
    net = network()
    before = copy.deepcopy(net.state_dict())
    assert preflight(net).trial(StepSettings(image_size=64, dropout=0.2), ghost_batch_size=4, groups=2) is not None
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(weight.grad is None for weight in net.parameters())


def test_trial_takes_about_the_estimated_memory():
    """Activations of 32 images of 192 px take 1.4 GB in V2-B0.

    In a smaller model, the images and the memory of the allocator would dominate.
    """
    tries = preflight(create("efficientnetv2_b0", num_classes=3))
    counted = 32 * tries.counted(192)
    taken = tries.trial(StepSettings(image_size=192), ghost_batch_size=4, groups=8)
    assert counted == pytest.approx(1.4e9, rel=0.05)
    assert 0.8 < taken / counted < 1 / room._COUNTED


def test_out_of_memory_in_a_trial_is_a_result_and_other_errors_are_raised():
    net = network()

    def short(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = net.register_forward_pre_hook(short)  # copies have the hook too
    assert preflight(net).trial(StepSettings(image_size=32), ghost_batch_size=4) is None
    handle.remove()
    net.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        preflight(net).trial(StepSettings(image_size=32), ghost_batch_size=4)


def test_small_images_run_more_ghost_batches_per_pass(monkeypatch):
    """8 ghost batches run in one pass at 32 px and in two at 64 px, which needs four times the memory."""
    tries = preflight()
    tries.room = int(tries.counted(64) * 4 * 6)
    each = {px: tries.counted(px) for px in (32, 64)}
    monkeypatch.setattr(
        MemoryProbe,
        "trial",
        lambda self, setting, *, ghost_batch_size, groups: each[setting.image_size] * ghost_batch_size * groups,
    )
    settings = [PLAN.stage(0), PLAN.stage(1)]
    assert tries.microbatches(settings, ghost_batch_size=4) == MicrobatchPlan({32: 8, 64: 4})


def test_ghost_batches_of_wrapped_models_run_one_by_one():
    inner = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    tries = preflight(WrappedModel(inner.append(torch.nn.Linear(8, 3))))
    assert tries.microbatches([PLAN.last], ghost_batch_size=4) == MicrobatchPlan({64: 1})


def test_memory_limit_includes_memory_in_use():
    taken = in_use_bytes(CPU) / GIB
    assert 0.4 < preflight(limit_gib=taken + 1).room / GIB < 0.95
    with pytest.raises(InputError, match=mentioning("memory_gib", "0.01", "GiB")):
        preflight(limit_gib=0.01)


def test_memory_limit_above_the_memory_in_use_is_accepted(monkeypatch):
    """The machine has no free memory, but this is an error of the trial and not of the limit."""
    monkeypatch.setattr(room, "free_bytes", lambda device, limit, sharing: -GIB)
    taken = in_use_bytes(CPU) / GIB
    tries = preflight(limit_gib=taken + 1)
    assert (tries.room, tries.limited) == (0, False)
    with pytest.raises(InputError) as error:
        preflight(limit_gib=taken)
    assert float(re.search(r"alone take ([0-9.]+) GiB", str(error.value))[1]) >= taken


def test_probe_knows_whether_the_limit_is_below_the_free_memory():
    taken = in_use_bytes(CPU) / GIB
    assert preflight(limit_gib=taken + 0.1).limited
    assert not preflight(limit_gib=100_000).limited
    assert not preflight().limited


def test_results_of_trials_are_recorded(monkeypatch):
    monkeypatch.setattr(MemoryProbe, "trial", lambda self, setting, *, ghost_batch_size: 100 * ghost_batch_size)
    tries = preflight()
    tries.counted = lambda px: 50
    tries.room = 250
    assert tries.largest_group(PLAN.last, among=[1, 2, 4, 8]) == 2
    assert tries.took[2] == 200
    tries.room = 10
    assert tries.largest_group(PLAN.last, among=[1, 2, 4, 8]) == 0
    assert tries.took == {1: 100}


def test_memory_of_optimizer_and_ema_is_reserved(monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device, limit, sharing: GIB)
    weights = sum(weight.numel() * 4 for weight in network().parameters())
    assert preflight().room == int((GIB - 3 * weights) * 0.9)


def test_processes_on_one_machine_share_memory_and_ghost_batches(monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device, limit, sharing: 12 * GIB // sharing)
    recipe = recipe_of(PLAN, batch_size=32, ghost_batch_size=4)
    world = World(rank=0, size=3, local_rank=0, local_size=3)
    tries = MemoryProbe(recipe, network(), Hardware(CPU, None, world))
    assert tries.room == pytest.approx(4 * GIB * 0.9, rel=0.01)
    assert tries.microbatches([PLAN.last], ghost_batch_size=4) == MicrobatchPlan({64: 3}), "8 groups: 3, 3 and 2"
