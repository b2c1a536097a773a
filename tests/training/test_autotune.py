"""Precision and compiling of a run: chosen by measuring, logged and saved; and their effects."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides
from tests.training.test_loop import running
from torch import nn

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.models.blocks import Dropout
from efficientnetv2.models.factory import create
from efficientnetv2.models.ghost_batch import ghost_batches
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training import autotune
from efficientnetv2.training import compile as compiling
from efficientnetv2.training.autotune import choose_precision
from efficientnetv2.training.compile import compile_model
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.train_state import init_state
from efficientnetv2.utils import device as accelerate

CPU = torch.device("cpu")
SMALL = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1),
        Stage(fused_mbconv(expand=4, kernel=3), 2, 16, 1),
        Stage(mbconv(expand=4, kernel=3, se=0.25), 2, 24, 2),
    ),
    head_channels=32,
)


def network():
    torch.manual_seed(0)
    return create(SMALL, num_classes=3)


def recipe_of(*settings):
    return with_overrides(get_recipe("quick"), ["ghost_batch_size=8", "progressive.image_size=32", *settings])


def measured(monkeypatch, **seconds):
    """Replace the measured seconds per step, by precision and ``compiled``."""

    def side(self, precision, *, compiles=False):
        return lambda: seconds["compiled" if compiles else precision]

    monkeypatch.setattr(autotune, "lower_precision", lambda device: "bf16")
    monkeypatch.setattr(autotune._Bench, "side", side)


@pytest.mark.parametrize(("bf16_s", "chosen"), [(0.5, "bf16"), (0.95, "fp32"), (2.0, "fp32")])
def test_bf16_is_used_if_at_least_10_percent_faster(monkeypatch, bf16_s, chosen):
    measured(monkeypatch, fp32=1.0, bf16=bf16_s)
    choice = choose_precision(recipe_of(), network(), steps=200, device=CPU)
    assert choice.precision == chosen
    assert mentions(choice.note, f"{1 / bf16_s:.2f}")


@pytest.mark.parametrize(
    ("device", "hardware", "chosen"),
    [("cuda", "bf16", "bf16"), ("cuda", "fp16", "fp16"), ("cuda", None, "fp32"), ("cpu", "bf16", "fp32")],
)
def test_short_run_is_not_measured(monkeypatch, device, hardware, chosen):
    """A GPU takes the 16-bit format of the hardware. A CPU takes fp32, because it may be slower in bf16."""
    monkeypatch.setattr(autotune, "lower_precision", lambda device: hardware)
    monkeypatch.setattr(autotune._Bench, "side", lambda *words: pytest.fail("measured"))
    made = torch.device(device)
    choice = choose_precision(recipe_of("batch_size=8"), network(), steps=149, device=made)  # 1,192 images
    assert (choice.precision, choice.compile) == (chosen, False)


def test_cpu_measures_a_run_of_few_steps_with_large_batches(monkeypatch):
    """1,280 images: measuring takes a twentieth."""
    measured(monkeypatch, fp32=1.0, bf16=1.25)
    choice = choose_precision(recipe_of("batch_size=32"), network(), steps=40, device=CPU)
    assert (choice.precision, choice.compile) == ("fp32", False)
    assert mentions(choice.note, "0.80")


def test_gpu_takes_16_bits_unmeasured(monkeypatch):
    monkeypatch.setattr(autotune, "lower_precision", lambda device: "bf16")
    monkeypatch.setattr(autotune._Bench, "side", lambda *words: pytest.fail("measured"))
    choice = choose_precision(recipe_of("compile=off"), network(), steps=10_000, device=torch.device("cuda"))
    assert choice.precision == "bf16"


def test_precision_and_compile_of_the_recipe_are_used(monkeypatch):
    monkeypatch.setattr(autotune._Bench, "side", lambda *words: pytest.fail("measured"))
    choice = choose_precision(recipe_of("precision=fp32", "compile=on"), network(), steps=10_000, device=CPU)
    assert choice == autotune.PrecisionChoice("fp32", True, "")


@pytest.mark.parametrize(
    ("step_s", "compiled_s", "chosen"),
    [(0.5, 0.1, False), (10.0, 5.0, True), (10.0, 9.9, False)],  # too short; enough saved; too little saved
)
def test_run_is_compiled_if_it_saves_time(monkeypatch, step_s, compiled_s, chosen):
    measured(monkeypatch, fp32=step_s, compiled=compiled_s)
    said = logged_lines()
    choice = choose_precision(recipe_of("precision=fp32", "batch_size=8"), network(), steps=1_000, device=CPU)
    assert choice.compile is chosen
    assert said == (
        ["Measuring whether compiling saves time, with a few steps of the last stage."] if step_s == 10.0 else []
    )


def test_processes_shorten_the_estimated_run(monkeypatch):
    """1,000 steps of 10 s take 167 minutes with one process. Four take 42, too short for compiling."""
    measured(monkeypatch, fp32=10.0, compiled=5.0)
    recipe, steps = recipe_of("precision=fp32", "batch_size=8"), 1_000
    assert choose_precision(recipe, network(), steps=steps, device=CPU).compile
    together = choose_precision(recipe, network(), steps=steps, device=CPU, at_once=4)
    assert mentions(together.note, "42", "minutes")


def test_smaller_stages_shorten_the_estimated_run(monkeypatch):
    """A stage at half the size has a quarter of the pixels: 5/8 of 42 minutes."""
    measured(monkeypatch, fp32=10.0, compiled=5.0)
    growing = ("progressive.image_size={start: 32, end: 64}", "progressive.stages=2")
    recipe = recipe_of("precision=fp32", "batch_size=8", *growing)
    choice = choose_precision(recipe, network(), steps=1_000, device=CPU, at_once=4)
    assert mentions(choice.note, "26", "minutes")


@pytest.mark.parametrize(("minutes", "chosen"), [(15.0, False), (150.0, True)])
def test_time_limit_replaces_the_estimate_of_the_run(monkeypatch, minutes, chosen):
    """1,000 steps of 10 s take 167 minutes, but 15 are too short. 200 steps take 33, but 150 are enough."""
    measured(monkeypatch, fp32=10.0, compiled=5.0)
    steps, said = 1_000 if minutes == 15.0 else 200, logged_lines()
    recipe = recipe_of("precision=fp32", "batch_size=8")
    choice = choose_precision(recipe, network(), steps=steps, device=CPU, minutes=minutes)
    assert choice.compile is chosen
    assert bool(said) is chosen


@pytest.mark.parametrize(("within_s", "tried"), [(None, True), (1e6, True), (599.0, False), (0.0, False)])
def test_compiling_is_not_tried_without_time_for_it(within_s, tried, monkeypatch):
    measured(monkeypatch, fp32=10.0, compiled=5.0)
    said = logged_lines()
    choice = choose_precision(
        recipe_of("precision=fp32", "batch_size=8"), network(), steps=1_000, device=CPU,
        compile_within_s=within_s,
    )  # fmt: skip
    assert choice.compile is tried
    assert bool(said) is tried
    assert ("may take minutes" in choice.note) is not tried


def test_note_for_a_time_limit_does_not_mention_few_steps(monkeypatch):
    """The two steps are from the recipe's epochs. The number within the time limit is measured later."""
    measured(monkeypatch, fp32=1.0, bf16=0.95)
    choice = choose_precision(recipe_of(), network(), steps=2, device=CPU, minutes=10.0)
    assert choice == autotune.PrecisionChoice(
        "fp32",
        False,
        "Precision: fp32 (bf16 measured 1.05 times as fast as fp32). "
        "Not compiled (the run takes about 10 minutes, too short to save time).",
    )


def test_seconds_per_image_are_timed_with_the_largest_batch_in_memory(monkeypatch):
    tried = []

    def side(bench, precision):
        def step():
            tried.append(bench.images)
            if bench.images > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return 3.0

        return step

    monkeypatch.setattr(autotune._Bench, "side", side)
    assert autotune.seconds_per_image(recipe_of("batch_size=32", "precision=fp32"), network(), CPU) == 1.5
    assert tried == [8, 4, 2, 2]


def test_measuring_changes_neither_model_nor_random_state():
    given = network()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    choice = choose_precision(recipe_of("compile=off"), given, steps=200, device=CPU)
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict().items())
    assert all(weight.grad is None for weight in given.parameters())
    if accelerate.lower_precision(CPU) == "bf16":
        assert mentions(choice.note, "fp32")


def test_bf16_keeps_weights_and_gradients_in_fp32():
    given = network()
    seen = {}
    for name, module in given.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, out, name=name: seen.update({name: out.dtype}))
    with accelerate.autocast(CPU, "bf16"):
        logits = given(torch.rand(4, 3, 32, 32))
    logits.float().sum().backward()
    assert logits.dtype == torch.bfloat16
    strided = "blocks.2.spatial.conv"
    assert {name for name, dtype in seen.items() if dtype == torch.float32} == {strided}
    assert {weight.grad.dtype for weight in given.parameters()} == {torch.float32}


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_strided_depthwise_convolution_in_bf16_has_the_gradient_of_fp32(padding):
    """Except for rounding: this layer computes in fp32, on an input rounded to bf16."""
    torch.manual_seed(0)
    layer = create(SMALL if padding == "same" else _symmetric(), num_classes=3).blocks[2].spatial
    values = torch.randn(2, 64, 8, 8).bfloat16().float()
    images = [values.clone().requires_grad_() for _ in range(2)]
    layer._convolved(images[0]).sum().backward()
    wanted, layer.conv.weight.grad = layer.conv.weight.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        out = layer._convolved(images[1])
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(images[1].grad, images[0].grad, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(layer.conv.weight.grad, wanted, rtol=1e-6, atol=1e-6)


def _symmetric():
    from dataclasses import replace

    return replace(SMALL, padding="symmetric")


def test_fp16_scales_losses_and_saves_the_scale_in_checkpoints():
    state = init_state(network(), recipe_of("precision=fp16", "compile=off"))
    assert state.scaler is not None
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 8.0})
    other = init_state(network(), recipe_of("precision=fp16", "compile=off"))
    other.load_state_dict(state.state_dict())
    assert other.scaler.state_dict()["scale"] == 8.0


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_loop_computes_in_the_precision_of_the_recipe(precision, dtype):
    given, seen = network(), []
    given.stem.register_forward_hook(lambda _, inputs, out: seen.append(out.dtype))
    _, _, steps = running(ProgressiveSchedule(image_size=32), 1, network=given, precision=precision)
    done = next(steps)
    assert seen == [dtype]
    assert done.loss.dtype == torch.float32


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_fp16_steps_have_the_length_of_fp32_steps(clip_norm):
    """SGD steps are as long as the gradients. Scaled gradients, also if clipped, would change them."""
    after = {}
    for precision in ("fp32", "fp16"):
        given = network()
        before = given.classifier.weight.detach().clone()
        _, state, steps = running(
            ProgressiveSchedule(image_size=32),
            2,
            network=given,
            precision=precision,
            optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.0, "clip_norm": clip_norm},
            schedule={"name": "constant"},
        )
        for _ in steps:
            pass
        after[precision] = given.classifier.weight.detach() - before
        assert (state.scaler is not None) == (precision == "fp16")
    # For uniform images, batch norm divides by small numbers, so the difference is more than rounding.
    length = {precision: float(torch.linalg.vector_norm(moved)) for precision, moved in after.items()}
    assert 0.2 < length["fp16"] / length["fp32"] < 5, "not by the scale, 65,536"


def test_every_stage_is_compiled_and_the_model_is_unchanged(monkeypatch):
    """A stub replaces PyTorch's compiler, which takes minutes."""
    sizes = []

    def compiler(module, *, dynamic, options):
        assert dynamic is False

        def call(images):
            sizes.append(tuple(images.shape))
            return module(images)

        return call

    monkeypatch.setattr(compiling.torch, "compile", compiler)
    given = network()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    recipe = recipe_of(
        "precision=fp32", "compile=on", "progressive.image_size={start: 32, end: 64}", "progressive.stages=2"
    )
    compile_model(given.train(), recipe, CPU)
    assert sizes == [(8, 3, 32, 32), (8, 3, 64, 64)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict().items())
    assert all(weight.grad is None for weight in given.parameters())


@pytest.mark.parametrize("at_once", [True, False])
def test_model_that_does_not_compile_trains_with_a_warning(monkeypatch, at_once):
    """PyTorch itself raises on a Python that it does not support, and where its cache cannot be written."""

    def compiler(module, *, dynamic, options):
        def call(images):
            raise RuntimeError("no C++ compiler")

        if at_once:
            raise OSError(30, "Read-only file system")
        return call

    monkeypatch.setattr(compiling.torch, "compile", compiler)
    given = network().train()
    with pytest.warns(UserWarning, match=mentioning("compile")):
        call = compile_model(given, recipe_of("precision=fp32", "compile=on"), CPU)
    assert call is given


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The model does not compile here:UserWarning")
def test_compiled_model_has_equal_gradients():
    """Called as in the loop, because another call would compile another program."""
    recipe = recipe_of(
        "precision=fp32", "progressive.stages=1", "progressive.dropout=0", "progressive.image_size=32",
        "batch_size=8", "ghost_batch_size=8",
    )  # fmt: skip
    images = torch.rand(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    grads = []
    for compiles in (False, True):
        given = network().train()
        apply_regularization(given, dropout=0, drop_path=0)  # as in the only stage of the recipe
        call = compile_model(given, recipe, CPU) if compiles else given
        with ghost_batches(given, images=8, seeds=[0]):
            logits = call(images)
        logits.square().mean().backward()
        grads.append({name: weight.grad for name, weight in given.named_parameters()})
    length = torch.linalg.vector_norm
    whole = length(torch.stack([length(grad) for grad in grads[0].values()]))
    for name, grad in grads[0].items():
        # A bias before batch norm has a gradient of rounding errors only.
        assert length(grads[1][name] - grad) < 1e-3 * length(grad) + 1e-5 * whole, name


@pytest.mark.parametrize(("groups", "microbatches", "passes"), [(8, 3, [3, 2]), (8, 4, [4]), (2, 4, [2]), (1, 1, [1])])
def test_every_number_of_ghost_batches_per_pass_is_compiled(groups, microbatches, passes):
    """8 ghost batches, at most 3 per pass: 3, 3 and 2."""
    assert compiling._passes(groups, microbatches) == passes


def test_timed_program_is_the_compiled_program(monkeypatch):
    """A call without drawn dropout masks would compile again between the timed steps."""
    drawn = []

    def compiler(module, *, dynamic, options):
        dropout = next(one for one in module.modules() if isinstance(one, Dropout))

        def call(images):
            drawn.append(dropout.kept is not None)
            return module(images)

        return call

    monkeypatch.setattr(compiling.torch, "compile", compiler)
    recipe = recipe_of("precision=fp32", "batch_size=8", "progressive.dropout=0.2")
    choose_precision(recipe, network(), steps=1_000, device=CPU, minutes=150.0)
    assert drawn == [True] * (1 + 1 + autotune._TIMED_STEPS)


@pytest.mark.parametrize(
    "setting",
    [
        "progressive={image_size: {start: 32, end: 64, continuous: true}}",
        "progressive={stages: 2, order: random, image_size: {start: 32, end: 64}}",
        "progressive.stages=9",
    ],
)
def test_sizes_that_change_too_often_are_not_compiled(setting, monkeypatch):
    measured(monkeypatch, fp32=10.0, compiled=5.0)
    recipe = recipe_of("precision=fp32", "batch_size=8", setting)
    choice = choose_precision(recipe, network(), steps=1_000, device=CPU)
    assert not choice.compile
    assert mentions(choice.note, "often")


@pytest.mark.parametrize(("stages", "within_s", "chosen"), [(1, None, True), (2, None, False), (1, 2000.0, False)])
def test_compiling_counts_for_each_stage(stages, within_s, chosen, monkeypatch):
    """1,000 steps of 10 s take 10,000 s, and compiled half of it. Compiling takes 2,700 s a stage."""
    measured(monkeypatch, fp32=10.0, compiled=5.0)
    clock, side = SimpleNamespace(now=0.0), autotune._Bench.side

    def slow(self, precision, *, compiles=False):
        clock.now += 2700 * compiles
        return side(self, precision, compiles=compiles)

    monkeypatch.setattr(autotune._Bench, "side", slow)
    monkeypatch.setattr(autotune, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    recipe = recipe_of("precision=fp32", "batch_size=8", f"progressive.stages={stages}")
    choice = choose_precision(recipe, network(), steps=1_000, device=CPU, compile_within_s=within_s)
    assert choice.compile is chosen


def test_overflow_in_fp16_keeps_finite_running_statistics():
    """The images of the first of three steps overflow. PyTorch's own update would keep the infinity."""
    given, passes = network(), []

    def overflow(module, inputs):
        passes.append(1)
        return torch.full_like(inputs[0], 1e30) if len(passes) == 1 else None

    given.register_forward_pre_hook(overflow)
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.0}
    _, _, steps = running(ProgressiveSchedule(image_size=32), 3, network=given, precision="fp16", optimizer=optimizer)
    first, *_ = steps
    assert not first.loss.isfinite()
    norms = [module for module in given.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.running_mean.isfinite().all() and norm.running_var.isfinite().all() for norm in norms)
