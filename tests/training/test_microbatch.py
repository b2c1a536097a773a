"""Ghost batches per pass change only the memory use. Out of memory, a step repeats with fewer per pass."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.messages import mentioning
from tests.training.test_loop import SMALL, gray, running

from efficientnetv2.models.factory import create
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp, StepSettings
from efficientnetv2.training import loop
from efficientnetv2.training.microbatch import MicrobatchPlan, divisors
from efficientnetv2.utils.errors import InputError, MemoryShortError

PLAN = ProgressiveSchedule(
    stages=2, image_size=Ramp(32, 48), dropout=0.4, drop_path=0.4, mixup_alpha=0.3, randaugment=Ramp(5, 10)
)
SGD = {"optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}, "ema_decay": 0.9, "ghost_batch_size": 2}


def small():
    torch.manual_seed(0)
    return create(SMALL, num_classes=3)


def noisy(request):
    """Noisy images. For uniform images batch norm would amplify rounding errors."""
    batch = gray(request)
    noise = torch.Generator().manual_seed(request.step * 100 + request.group)
    spread = torch.randint(-40, 40, batch.images.shape, generator=noise)
    return replace(batch, images=(batch.images + spread).clamp(0, 255).to(torch.uint8))


def run(microbatches, *, steps=6, network=None, plan=PLAN):
    """Losses, state, and ghost batches per pass of each step. A step has four ghost batches of two images."""
    network, state, done = running(
        plan, steps, network=network or small(), pictures=noisy, microbatches=microbatches, **SGD
    )
    seen = [(float(one.loss), one.microbatches) for one in done]
    return [loss for loss, _ in seen], state, [each for _, each in seen]


def test_size_uses_the_value_of_the_next_larger_known_size():
    known = MicrobatchPlan({64: 8, 128: 2})
    assert [known.at(px) for px in (32, 64, 65, 128, 129)] == [8, 8, 2, 2, 1]


def test_halving_applies_to_larger_but_not_to_smaller_images():
    known = MicrobatchPlan({64: 8, 96: 5, 128: 2})
    assert known.halved(64) == MicrobatchPlan({64: 4, 96: 4, 128: 2})
    assert known.halved(96) == MicrobatchPlan({64: 8, 96: 2, 128: 2})
    assert known.halved(80) == MicrobatchPlan({64: 8, 80: 2, 96: 2, 128: 2})
    assert known.halved(128).halved(128) == MicrobatchPlan({64: 8, 96: 5, 128: 1})


def test_divisors_by_hand():
    assert divisors(12, most=12) == [1, 2, 3, 4, 6, 12]
    assert divisors(12, most=5) == [1, 2, 3, 4]
    assert divisors(1, most=0) == []


@pytest.mark.parametrize("count", [2, 3, 4])
def test_losses_and_weights_do_not_depend_on_ghost_batches_per_pass(count):
    losses, one, _ = run(MicrobatchPlan())
    more_losses, more, _ = run(MicrobatchPlan({32: count, 48: count}))
    assert more_losses == pytest.approx(losses, abs=1e-5)
    for state in ("network", "ema"):
        kept, wanted = more.state_dict()[state], one.state_dict()[state]
        assert set(kept) == set(wanted)
        for name, tensor in kept.items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    assert one.network.stem.norm.num_batches_tracked == 6, "a step is one batch, of however many groups"


def refusing(most, *, when="forward", error=None):
    """A model that runs out of memory above ``most`` images of 48 px."""
    network = small()
    passes = []

    def short(images):
        if images.shape[-1] == 48 and len(images) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def look(module, inputs):
        passes.append((inputs[0].shape[-1], len(inputs[0])))
        if when == "forward":
            short(inputs[0])
        else:
            # The gradients of the classifier exist at this point, those of the stem do not.
            inputs[0].requires_grad_().register_hook(lambda grad, images=inputs[0]: short(images))

    network.register_forward_pre_hook(look)
    return network, passes


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_out_of_memory_repeats_the_step_with_half_the_ghost_batches_per_pass(when):
    """From the second stage. The result has the same bits as a run that begins with half."""
    network, passes = refusing(4, when=when)
    losses, state, microbatches = run(MicrobatchPlan({32: 4, 48: 4}), network=network)
    assert [each.at(48) for each in microbatches] == [4, 4, 4, 2, 2, 2]
    assert [each.at(32) for each in microbatches] == [4] * 6
    assert passes == [(32, 8)] * 3 + [(48, 8)] + [(48, 4)] * 6
    wanted_losses, wanted, _ = run(MicrobatchPlan({32: 4, 48: 2}))
    assert losses == wanted_losses
    for name, tensor in state.network.state_dict().items():
        assert torch.equal(tensor, wanted.network.state_dict()[name]), name


@pytest.mark.parametrize(("mixup", "fix"), [(0.3, "image_size"), (0.0, "ghost_batch_size=1")])
def test_single_ghost_batch_that_does_not_fit_suggests_a_smaller_one(mixup, fix):
    """With mixup, a group needs two images."""
    network, _ = refusing(1)
    with pytest.raises(InputError, match=mentioning("2", "48", fix)):
        run(MicrobatchPlan({32: 4, 48: 4}), network=network, plan=replace(PLAN, mixup_alpha=mixup))


def test_other_errors_are_not_treated_as_out_of_memory():
    network, passes = refusing(4, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        run(MicrobatchPlan({32: 4, 48: 4}), network=network)
    assert passes[-1] == (48, 8), "it is not tried again"


def test_repeated_step_discards_its_first_passes():
    """The second of two passes fails. Gradients and statistics of the first do not count twice."""
    network, passes = small(), []

    def look(module, inputs):
        passes.append(len(inputs[0]))
        if len(passes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    network.register_forward_pre_hook(look)
    losses, state, _ = run(MicrobatchPlan({32: 2, 48: 2}), steps=2, network=network)
    assert passes == [4, 4] + [2] * 8
    wanted_losses, wanted, _ = run(MicrobatchPlan({32: 1, 48: 1}), steps=2)
    assert losses == wanted_losses
    for name, tensor in state.network.state_dict().items():
        assert torch.equal(tensor, wanted.network.state_dict()[name]), name


def test_step_is_not_repeated_after_gradients_were_sent(monkeypatch):
    """Other processes would add them twice. The run stops and continues with --resume."""
    network = small()

    def short(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network.register_forward_pre_hook(short)
    sent = SimpleNamespace(
        sending=True, begin_step=lambda image_size: None, forward_pass=lambda *, last: nullcontext(network)
    )
    step = [SimpleNamespace(request=SimpleNamespace(setting=StepSettings(48)), labels=torch.zeros(2))] * 4
    context = SimpleNamespace(device=torch.device("cpu"), groups=8)
    state = SimpleNamespace(network=network, scaler=None)
    monkeypatch.setattr(loop, "forward_backward", lambda network, groups, context, forward, *_: forward(torch.zeros(2)))
    with pytest.raises(MemoryShortError, match=mentioning("other processes", "step")):
        loop._accumulate_gradients(
            state, step, context, SimpleNamespace(), sent, SimpleNamespace(captured=False), MicrobatchPlan({48: 4})
        )
