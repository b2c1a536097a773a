"""Passes from CUDA graphs train as usual passes do. On a CPU the graph itself is simulated."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.models.factory import create
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training import cuda_graphs
from efficientnetv2.training.loop import StepContext, train_steps
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.training.train_state import init_state
from efficientnetv2.utils.device import place
from efficientnetv2.utils.random_key import Key

LABELS = np.arange(32) % 2
# Dropout is off in the first stage.
PLAN = ProgressiveSchedule(stages=2, image_size=Ramp(32, 48), dropout=Ramp(0, 0.3), drop_path=Ramp(0, 0.3))
STEPS = 16
CONTINUOUS = ProgressiveSchedule(stages=2, image_size=Ramp(32, 48, continuous=True))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def noise(request):
    px = request.setting.image_size
    generator = np.random.default_rng([request.step, request.group])
    values = generator.integers(0, 256, (len(request.samples), px, px, 3), dtype=np.uint8)
    return Batch(request, torch.from_numpy(values).permute(0, 3, 1, 2), torch.from_numpy(LABELS[request.samples]), ())


def run(device="cpu", *, graphs, precision="fp32", per_pass=1, compiles=False, network=None):
    """Train for 16 steps of two sizes and two ghost batches. Return the losses and the trained weights."""
    recipe = validate_recipe(
        get_recipe("quick").to_json()
        | {
            "progressive": PLAN.to_json(), "epochs": 1, "ema_decay": 0.9, "batch_size": 8,
            "ghost_batch_size": 4,
            "precision": precision, "compile": compiles, "cuda_graphs": graphs,
        },
        where="test",
    )  # fmt: skip
    if network is None:
        torch.manual_seed(0)
        network = create("efficientnetv2_b0", num_classes=2)
    device = torch.device(device)
    state = init_state(place(network, device), recipe)
    steps = train_steps(
        state,
        map(noise, TrainSampler(LABELS, PLAN, STEPS, 8, 4, None, Key.of(0))),
        StepContext(recipe, network.preprocessing, num_classes=2, key=Key.of(0), device=device),
        length=RunLength(STEPS, steps_per_epoch=4),
        microbatches=MicrobatchPlan({32: per_pass, 48: per_pass}),
    )
    losses = [float(done.loss) for done in steps]
    return losses, {name: tensor.cpu() for name, tensor in state.eval_network.state_dict().items()}


@pytest.fixture
def simulated(monkeypatch):
    """A graph on a CPU: a replay runs the pass on its own copies of the inputs. Counts captures and replays."""
    counts = SimpleNamespace(captured=0, replayed=0)

    def captured(compute, inputs, drops):
        fixed, loss = [tensor.clone() for tensor in inputs], torch.zeros(())
        counts.captured += 1

        def replay():
            counts.replayed += 1
            for drop, kept in zip(drops, fixed[2:], strict=True):
                drop.kept = kept
            loss.copy_(compute(fixed[0], fixed[1]))

        return cuda_graphs._Graph(SimpleNamespace(replay=replay), fixed, loss)

    monkeypatch.setattr(cuda_graphs, "_unsupported", lambda network, device, world, recipe: None)
    monkeypatch.setattr(cuda_graphs, "_captured", captured)
    return counts


def same(found, wanted):
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], tensor) for name, tensor in wanted[1].items())


@pytest.mark.parametrize("per_pass", [1, 2])
def test_replayed_passes_train_to_the_same_bits(simulated, per_pass):
    """Both sizes are captured after three passes of each, with and without dropout."""
    found = run(graphs=True, per_pass=per_pass)
    passes = STEPS * 2 // per_pass
    assert (simulated.captured, simulated.replayed) == (2, passes - 2 * cuda_graphs.WARM_UP)
    same(found, run(graphs=False, per_pass=per_pass))


def test_graphs_of_an_earlier_stage_are_freed(simulated, monkeypatch):
    """Dropout begins in the second stage. The memory of a graph is for nothing else."""
    freed = []
    monkeypatch.setattr(cuda_graphs, "release_memory", freed.append)
    monkeypatch.setitem(globals(), "PLAN", ProgressiveSchedule(stages=2, image_size=32, dropout=Ramp(0, 0.3)))
    run(graphs=True)
    assert simulated.captured == 2
    assert len(freed) == 1


def test_failed_capture_continues_without_graphs(simulated, monkeypatch, caplog):
    def fail(compute, inputs, drops):
        for drop in drops:
            drop.kept = torch.zeros(())
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "_captured", fail)
    with caplog.at_level("INFO"):
        found = run(graphs=True)
    assert caplog.text.count("not permitted") == 1, "it is tried once"
    same(found, run(graphs=False))


def test_other_networks_and_devices_run_as_usual(monkeypatch, caplog):
    recipe = validate_recipe(get_recipe("quick").to_json(), where="test")
    one, several = SimpleNamespace(is_distributed=False), SimpleNamespace(is_distributed=True)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    network = create("efficientnetv2_b0", num_classes=2)
    assert cuda_graphs._unsupported(network, gpu, one, recipe) is None
    assert "cpu" in cuda_graphs._unsupported(network, cpu, one, recipe)
    assert "processes" in cuda_graphs._unsupported(network, gpu, several, recipe)
    other = create("torchvision:mobilenet_v3_small", num_classes=2)
    assert "library" in cuda_graphs._unsupported(other, gpu, one, recipe)
    with monkeypatch.context() as amd:
        amd.setattr(torch.version, "hip", "7.0")
        assert "NVIDIA" in cuda_graphs._unsupported(network, gpu, one, recipe)
    with caplog.at_level("INFO"):
        assert not cuda_graphs.CudaGraphs(network, cpu, one, recipe).enabled
        assert not caplog.text, "it is no news that a CPU has none"
        assert not cuda_graphs.CudaGraphs(network, gpu, several, recipe).enabled
        assert "processes" in caplog.text
    always = validate_recipe(get_recipe("quick").to_json() | {"progressive": CONTINUOUS.to_json()}, where="test")
    assert "progressive" in cuda_graphs._unsupported(network, gpu, one, always)
    network.recomputed = frozenset({0})
    assert "checkpoint_stages" in cuda_graphs._unsupported(network, gpu, one, recipe)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("per_pass", [1, 2])
def test_graphs_on_a_gpu_train_to_the_same_bits(precision, per_pass, monkeypatch):
    """On the last device, which may not be the current one."""
    device, replays, replay = f"cuda:{torch.cuda.device_count() - 1}", [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph)))
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        found = run(device, graphs=True, precision=precision, per_pass=per_pass)
        assert len(replays) == STEPS * 2 // per_pass - 2 * cuda_graphs.WARM_UP
        same(found, run(device, graphs=False, precision=precision, per_pass=per_pass))


@pytest.mark.gpu
@needs_gpu
def test_compiled_passes_are_captured(caplog):
    with caplog.at_level("INFO"):
        losses, _ = run("cuda", graphs=True, precision="bf16", compiles=True)
    assert "CUDA graphs are not used" not in caplog.text
    assert losses == pytest.approx(run("cuda", graphs=False, precision="bf16", compiles=True)[0], rel=0.05)
