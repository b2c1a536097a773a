"""Several processes train like one process: equal images, losses, statistics and weights."""

from __future__ import annotations

import os
import signal
import socket
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from tests.processes import in_processes
from tests.training.test_loop import CPU, LABELS, SMALL, gray, recipe_of

from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.models.adapt import freeze
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.ddp import AsyncFlags
from efficientnetv2.training.loop import StepContext, train_steps
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.training.train_state import init_state
from efficientnetv2.utils import distributed
from efficientnetv2.utils.device import place
from efficientnetv2.utils.distributed import SINGLE_PROCESS, process_group, with_tensor_group, world_from_env
from efficientnetv2.utils.errors import InputError, OtherProcessError
from efficientnetv2.utils.random_key import Key

STEPS = 30
PLAN = ProgressiveSchedule(
    stages=2, image_size=Ramp(32, 48), dropout=Ramp(0.1, 0.3), drop_path=0.2, randaugment=5, mixup_alpha=0.2
)


def trained(groups, steps, *, frozen=False):
    """Losses, samples by (step, group), and the final state of the model and its average."""
    world = world_from_env()
    with process_group(world, fix="Go on with --resume."):
        world = with_tensor_group(world, CPU)
        torch.manual_seed(0)
        model = place(create(SMALL, num_classes=3), CPU)
        if frozen:
            freeze(model, stages=1, statistics=True)
        # Not Adam: it divides rounding errors of gradients by their own size.
        optimizer = {"name": "sgd", "lr": 0.003, "clip_norm": 5.0}
        recipe = recipe_of(PLAN, batch_size=24, ghost_batch_size=24 // groups, ema_decay=0.9, optimizer=optimizer)
        requests = TrainSampler(LABELS, PLAN, steps, 24, 24 // groups, "sqrt", Key.of(0), world=world)
        seen = {(request.step, request.group): request.ids.tolist() for request in requests}
        state = init_state(model, recipe)
        done = train_steps(
            state,
            map(gray, requests),
            StepContext(recipe, Preprocessing(image_size=32), num_classes=3, key=Key.of(0), device=CPU),
            length=RunLength(steps, steps_per_epoch=1),
            world=world,
        )
        losses = [float(one.loss) for one in done]
        kept = {
            f"{kind}.{name}": tensor.numpy()
            for kind, one in (("now", state.network), ("average", state.eval_network))
            for name, tensor in one.state_dict().items()
        }
        return losses, seen, kept


def differences(one, other):
    return max(float(np.abs(tensor - other[name]).max()) for name, tensor in one.items())


@pytest.mark.parametrize(("groups", "size", "steps"), [(4, 3, STEPS), (4, 2, 10), (2, 2, 10)])
def test_distributed_training_equals_single_process_training(groups, size, steps):
    """4 groups over 3 processes: one process has two groups, the others one, and all groups have equal weight."""
    losses, seen, state = trained(groups, steps=steps)
    ranks = in_processes(trained, size, groups, steps)
    for rank, (their_losses, _, their_kept) in enumerate(ranks):
        assert np.abs(np.subtract(their_losses, losses)).max() <= 1e-5
        assert differences(their_kept, state) <= 1e-4
        assert differences(their_kept, ranks[0][2]) == 0, f"rank {rank} has other weights than the first"
    by_process = [set(their_seen) for _, their_seen, _ in ranks]
    assert sum(map(len, by_process)) == len(seen), "no group twice"
    if groups == size == 2:
        assert their_losses == losses, "the sum of two numbers does not depend on who adds them"
    assert {place: ids for _, their_seen, _ in ranks for place, ids in their_seen.items()} == seen


def test_frozen_training_is_equal_in_two_processes():
    losses, _, state = trained(2, steps=3, frozen=True)
    ranks = in_processes(frozen_run, 2)
    for their_losses, _, their_kept in ranks:
        assert np.abs(np.subtract(their_losses, losses)).max() <= 1e-5
        assert differences(their_kept, state) <= 1e-5


def frozen_run():
    return trained(2, steps=3, frozen=True)


def communicate():
    world = world_from_env()
    with process_group(world, fix="Go on with --resume."):
        made = distributed.broadcast_from_main(world, lambda: {"of": world.rank})
        everybody = distributed.all_gather_object(world, world.rank * 10)
        sums = [torch.full((2, 3), float(world.rank)), torch.tensor(1.0)]
        distributed.all_reduce_sum(world, sums)
        return made, everybody, [one.tolist() for one in sums]


def test_broadcast_gather_and_sum():
    for made, everybody, sums in in_processes(communicate, 3):
        assert made == {"of": 0}
        assert everybody == [0, 10, 20]
        assert sums == [[[3.0] * 3] * 2, 3.0]


def notes():
    """Three steps: the second process adds notes in the first and last step, and requests a stop in the second."""
    world = world_from_env()
    with process_group(world, fix="Go on with --resume."):
        flags = AsyncFlags(world)
        second = world.rank == 1
        return [
            flags.after_step(stop=second and step == 1, noted=[f"step {step}"] * (second and step != 1), last=step == 2)
            for step in range(3)
        ]


def test_flags_reach_all_processes_after_the_same_step():
    for received in in_processes(notes, 3):
        assert received == [(False, []), (False, ["step 0"]), (True, ["step 2"])]


def test_launch_id_without_a_run_id_has_the_parent_process(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert world_from_env().launch is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    assert world_from_env().launch == "job 7"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    first = world_from_env().launch
    assert first == world_from_env().launch
    assert f":{os.getppid()}:" in first


@pytest.mark.parametrize(("nodes", "local", "machines"), [("2", "1", 2), ("2", "3", 2), ("1", "4", 1), (None, "2", 2)])
def test_machines_may_have_different_numbers_of_processes(nodes, local, machines, monkeypatch):
    environment = A_CLUSTERS | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": local, "LOCAL_RANK": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if nodes is not None:
        monkeypatch.setenv("GROUP_WORLD_SIZE", nodes)
    assert world_from_env().machines == machines


def communicate_late(first_is_late_s):
    if world_from_env().is_main_process:
        time.sleep(first_is_late_s)
    return communicate()


A_CLUSTERS = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASTER_ADDR", None),
        ("MASTER_PORT", None),
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", "http"),
        ("MASTER_PORT", "70000"),
        ("RANK", "2"),
        ("RANK", "first"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", ""),
        ("LOCAL_RANK", "-1"),
    ],
)
def test_incomplete_cluster_environment_names_the_variable(name, value, monkeypatch):
    for one, its in (A_CLUSTERS | {name: value}).items():
        if its is None:
            monkeypatch.delenv(one, raising=False)
        else:
            monkeypatch.setenv(one, its)
    with pytest.raises(InputError, match=mentioning(name, "RANK", "WORLD_SIZE")):
        world_from_env()


def test_local_rank_without_local_world_size_is_accepted(monkeypatch):
    for one, its in (A_CLUSTERS | {"LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(one, its)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert world_from_env().local_rank == 1


def test_used_port_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for one, its in (A_CLUSTERS | {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}).items():
            monkeypatch.setenv(one, its)
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}"), process_group(world_from_env(), fix=""):
            pass


def test_waiting_for_other_processes_is_logged(monkeypatch):
    lines = logged_lines()
    monkeypatch.setattr(distributed, "_WAITS_S", 0.1)
    for one, its in A_CLUSTERS.items():
        monkeypatch.setenv(one, its)

    def wait(*_):
        end = time.monotonic() + 20
        while not lines and time.monotonic() < end:
            time.sleep(0.05)
        raise ZeroDivisionError

    monkeypatch.setattr(distributed, "_own_store", wait)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(None, 0, 2)]))
    with pytest.raises(ZeroDivisionError), process_group(world_from_env(), fix=""):
        pass
    assert mentions(lines[0], "1 process")
    assert mentions(lines[0], "RANK", "WORLD_SIZE")


def test_restarted_processes_do_not_use_values_of_the_first_start():
    """torchrun keeps one store over restarts, so values of the first start are still there."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for first_is_late_s in (0.0, 1.0):
        for made, everybody, _ in in_processes(communicate_late, 3, first_is_late_s, agent_port=store.port):
            assert made == {"of": 0}
            assert everybody == [0, 10, 20]


def test_single_process_needs_no_communication():
    assert world_from_env() == SINGLE_PROCESS
    assert distributed.broadcast_from_main(SINGLE_PROCESS, lambda: 5) == 5
    assert distributed.all_gather_object(SINGLE_PROCESS, 5) == [5]
    with process_group(SINGLE_PROCESS, fix="Run it again."):
        one = torch.ones(2)
        distributed.all_reduce_sum(SINGLE_PROCESS, [one])
    assert one.tolist() == [1, 1]


def failing(how):
    """The second of three processes fails, and the others wait for it."""
    world = world_from_env()
    with process_group(world, fix="Go on with --resume."):
        distributed.all_gather_object(world, None)
        if world.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise InputError("the second has a message")
        distributed.all_gather_object(world, None)


def test_first_error_ends_all_processes_with_its_message():
    errors = in_processes(failing, 3, "by a message")
    assert [type(error) for error in errors] == [OtherProcessError, InputError, OtherProcessError]
    assert str(errors[1]) == "the second has a message"


def without_connection():
    world = world_from_env()
    with process_group(world, fix="Go on with --resume."):
        distributed.all_gather_object(world, None)
        if world.rank == 1:
            raise dist.DistBackendError("NCCL error, unhandled system error\nLast error:\nConnect to 172.17.0.1 failed")
        distributed.all_gather_object(world, None)


def test_cause_of_a_failed_connection_of_gpus_is_in_the_message():
    errors = in_processes(without_connection, 2)
    assert [type(error) for error in errors] == [OtherProcessError, InputError]
    assert mentions(str(errors[1]), "172.17.0.1", "NCCL_SOCKET_IFNAME", "--resume")


def test_killed_process_is_reported_once():
    errors = in_processes(failing, 3, "killed")
    assert errors[1] is None
    others = [errors[0], errors[2]]
    assert sorted(type(error).__name__ for error in others) == ["InputError", "OtherProcessError"]
    (message,) = (str(error) for error in others if isinstance(error, InputError))
    assert "lost another one" in message
    assert mentions(message, "--resume")
