"""Optimizers, schedules and averages compared with their formulas, by hand."""

import math

import pytest
import torch
from torch import nn

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.models.factory import create
from efficientnetv2.models.ghost_batch import GhostBatchNormStats
from efficientnetv2.training.optim import TensorFlowRMSprop, build_optimizer, lr_factor
from efficientnetv2.training.recipe import Optimizer, Schedule
from efficientnetv2.training.train_state import EMA


def test_rmsprop_equals_tensorflow():
    """Mean square starts at 1, epsilon is inside the root, the learning rate inside the momentum buffer.

    Gradient 2, lr 0.1: square 0.9 + 0.1 * 4 = 1.3; buffer 0.2
    sqrt(1.301) = 0.175345; weight 1 - 0.175345.
    Then lr 0.05: square 0.9 * 1.3 + 0.4 = 1.57; buffer 0.9 * 0.175345 + 0.1
    sqrt(1.571) = 0.237594.
    """
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = TensorFlowRMSprop([weight], 0.1, decay=0.9, momentum=0.9, epsilon=1e-3)
    weight.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step()
    first = 0.2 / math.sqrt(1.301)
    assert weight.item() == pytest.approx(1 - first, abs=1e-12)
    optimizer.param_groups[0]["lr"] = 0.05
    optimizer.step()
    second = 0.9 * first + 0.1 / math.sqrt(1.571)
    assert weight.item() == pytest.approx(1 - first - second, abs=1e-12)


def test_rmsprop_differs_from_pytorch_for_equal_gradients():
    def after(kind):
        weight = nn.Parameter(torch.tensor([1.0]))
        optimizer = kind([weight])
        for _ in range(3):
            weight.grad = torch.tensor([0.01])
            optimizer.step()
        return weight.item()

    ours = after(lambda w: TensorFlowRMSprop(w, 0.1))
    theirs = after(lambda w: torch.optim.RMSprop(w, 0.1, alpha=0.9, momentum=0.9, eps=1e-3))
    # PyTorch starts at 0, so its first step is lr / sqrt(0.1) = 0.3 for any gradient.
    assert 1 - ours < 0.02
    assert 1 - theirs > 0.5


def test_weight_decay_is_l2_in_the_loss_for_rmsprop():
    """Decay 0.5 on weight 2 adds 1 to the gradient."""
    decayed, plain = (nn.Parameter(torch.tensor([[2.0]])) for _ in range(2))
    TensorFlowRMSprop([decayed], 0.1, weight_decay=0.5)
    one = TensorFlowRMSprop([decayed], 0.1, weight_decay=0.5)
    other = TensorFlowRMSprop([plain], 0.1)
    decayed.grad, plain.grad = torch.tensor([[3.0]]), torch.tensor([[4.0]])
    one.step()
    other.step()
    assert decayed.item() == plain.item()


@pytest.mark.parametrize("kind", ["rmsprop", "sgd", "adamw"])
def test_biases_and_norms_are_not_decayed(kind):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = build_optimizer(network, Optimizer(name=kind, lr=0.1, weight_decay=0.3)).param_groups
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    for name, weight in network.named_parameters():
        matrix = name in {"0.weight", "3.weight"}
        assert decay[id(weight)] == (0.3 if matrix else 0.0), name


class Transformer(nn.Module):
    """Parameters as in other models. timm's ``no_weight_decay`` names one of them."""

    def __init__(self):
        super().__init__()
        self.layer_scale = nn.Parameter(torch.ones(4, 1, 1))
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.ones(1, 9, 4))
        self.relative_position_bias_table = nn.Parameter(torch.ones(9, 2))
        self.qkv = nn.Parameter(torch.ones(12, 4))
        self.head = nn.Linear(4, 1)

    def no_weight_decay(self):
        return {"pos_embed"}


def test_scales_tokens_and_position_embeddings_are_not_decayed():
    network = nn.Sequential(Transformer())
    groups = build_optimizer(network, Optimizer(name="adamw", lr=0.1, weight_decay=0.3)).param_groups
    decayed = {id(one) for group in groups if group["weight_decay"] for one in group["params"]}
    assert {name for name, one in network.named_parameters() if id(one) in decayed} == {"0.qkv", "0.head.weight"}


def test_skipped_first_step_leaves_no_momentum():
    """In fp16, gradients of the first step overflow. The next step equals a normal first step."""
    weights = [nn.Parameter(torch.tensor([[1.0, 2.0]])) for _ in range(2)]
    left_out, plain = (
        build_optimizer(nn.ParameterList([one]), Optimizer(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0))
        for one in weights
    )
    scaler = torch.amp.GradScaler("cpu")
    for gradients in ([math.inf, 1.0], [3.0, -1.0], [2.0, 4.0]):
        weights[0].grad = scaler.scale(torch.tensor([gradients]))
        scaler.step(left_out)
        scaler.update()
        if math.isfinite(sum(gradients)):
            weights[1].grad = torch.tensor([gradients])
            plain.step()
    torch.testing.assert_close(weights[0], weights[1])
    reference = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    theirs = torch.optim.SGD([reference], 0.1, momentum=0.9, nesterov=True)
    for gradients in ([3.0, -1.0], [2.0, 4.0]):
        reference.grad = torch.tensor([gradients])
        theirs.step()
    torch.testing.assert_close(weights[1], reference)


def test_only_the_classifier_gets_the_head_multiplier():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    groups = build_optimizer(network, Optimizer(name="adamw", lr=0.1, head_lr_mult=5)).param_groups
    shares = {id(weight): group["lr_share"] for group in groups for weight in group["params"]}
    assert [shares[id(weight)] for weight in network.parameters()] == [1, 1, 5, 5]


def test_every_classifier_of_a_model_gets_the_head_multiplier():
    """timm's distilled transformers average two classifiers."""
    with torch.device("meta"):
        network = create("timm:deit_tiny_distilled_patch16_224", num_classes=3)
    groups = build_optimizer(network, Optimizer(name="sgd", lr=0.1, head_lr_mult=5)).param_groups
    shares = {id(weight): group["lr_share"] for group in groups for weight in group["params"]}
    fast = {name for name, weight in network.named_parameters() if shares[id(weight)] == 5}
    assert fast == {f"module.{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")}


def shares_of(network, **given):
    """Learning-rate factor of each parameter, by name."""
    groups = build_optimizer(network, Optimizer(name="sgd", lr=0.1, **given)).param_groups
    shares = {id(weight): group["lr_share"] for group in groups for weight in group["params"]}
    return {name: shares[id(weight)] for name, weight in network.named_parameters()}


# Four layer groups: stem 0.5**3, stage 1 (block 0) 0.5**2, stage 2 (blocks 1 and 2) 0.5, head and classifier 1.
@pytest.mark.parametrize(("head_lr_mult", "classifier"), [(1, 1), (5, 5), (0.1, 0.1)])
def test_layer_decay_halves_the_rate_per_layer_group(head_lr_mult, classifier):
    stages = (Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1), Stage(fused_mbconv(expand=1, kernel=3), 2, 8, 2))
    network = create(Architecture(stem_channels=8, stages=stages, head_channels=8), num_classes=3)
    expected = {
        "classifier": classifier, "head": 1, "blocks.2": 0.5, "blocks.1": 0.5, "blocks.0": 0.25, "stem": 0.125,
    }  # fmt: skip
    shares = shares_of(network, layer_decay=0.5, head_lr_mult=head_lr_mult)
    reached = {one: {share for name, share in shares.items() if name.startswith(f"{one}.")} for one in expected}
    assert reached == {one: {share} for one, share in expected.items()}
    assert sum(any(name.startswith(f"{one}.") for one in expected) for name in shares) == len(shares)


def test_layer_decay_applies_to_torchvision_models():
    """ResNet: stem, four stages, classifier. Without decay, all but the classifier have factor 1."""
    with torch.device("meta"):
        network = create("torchvision:resnet18", num_classes=3)
    names = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    for decay, expected in ((0.8, [0.8**5, 0.8**5, 0.8**4, 0.8**3, 0.8**2, 0.8, 5]), (1, [1, 1, 1, 1, 1, 1, 5])):
        shares = shares_of(network, layer_decay=decay, head_lr_mult=5)
        for name, share in zip(names, expected, strict=True):
            reached = [value for one, value in shares.items() if one.startswith(f"module.{name}.")]
            assert reached == pytest.approx([share] * len(reached)), name
            assert reached


def test_staircase_schedule_equals_the_released_code():
    """ImageNet: warm-up for 5 epochs, then 0.97 per 2.4 epochs counted from the start."""
    schedule = Schedule(name="staircase", warmup_epochs=5, gamma=0.97, step_epochs=2.4)

    def share(epoch):
        return lr_factor(schedule, round(epoch * 100), steps=35_000, steps_per_epoch=100)

    assert share(2.5) == pytest.approx(0.5, abs=0.003)
    assert share(4.99) == pytest.approx(1.0)
    assert share(5) == pytest.approx(0.97**2)
    assert share(7.19) == pytest.approx(0.97**2)
    assert share(7.2) == pytest.approx(0.97**3)
    assert share(349) == pytest.approx(0.97**145)


def test_cosine_schedule_from_the_peak_to_the_minimum():
    schedule = Schedule(name="cosine", warmup_epochs=1, min_lr_ratio=0.1)
    shares = [lr_factor(schedule, step, steps=110, steps_per_epoch=10) for step in (0, 9, 10, 60, 109)]
    assert shares[:3] == pytest.approx([0.1, 1.0, 1.0])
    assert shares[3] == pytest.approx(0.55)
    assert shares[4] == pytest.approx(0.1, abs=1e-3)


def test_short_run_reaches_its_peak_learning_rate():
    """One epoch of 100 steps: the warm-up of one epoch is limited to a quarter, 25 steps."""
    short = Schedule(name="cosine", warmup_epochs=1, max_warmup_fraction=0.25)
    shares = [lr_factor(short, step, steps=100, steps_per_epoch=100) for step in range(100)]
    assert shares[:25] == pytest.approx([(step + 1) / 25 for step in range(25)])
    assert shares[62] == pytest.approx(0.5, abs=0.03)
    assert shares[99] < 0.01
    long = [lr_factor(short, step, steps=1000, steps_per_epoch=100) for step in (0, 99, 100)]
    assert long == pytest.approx([0.01, 1.0, 1.0])


def test_ema_warms_up_and_averages_batch_norm_statistics():
    """Step 0: decay min(0.9, 1/10) = 0.1; step 1: 2/11."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    network[0].weight.data.fill_(1.0)
    ema = EMA(network, 0.9)
    network[0].weight.data.fill_(2.0)
    network[1].running_mean.fill_(5.0)
    ema.update(network, 0)
    assert ema.network[0].weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    assert ema.network[1].running_mean.item() == pytest.approx(0.9 * 5)
    ema.update(network, 1)
    assert ema.network[0].weight.item() == pytest.approx(2 / 11 * 1.9 + 9 / 11 * 2)
    ema.update(network, 10_000)
    before = ema.network[1].running_mean.item()
    network[1].running_mean.fill_(0.0)
    ema.update(network, 10_001)
    assert ema.network[1].running_mean.item() == pytest.approx(0.9 * before)


def test_ema_follows_replaced_buffers_and_ignores_non_persistent_ones():
    network = nn.Sequential(nn.BatchNorm1d(1))
    network.register_buffer("table", torch.ones(2), persistent=False)
    ema = EMA(network, 0.9)
    network[0].running_mean = torch.full((1,), 7.0)
    network.table.fill_(5.0)
    ema.update(network, 0)
    assert ema.network[0].running_mean.item() == pytest.approx(0.9 * 7)
    assert ema.network.table.tolist() == [1.0, 1.0]
    with pytest.raises(AssertionError):
        ema.update(nn.Sequential(nn.BatchNorm1d(1)), 1)


def test_ghost_batches_update_running_statistics_once():
    """They move once, towards the mean over the ghost batches."""
    torch.manual_seed(0)
    groups = [torch.randn(8, 3, 4, 4) * 2 + 1, torch.randn(8, 3, 4, 4) - 3]
    network = nn.Sequential(nn.BatchNorm2d(3)).train()
    network[0].running_mean.fill_(0.5)
    network[0].running_var.fill_(2.0)
    statistics = GhostBatchNormStats(network, groups=2, momentum=0.1)
    statistics.begin_step()
    for images in groups:
        network(images)
        statistics.after_groups(1)
    statistics.end_step(torch.zeros(()))
    means = torch.stack([g.mean(dim=(0, 2, 3)) for g in groups]).mean(0)
    variances = torch.stack([g.var(dim=(0, 2, 3), unbiased=True) for g in groups]).mean(0)
    torch.testing.assert_close(network[0].running_mean, 0.9 * 0.5 + 0.1 * means)
    torch.testing.assert_close(network[0].running_var, 0.9 * 2.0 + 0.1 * variances)


def test_one_ghost_batch_equals_the_update_of_pytorch():
    images = torch.randn(8, 3, 4, 4)
    ours, theirs = nn.BatchNorm2d(3).train(), nn.BatchNorm2d(3, momentum=0.01).train()
    statistics = GhostBatchNormStats(ours, groups=1, momentum=0.01)
    statistics.begin_step()
    ours(images)
    statistics.after_groups(1)
    statistics.end_step(torch.zeros(()))
    theirs(images)
    assert torch.equal(ours.running_var, theirs.running_var)


def test_statistics_that_overflow_in_fp16_are_not_updated():
    """One of two channels gets an infinity. The next step updates both."""
    network = nn.Sequential(nn.BatchNorm2d(2)).train()
    statistics = GhostBatchNormStats(network, groups=1, momentum=0.1, may_overflow=True)
    fine = torch.randn(4, 2, 3, 3)
    broken = fine.clone()
    broken[0, 1, 0, 0] = math.inf
    for images in (broken, fine):
        statistics.begin_step()
        network(images)
        statistics.after_groups(1)
        statistics.end_step(torch.zeros(()))
    once, twice = nn.BatchNorm2d(2).train(), nn.BatchNorm2d(2).train()
    once(fine)
    twice(fine)
    twice(fine)
    for name in ("running_mean", "running_var"):
        found = getattr(network[0], name)
        torch.testing.assert_close(found[0], getattr(twice, name)[0])
        torch.testing.assert_close(found[1], getattr(once, name)[1])


def test_ema_updates_a_shared_weight_once():
    layer = nn.Linear(1, 1, bias=False)
    network = nn.Sequential(layer, nn.ReLU(), layer)
    layer.weight.data.fill_(1.0)
    ema = EMA(network, 0.9)
    layer.weight.data.fill_(2.0)
    ema.update(network, 0)
    assert ema.network[2].weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)


@pytest.mark.parametrize(
    ("kind", "passed_on"),
    [
        ("rmsprop", {"decay": 0.8, "momentum": 0.7, "epsilon": 0.01}),
        ("sgd", {"momentum": 0.7, "nesterov": True}),
        ("adamw", {"betas": (0.7, 0.8), "eps": 0.01}),
    ],
)
def test_optimizer_has_the_values_of_the_recipe(kind, passed_on):
    made = build_optimizer(nn.Linear(2, 2), Optimizer(name=kind, lr=0.1, momentum=0.7, beta2=0.8, epsilon=0.01))
    assert passed_on.items() <= made.defaults.items()
    assert made.defaults["lr"] == 0.1
