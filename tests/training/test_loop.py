"""Training loop: effect of the schedule on the model and the batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.models.blocks import DropPath
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training import loop
from efficientnetv2.training.loop import StepContext, train_steps
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.training.train_state import init_state
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.random_key import Key

SMALL = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 2),
        Stage(fused_mbconv(expand=4, kernel=3), 2, 16, 2),
        Stage(mbconv(expand=4, kernel=3, se=0.25), 2, 24, 2),
    ),
    head_channels=32,
)
CPU = torch.device("cpu")
LABELS = np.arange(24) % 3


def recipe_of(progressive, **changes):
    plain = (
        get_recipe("quick").to_json()
        | {"progressive": progressive.to_json(), "epochs": 1, "ema_decay": None}
        | {"precision": "fp32", "compile": False}
        | changes
    )
    return validate_recipe(plain, where="test")


def gray(request):
    """Uniform images of different gray values, so that any change of a pixel is visible."""
    px = request.setting.image_size
    values = torch.from_numpy(40 + 5 * request.samples).to(torch.uint8)
    images = values[:, None, None, None].expand(-1, 3, px, px).contiguous(memory_format=torch.channels_last)
    return Batch(request, images, torch.from_numpy(LABELS[request.samples]), ())


def running(progressive, steps, *, network=None, pictures=gray, microbatches=ONE_GROUP_PER_PASS, **changes):
    """Set up the loop. Return the model, the state and an iterator over the steps."""
    torch.manual_seed(0)
    network = network or create(SMALL, num_classes=3)
    recipe = recipe_of(progressive, **({"batch_size": 8, "ghost_batch_size": 8} | changes))
    requests = TrainSampler(
        LABELS, recipe.progressive, steps, recipe.batch_size, recipe.ghost_batch_size, None, Key.of(0)
    )
    state = init_state(network, recipe)
    done = train_steps(
        state,
        map(pictures, requests),
        StepContext(recipe, Preprocessing(image_size=32), num_classes=3, key=Key.of(0), device=CPU),
        length=RunLength(steps, steps_per_epoch=len(LABELS) / recipe.batch_size),
        microbatches=microbatches,
    )
    return network, state, done


def test_every_regularizer_changes_at_the_first_step_of_each_stage(monkeypatch):
    """Four stages: sizes 32, 48, 64, 80; dropout 0 to 0.6; drop path 0 to 0.3; RandAugment; mixup 0 to 0.6."""
    plan = ProgressiveSchedule(
        stages=4,
        image_size=Ramp(32, 80),
        dropout=Ramp(0.0, 0.6),
        drop_path=Ramp(0.0, 0.3),
        randaugment=Ramp(0, 15),
        mixup_alpha=Ramp(0.0, 0.6),
    )
    network, seen = create(SMALL, num_classes=3), []

    def look(module, inputs):
        paths = [m.rate for m in module.modules() if isinstance(m, DropPath)]
        seen.append({"dropout": module.dropout.p, "drop_path": max(paths), "images": inputs[0].clone()})

    network.register_forward_pre_hook(look)
    magnitudes = []
    real = loop.augment

    def augmented(images, labels, **facts):
        floats, soft = real(images, labels, **facts)
        magnitudes.append(facts["setting"].randaugment)
        seen_labels.append(soft)
        return floats, soft

    seen_labels: list[torch.Tensor] = []
    monkeypatch.setattr(loop, "augment", augmented)
    _, _, steps = running(plan, 8, network=network)
    for _ in steps:
        pass
    blocks = sum(1 for m in network.modules() if isinstance(m, DropPath))
    fractions = sorted(m.depth_fraction for m in network.modules() if isinstance(m, DropPath))
    assert blocks == 4  # the blocks with a shortcut, of six
    for stage in range(4):
        first = seen[2 * stage]
        assert first["images"].shape == (8, 3, 32 + 16 * stage, 32 + 16 * stage)
        assert first["dropout"] == pytest.approx(0.2 * stage)
        assert first["drop_path"] == pytest.approx(0.1 * stage * fractions[-1])
        assert magnitudes[2 * stage] == pytest.approx(5 * stage)
        mixed = ((seen_labels[2 * stage] > 0).sum(1) > 1).any().item()
        assert mixed == (stage > 0), "mixup is off in the first stage, on in the others"


def test_images_change_only_with_randaugment():
    for magnitude, changes in ((None, False), (Ramp(9, 9), True)):
        network, inputs = create(SMALL, num_classes=3), []
        network.register_forward_pre_hook(lambda module, given, kept=inputs: kept.append(given[0]))
        _, _, steps = running(ProgressiveSchedule(image_size=32, randaugment=magnitude), 1, network=network)
        next(steps)
        flat = inputs[0].flatten(2)
        assert bool((flat != flat[:, :, :1]).any()) == changes


def test_dropout_is_active_and_reproducible():
    """Two runs with the same key have equal losses. Another rate changes the losses."""

    def losses(rate):
        _, _, steps = running(ProgressiveSchedule(image_size=32, dropout=rate, drop_path=rate), 3)
        return [float(done.loss) for done in steps]

    assert losses(0.5) == losses(0.5)
    assert losses(0.5) != losses(0.0)


def test_loop_without_regularization_equals_a_plain_pytorch_loop():
    """Ten lines of PyTorch give the same weights for the same images."""
    steps = 4
    torch.manual_seed(0)
    network = create(SMALL, num_classes=3)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True)
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    requests = TrainSampler(LABELS, ProgressiveSchedule(image_size=32), steps, 8, 8, None, Key.of(0))
    means = Preprocessing(image_size=32)
    for request in requests:
        batch = gray(request)
        loss = nn.functional.cross_entropy(
            network(normalize(batch.images, mean=means.mean, std=means.std)), batch.labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ours, _, done = running(
        ProgressiveSchedule(image_size=32),
        steps,
        optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9},
        schedule={"name": "constant"},
    )
    for _ in done:
        pass
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_are_averaged_over_ghost_batches_with_separate_statistics():
    """Two ghost batches of 4: the step uses the mean of their separate gradients."""
    torch.manual_seed(0)
    network = create(SMALL, num_classes=3, dropout=0.0, drop_path=0.0).train()
    request = next(iter(TrainSampler(LABELS, ProgressiveSchedule(image_size=32), 1, 8, 8, None, Key.of(0))))
    batch, means = gray(request), Preprocessing(image_size=32)
    images = normalize(batch.images, mean=means.mean, std=means.std)
    wanted = torch.zeros_like(network.classifier.weight)
    for half in (slice(0, 4), slice(4, 8)):
        network.zero_grad()
        nn.functional.cross_entropy(network(images[half]), batch.labels[half]).backward()
        wanted += network.classifier.weight.grad / 2
    torch.manual_seed(0)
    fresh = create(SMALL, num_classes=3, dropout=0.0, drop_path=0.0)
    before = fresh.classifier.weight.detach().clone()
    ours, _, done = running(
        ProgressiveSchedule(image_size=32),
        1,
        network=fresh,
        ghost_batch_size=4,
        optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.0},
        schedule={"name": "constant"},
        augment={"flip": "none"},
    )
    next(done)
    torch.testing.assert_close(before - ours.classifier.weight.detach(), wanted, rtol=1e-4, atol=1e-6)


def test_restored_state_continues_with_the_same_bits():
    plan = ProgressiveSchedule(stages=2, image_size=Ramp(32, 48), dropout=Ramp(0.1, 0.5), drop_path=0.2)
    changes = {"ema_decay": 0.9, "optimizer": {"name": "rmsprop", "lr": 0.01, "epsilon": 1e-3, "weight_decay": 1e-5}}
    whole, state, done = running(plan, 6, **changes)
    for _ in done:
        pass
    _, part, done = running(plan, 6, **changes)
    for _ in range(3):
        next(done)
    kept = part.state_dict()
    torch.manual_seed(99)
    _, resumed, _ = running(plan, 6, network=create(SMALL, num_classes=3), **changes)
    resumed.load_state_dict(kept)
    recipe = recipe_of(plan, batch_size=8, ghost_batch_size=8, **changes)
    rest = TrainSampler(LABELS, plan, 6, 8, 8, None, Key.of(0), first_step=resumed.step)
    for _ in train_steps(
        resumed,
        map(gray, rest),
        StepContext(recipe, Preprocessing(image_size=32), num_classes=3, key=Key.of(0), device=CPU),
        length=RunLength(6, steps_per_epoch=3),
    ):
        pass
    for one, other in ((state.network, resumed.network), (state.eval_network, resumed.eval_network)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    assert whole is state.network


def test_data_wait_time_is_measured_separately(monkeypatch):
    """Each ghost batch takes 3 s to load, so a step of two waits 6 s. Computing does not count."""
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(request):
        now[0] += 3
        return gray(request)

    def trained(*given, real=loop.forward_backward):
        now[0] += 50
        return real(*given)

    monkeypatch.setattr(loop, "forward_backward", trained)
    _, _, steps = running(ProgressiveSchedule(image_size=32), 3, pictures=slow, ghost_batch_size=4)
    for done in steps:
        now[0] += 1000
        assert (done.data_wait_s, done.images) == (6, 8)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "rmsprop"])
def test_gradual_unfreezing_starts_at_the_head(kind):
    """Five layer groups in 8 steps: head at step 0, stages at 1, 2, 3, stem at 4."""
    network = create(SMALL, num_classes=3)
    names = ["head.conv.weight", "blocks.4.", "blocks.2.", "blocks.0.", "stem.conv.weight"]
    before = {name: weight.clone() for name, weight in network.named_parameters() if weight.ndim > 1}
    begun = {}
    optimizer = get_recipe("finetune").optimizer.model_dump() | {
        "name": kind,
        "lr": 0.1,
        "gradual_unfreeze": 0.5,
        "clip_norm": None,
    }
    network, _, steps = running(
        ProgressiveSchedule(stages=1, image_size=32),
        8,
        network=network,
        optimizer=optimizer,
        schedule={"name": "constant"},
    )
    for done in steps:
        for name, weight in network.named_parameters():
            if name in before and not torch.equal(weight, before[name]):
                begun.setdefault(next((one for one in names if name.startswith(one)), name), done.step)
    assert {name: begun[name] for name in names} == dict(zip(names, [0, 1, 2, 3, 4], strict=True))


def test_layer_decay_and_head_multiplier_scale_the_updates():
    """One step of SGD from equal weights: 1/16 (stem) to 1 (head) of the update without decay, 5 for the classifier.

    The first of two warm-up steps halves all updates.
    """

    def moved(**rates):
        torch.manual_seed(0)
        network = create(SMALL, num_classes=3)
        before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
        optimizer = {"name": "sgd", "lr": 1.0, "momentum": 0.0} | rates
        schedule = {"name": "constant", "warmup_epochs": 2 / 3}
        _, _, steps = running(
            ProgressiveSchedule(image_size=32), 3, network=network, optimizer=optimizer, schedule=schedule
        )
        assert next(steps).lr == pytest.approx(0.5)
        return {name: weight.detach() - before[name] for name, weight in network.named_parameters()}

    plain, decayed = moved(), moved(layer_decay=0.5, head_lr_mult=5)
    shares = {"stem.": 1 / 16, "blocks.0.": 1 / 8, "blocks.2.": 1 / 4, "blocks.4.": 1 / 2, "head.": 1, "classifier.": 5}
    for one, share in shares.items():
        names = [name for name in plain if name.startswith(one) and plain[name].abs().max() > 1e-3]
        assert names, one
        for name in names:
            torch.testing.assert_close(decayed[name], share * plain[name], rtol=1e-3, atol=1e-6, msg=name)


def test_length_of_a_step_is_the_clip_norm():
    """SGD without momentum at learning rate 1 subtracts the gradient, which is clipped to norm 0.01."""
    network = create(SMALL, num_classes=3)
    before = [weight.detach().clone() for weight in network.parameters()]
    _, _, steps = running(
        ProgressiveSchedule(image_size=32),
        1,
        network=network,
        optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.01},
        schedule={"name": "constant"},
    )
    next(steps)
    moved = [weight.detach() - was for weight, was in zip(network.parameters(), before, strict=True)]
    assert torch.cat([one.flatten() for one in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_ema_uses_the_step_of_the_run():
    """Decays 1/10, 2/11, 3/12, ... because of the warm-up, then 0.5, of the weights after each step."""
    network = create(SMALL, num_classes=3)
    average = network.classifier.weight.detach().clone()
    _, state, steps = running(ProgressiveSchedule(image_size=32), 12, network=network, ema_decay=0.5)
    for step, _ in enumerate(steps):
        decay = min(0.5, (1 + step) / (10 + step))
        average += (1 - decay) * (network.classifier.weight.detach() - average)
    assert (step, decay) == (11, 0.5)
    torch.testing.assert_close(state.ema.network.classifier.weight, average)


def test_each_draw_step_and_group_has_its_own_randomness(monkeypatch):
    """48 draws are two epochs of 24 images. Each of the 6 steps has two groups."""
    ids, mixes, masks = [], [], []
    augment, ghost_batches = loop.augment, loop.ghost_batches

    def augmented(images, labels, **facts):
        ids.extend(facts["ids"].tolist())
        mixes.append(facts["mix_key"])
        return augment(images, labels, **facts)

    def ghosts(model, *, images, seeds):
        masks.extend(seeds)
        return ghost_batches(model, images=images, seeds=seeds)

    monkeypatch.setattr(loop, "augment", augmented)
    monkeypatch.setattr(loop, "ghost_batches", ghosts)
    plan = ProgressiveSchedule(image_size=32, dropout=0.3, mixup_alpha=0.2)
    _, _, steps = running(plan, 6, ghost_batch_size=4)
    assert len(list(steps)) == 6
    assert len(set(ids)) == len(ids) == 48
    assert len(set(mixes)) == len(mixes) == 12
    assert len(set(masks)) == len(masks) == 12
