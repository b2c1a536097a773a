from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides
from torch import nn
from torchvision.models import VisionTransformer, resnet18

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.progressive.schedule import Ramp
from efficientnetv2.training import initial_weights, memory_probe, time_budget
from efficientnetv2.training import memory_probe as preflight
from efficientnetv2.training.head_init import probe_notes, resolve_head_init, wants_probe
from efficientnetv2.training.initial_weights import build_model
from efficientnetv2.training.memory_probe import MemoryProbe, fit_groups, smallest_group
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.training.time_budget import TimeConstraints
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.memory import GIB

CPU = torch.device("cpu")
CLASSES = ("cat", "dog")


def small_model(stages=4):
    """Setting of a model that is built in milliseconds; four stages give it the stride of the published models."""
    stage = "{operator: {kind: mbconv, expand: 2, kernel: 3}, stride: 2, channels: 8, layers: 1}"
    return f"model={{stem_channels: 8, head_channels: 8, stages: [{', '.join([stage] * stages)}]}}"


def settled(*settings, recipe="quick", images=9469, memory_gib=None, minutes=None, training_s=None):
    # test_autotune covers the choice by measuring.
    settings = ["precision=fp32", "compile=off", small_model(), *settings]
    recipe = with_overrides(get_recipe(recipe), settings)
    return resolve_recipe(
        recipe,
        TrainingSet(images, CLASSES),
        Hardware(CPU, memory_gib),
        time=TimeConstraints(minutes=minutes, training_s=training_s),
    )


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(480, 100.0), (2_000, 50.0), (9_469, 10.56), (50_000, 10.0)],  # 100,000 images in total, but 10 to 100 epochs
)
def test_auto_epochs_follow_the_number_of_images(images, epochs):
    assert settled(images=images).recipe.epochs == epochs


def test_every_auto_field_is_resolved_and_logged():
    result = settled("model=auto", "precision=auto", "compile=auto", images=32)
    plain = result.recipe.to_json()
    assert {name for name, value in plain.items() if value == "auto"} <= {"minival"}, "that is for whoever parts images"
    assert result.recipe.eval_image_size == 128
    assert result.recipe.ghost_batch_size == 32
    assert any("efficientnetv2_b0" in note for note in result.notes)
    assert any("128 px" in note for note in result.notes)
    assert any("Precision: " in note for note in result.notes)
    assert resolve_recipe(result.recipe, TrainingSet(32, CLASSES), Hardware(CPU)).recipe == result.recipe, (
        "settling again changes nothing"
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ("model=torchvision:resnet18",),
            "Regularization: dropout 0.1 has no effect: the model has no known module for it.",
        ),
        (
            ("model=torchvision:efficientnet_b0", "progressive.drop_path=0.2"),
            "Regularization: dropout in 'classifier.0'; stochastic depth in 16 blocks.",
        ),
        (("model=torchvision:efficientnet_b0", "progressive.dropout=0"), None),
        (("model=efficientnetv2_b0", "progressive.drop_path=0.2"), None),
    ],
)
def test_regularized_modules_of_other_libraries_are_logged(settings, told):
    """torchvision builds ResNet-18 without dropout and stochastic depth."""
    plain = ("progressive.stages=1", "progressive.image_size=32", "batch_size=4", *settings)
    notes = [note for note in settled(*plain).notes if note.startswith("Regularization")]
    assert notes == ([] if told is None else [told])


def test_activation_memory_is_computed_once_per_image_size(monkeypatch):
    """It takes seconds for a large model. The ghost batch size and the ghost batches per pass both need it."""
    counted = []

    def count(network, px):
        counted.append(px)
        return 1000

    monkeypatch.setattr(preflight, "activation_bytes", count)
    settled("progressive={stages: 2, image_size: {start: 64, end: 128}}", "batch_size=8", "ghost_batch_size=4")
    assert sorted(counted) == [64, 128]


@pytest.fixture
def room_for(monkeypatch):
    """Memory for a number of images of 1 GiB each. No forward pass is made."""
    tried = []

    def give(images):
        monkeypatch.setattr(preflight, "free_bytes", lambda device, limit, sharing: int(images * GIB / 0.9) + GIB // 2)
        monkeypatch.setattr(preflight, "activation_bytes", lambda network, px: GIB)

        def trial(self, setting, *, ghost_batch_size, groups=1):
            tried.append(ghost_batch_size * groups)
            return ghost_batch_size * groups * GIB

        monkeypatch.setattr(MemoryProbe, "trial", trial)
        return tried

    return give


def test_ghost_batch_size_is_the_largest_divisor_that_fits(room_for):
    room_for(13)
    assert settled("batch_size=32").recipe.ghost_batch_size == 8
    assert settled("batch_size=36").recipe.ghost_batch_size == 12


def test_ghost_batch_size_too_large_for_memory_suggests_the_largest_that_fits(room_for):
    room_for(13)
    with pytest.raises(InputError, match=mentioning("16", "128", "8", "ghost_batch_size=8")):
        settled("ghost_batch_size=16", "batch_size=32")


def test_automatic_ghost_batch_size_is_reduced_if_free_memory_shrinks(room_for, monkeypatch):
    """The second check, with the known precision, finds less memory. A requested size is an error instead."""
    room_for(17)
    real = MemoryProbe.for_recipe

    def later(self, recipe):
        room_for(13)
        return real(self, recipe)

    monkeypatch.setattr(MemoryProbe, "for_recipe", later)
    result = settled("batch_size=32")
    assert result.recipe.ghost_batch_size == 8
    assert mentions(result.notes, "8", "32", "batch-norm")
    room_for(17)
    with pytest.raises(InputError, match=mentioning("16", "8", "ghost_batch_size=8")):
        settled("batch_size=32", "ghost_batch_size=16")


def test_resumed_run_whose_ghost_batches_do_not_fit_is_an_error(room_for):
    recipe = settled("batch_size=32", "ghost_batch_size=16").recipe
    network = build_model(recipe, recipe.model, num_classes=2)
    room_for(13)
    with pytest.raises(InputError, match=mentioning("8", "memory")):
        fit_groups(recipe, MemoryProbe(recipe, network, Hardware(CPU)), is_set=True, is_fixed=True)
    room_for(0.4)
    with pytest.raises(InputError, match=mentioning("1", "memory")):
        fit_groups(recipe, MemoryProbe(recipe, network, Hardware(CPU)), is_set=True, is_fixed=True)


@pytest.mark.parametrize(("known", "begins"), [((), "random"), (CLASSES, "linear_probe")])
def test_linear_probe_is_not_used_for_a_model_with_two_classifiers(known, begins, monkeypatch):
    """The probe fits one classifier. Weights with the same classes keep their classifiers."""
    network = create("timm:deit_tiny_distilled_patch16_224", num_classes=2)
    network.class_names = known
    monkeypatch.setattr(initial_weights, "load_weights", lambda word, **_: (network, ()))
    given = ("model=auto", "weights=timm:deit_tiny_distilled_patch16_224.fb_in1k", "head_init=linear_probe")
    one_size = ("progressive.stages=1", "progressive.image_size=224", "batch_size=2")
    result = settled(*given, *one_size, recipe="finetune", images=4)
    assert result.recipe.head_init == begins
    facts = ("Classifier: random", "timm:deit_tiny_distilled_patch16_224", "2", "linear probe")
    assert mentions(result.notes, *facts) == (begins == "random")
    both = [result.network.module.head.weight, result.network.module.head_dist.weight]
    assert all((weight.abs().max() == 0) == (begins == "random") for weight in both)


@pytest.mark.parametrize(("classes", "images", "begins"), [(1_666, 10**6, "linear_probe"), (1_667, 10**6, "random"),
                                                           (3_000, 4_000, "linear_probe")])  # fmt: skip
def test_linear_probe_has_three_images_per_class(classes, images, begins):
    """Of at most 5,000; fewer images in all are all used."""
    train = type("Part", (), {"class_names": range(classes), "__len__": lambda self: images})()
    prepared = SimpleNamespace(train=train, dataset=SimpleNamespace(separator=None))
    recipe = resolve_head_init(get_recipe("finetune"), prepared)
    assert recipe.head_init == begins
    assert mentions(probe_notes(recipe, prepared), "No linear probe", "1,667 classes") == (begins == "random")
    network = SimpleNamespace(class_names=())
    assert wants_probe(recipe, network, True, prepared) == (begins == "linear_probe")


@pytest.mark.parametrize(
    ("known", "probe", "wanted"), [((), False, True), (CLASSES, False, False), (CLASSES, True, True)]
)
def test_probe_is_fitted_only_for_a_new_classifier_or_a_comparison(known, probe, wanted):
    recipe = get_recipe("finetune").model_copy(update={"head_init": "linear_probe"})
    train = type("Part", (), {"class_names": CLASSES, "__len__": lambda self: 48})()
    prepared = SimpleNamespace(train=train, dataset=SimpleNamespace(separator=None))
    assert wants_probe(recipe, SimpleNamespace(class_names=known), probe, prepared) == wanted


def test_model_that_does_not_fit_into_memory_is_rejected(room_for):
    room_for(0.4)
    with pytest.raises(InputError) as error:
        settled()
    free = float(re.search(r"1 images of 128 px .* ([0-9.]+) GiB .* it took 1\.00 GiB", str(error.value))[1])
    assert free < 1, "what was tried is more than what there is, whatever was counted"


def test_out_of_memory_in_the_trial_is_an_input_error(room_for, monkeypatch):
    room_for(0.4)
    monkeypatch.setattr(MemoryProbe, "trial", lambda self, setting, *, ghost_batch_size, groups=1: None)
    with pytest.raises(InputError, match=mentioning("1", "memory")):
        settled()


def test_too_low_memory_limit_names_the_option(room_for, monkeypatch):
    room_for(0.4)
    monkeypatch.setattr(preflight, "free_bytes", lambda device, limit, sharing: (100 if limit is None else 0.4) * GIB)
    monkeypatch.setattr(preflight, "in_use_bytes", lambda device: GIB)
    with pytest.raises(InputError, match=mentioning("1", "memory_gib")):
        settled(memory_gib=2.0)


def test_no_trial_is_made_if_memory_is_ample(room_for):
    tried = room_for(4 * 32 + 1)
    assert settled("batch_size=32").recipe.ghost_batch_size == 32
    assert tried == []


def test_as_many_ghost_batches_as_fit_run_at_once_and_are_logged(room_for):
    room_for(13)
    result = settled("batch_size=32", "ghost_batch_size=4")
    assert result.microbatches.at(128) == 3  # of 8 ghost batches: 3 + 3 + 2
    assert any(mentions(note, "3", "64") for note in result.notes)


def test_batch_norm_needs_more_than_one_image_of_32_px():
    with pytest.raises(InputError, match=mentioning("batch-norm", "channel")):
        settled("batch_size=1", "progressive.image_size=32")
    assert settled("batch_size=1", "progressive.image_size=64", "progressive.stages=1").recipe.ghost_batch_size == 1


@pytest.mark.parametrize(("kept", "least"), [("true", 1), ("false", 2)])
def test_one_image_of_32_px_is_enough_with_frozen_batch_norm(kept, least):
    small = ("progressive.image_size=32", "progressive.stages=1", f"freeze_bn={kept}")
    looked_at = SimpleNamespace(network=create("efficientnetv2_b0", num_classes=2))
    assert smallest_group(with_overrides(get_recipe("finetune"), small), looked_at)[0] == least


@pytest.mark.parametrize(
    ("mixing", "least", "named"),
    [
        (("mixup_alpha=0.2",), 2, "mixup"),
        (("cutmix_alpha={start: 0, end: 0.5}",), 2, "cutmix"),
        (("mixup_alpha=0.2", "cutmix_alpha=0.2"), 4, "mixup or cutmix"),  # each is applied to half of the ghost batch
    ],
)
def test_mixing_needs_a_partner_for_each_image_of_a_ghost_batch(mixing, least, named, room_for):
    room_for(13)
    settings = ["batch_size=8", *(f"progressive.{one}" for one in mixing)]
    too_few = least - 1 if 8 % (least - 1) == 0 else least // 2
    with pytest.raises(InputError, match=mentioning(named, least, "ghost_batch_size")):
        settled(*settings, f"ghost_batch_size={too_few}")
    assert settled(*settings, f"ghost_batch_size={least}").recipe.ghost_batch_size == least
    room_for(least - 0.5)  # the smallest ghost batch does not fit
    with pytest.raises(InputError, match=mentioning(least, "128")):
        settled(*settings)


def test_image_sizes_below_the_model_stride_are_rejected():
    """This model has stride 8, published architectures have stride 32."""
    settings = ["batch_size=8", small_model(stages=2), "eval_image_size=64"]
    settings += ["progressive.size_multiple=1", "progressive.stages=2"]
    assert settled(*settings, "progressive.image_size={start: 8, end: 64}").recipe.eval_image_size == 64
    with pytest.raises(InputError, match=mentioning("7", "8", "stride")):
        settled(*settings, "progressive.image_size={start: 7, end: 64}")
    with pytest.raises(InputError, match=mentioning("31", "efficientnetv2_b0", "32")):
        settled("model=auto", "progressive.image_size={start: 31, end: 64}", "progressive.size_multiple=1")
    with pytest.raises(InputError, match=mentioning("8", "efficientnetv2_b0", "32")):
        settled("model=auto", "progressive={image_size: {start: 8, end: 64, continuous: true}}")


def test_every_size_of_a_continuous_ramp_is_tried():
    """HRNet adds maps of two branches, which differ at 65 px."""
    settings = ("weights=none", "model=timm:hrnet_w18_small", "batch_size=8")
    ramp = "{start: 64, end: 96, continuous: true}"
    with pytest.raises(InputError, match=mentioning("65 px")):
        settled(*settings, f"progressive={{image_size: {ramp}}}")
    found = settled(*settings, f"progressive={{image_size: {ramp}, size_multiple: 32}}")
    assert found.recipe.eval_image_size == 96


def test_image_size_below_the_stride_is_rejected_before_rounding_up():
    """The user did not request the rounded size. If both sizes are too small, the error names the larger."""
    for smallest, settings in {
        8: ("progressive.image_size={start: 8, end: 64}",),
        20: ("progressive.image_size={start: 20, end: 64, continuous: true}", "progressive.stages=1"),
        31: ("progressive.image_size={start: 31, end: 64}", "progressive.order=random"),
    }.items():
        with pytest.raises(InputError, match=mentioning(smallest, "32")):
            settled(*settings, "progressive.size_multiple=32")
    with pytest.raises(InputError, match=mentioning("16", "efficientnetv2_b0", "32")):
        settled("model=auto", "progressive.image_size={start: 8, end: 16}", "progressive.size_multiple=32")
    # Not used in training: a single stage has the last size.
    one = settled("progressive.image_size={start: 8, end: 64}", "progressive.size_multiple=32", "progressive.stages=1")
    assert one.recipe.progressive.last.image_size == 64


def test_scaled_image_sizes_are_at_least_one_multiple():
    """Half of 32 px would be rejected, so all stages have 32 px."""
    recipe = get_recipe("quick")
    plan = recipe.progressive.with_image_size(32)
    assert plan.size_multiple == 32
    assert plan.image_size == Ramp(32, 32)
    assert recipe.progressive.with_image_size(96).image_size == Ramp(48, 96)
    assert recipe.progressive.with_image_size(40).image_size == Ramp(20, 40)


@pytest.mark.parametrize(
    ("image_size", "said"),
    [
        ("70", "64 px instead of 70"),
        ("{start: 40, end: 70}", "32 px instead of 40 and 64 px instead of 70"),
        ("{start: 32, end: 90}", "96 px instead of 90"),
        ("{start: 32, end: 64}", None),
    ],
)
def test_rounded_image_sizes_are_logged(image_size, said):
    notes = settled(f"progressive.image_size={image_size}", "progressive.size_multiple=32").notes
    told = [note for note in notes if note.startswith("Sizes are")]
    if said is None:
        assert told == []
        return
    assert mentions(told[0], said, "32")
    unrounded = settled(f"progressive.image_size={image_size}", "progressive.size_multiple=1").notes
    assert not [note for note in unrounded if note.startswith("Sizes are")]


@pytest.fixture
def foreign(monkeypatch):
    """A function that replaces the model of any recipe by a module."""

    def give(module):
        monkeypatch.setattr(initial_weights, "create", lambda *named, **words: WrappedModel(module))

    return give


def test_stride_of_a_torchvision_model_limits_the_image_size(foreign):
    """Because of padding, torchvision's ResNet accepts 16 px, but its last map has one pixel."""
    foreign(resnet18(num_classes=2))
    settings = ("batch_size=8", "progressive.size_multiple=1", "max_upscale=null", "eval_image_size=64")
    with pytest.raises(InputError, match=mentioning("31", "32")):
        settled(*settings, "progressive.image_size={start: 31, end: 64}")
    with pytest.raises(InputError, match=mentioning("eval_image_size", "16", "32")):
        settled(*settings[:-1], "eval_image_size=16", "progressive.image_size={start: 32, end: 64}")
    assert settled(*settings, "progressive.image_size={start: 32, end: 64}").recipe.eval_image_size == 64


def test_model_of_a_fixed_image_size_rejects_other_sizes(foreign):
    """The largest size alone would pass, and the first step would fail at the smallest."""
    foreign(VisionTransformer(64, 16, 1, 2, 32, 64, num_classes=2))
    growing = ("batch_size=8", "progressive.image_size={start: 32, end: 64}")
    with pytest.raises(InputError, match=mentioning("32", "64", "image_size", "progressive.stages=1")):
        settled(*growing)
    with pytest.raises(InputError, match=r"a training image is \d+ px"):  # before a step of 96 px is timed
        settled("batch_size=8", "progressive.image_size={start: 64, end: 96}", minutes=5.0, training_s=100.0)
    assert settled(*growing, "progressive.stages=1").recipe.eval_image_size == 64
    with pytest.raises(InputError, match=mentioning("96", "64", "eval_image_size=64")):
        settled(*growing, "progressive.stages=1", "eval_image_size=96")
    with pytest.raises(InputError, match=mentioning("96", "eval_image_size_candidates=null")):
        settled(*growing, "progressive.stages=1", "minival=8", "eval_image_size_candidates=[64, 96]")


def test_stride_of_a_custom_model_is_measured(foreign):
    """With stride 4, 28 px give 7 x 7 values. 4 px give one, too few for batch norm with one image."""
    foreign(
        nn.Sequential(
            nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )
    )
    small = ("batch_size=1", "progressive.stages=1", "progressive.size_multiple=1", "max_upscale=null")
    assert settled(*small, "progressive.image_size=28").recipe.ghost_batch_size == 1
    with pytest.raises(InputError, match=mentioning("4", "batch-norm")):
        settled(*small, "progressive.image_size=4")
    with pytest.raises(InputError, match=mentioning("3", "4", "training")):
        settled(*small, "progressive.image_size=3")


def test_continuous_ramp_is_evaluated_at_its_last_size():
    ramp = "progressive.image_size={start: 64, end: 128, continuous: true}"
    assert settled(ramp).recipe.eval_image_size == 128


def test_finetune_without_weights_suggests_quick():
    found = settled("weights=none", recipe="finetune")
    notes = found.notes
    assert not found.recipe.freeze_bn
    assert found.network.train().stem.norm.training, "there are no statistics to keep"
    assert any(mentions(note, "quick") for note in notes)


def test_quick_with_weights_suggests_finetune(tmp_path):
    """Its learning rate is for random weights."""
    model_file.save(tmp_path / "given.safetensors", create("efficientnetv2_b0", num_classes=2), class_names=CLASSES)
    notes = settled("model=auto", f"weights={tmp_path / 'given.safetensors'}").notes
    assert any(mentions(note, "ten times", "finetune") for note in notes)
    rates = [get_recipe(name).optimizer.lr for name in ("quick", "finetune")]
    assert rates[0] == pytest.approx(10 * rates[1])


@pytest.mark.parametrize(("device", "batch", "told"), [("cuda", 32, True), ("cuda", 128, False), ("cpu", 32, False)])
def test_few_images_per_gpu_suggest_a_larger_batch(device, batch, told):
    recipe = with_overrides(get_recipe("quick"), [f"batch_size={batch}", "ghost_batch_size=8"])
    probe = SimpleNamespace(
        device=torch.device(device),
        microbatches=lambda settings, ghost_batch_size: MicrobatchPlan(),
        world=SimpleNamespace(is_distributed=True, size=4),
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory_probe, "group_size", lambda *given, **how: 8)
        *_, notes = fit_groups(recipe, probe, is_set=True, is_fixed=True)
    assert any("Each of the 4 GPUs gets 8 images a step" in note for note in notes) == told
    assert any("batch_size=128" in note for note in notes) == told


def test_time_limit_decides_whether_every_stage_has_a_step():
    """Two steps of the recipe are too few for four stages. With a time limit, their number is not known yet."""
    short = ("epochs=1", "batch_size=16")
    with pytest.raises(InputError, match=mentioning("4", "2", "stage")):
        settled(*short, images=32)
    assert settled(*short, images=32, minutes=5).recipe.progressive.stages == 4


@pytest.mark.parametrize(("training_s", "last_px"), [(None, 128), (300.0, 128), (100.0, 96), (1.0, 64)])
def test_image_sizes_are_reduced_for_a_short_time_limit(training_s, last_px, monkeypatch):
    """An image of 128 px takes 1 s. 100 s are enough for an epoch of 200 images of up to 96 px."""
    monkeypatch.setattr(time_budget, "seconds_per_image", lambda *given: 1.0)
    recipe = with_overrides(get_recipe("quick"), ["precision=fp32", "compile=off"])
    found = resolve_recipe(
        recipe,
        TrainingSet(200, CLASSES, stored_size=256),
        Hardware(CPU),
        time=TimeConstraints(minutes=10.0, training_s=training_s),
    )
    assert found.recipe.progressive.last.image_size == last_px
    assert found.recipe.eval_image_size == last_px
    assert any("instead of up to 128 px" in note for note in found.notes) == (last_px < 128)


def test_global_pool_of_the_weights_is_used(tmp_path):
    """Otherwise a checkpoint would be loaded into a model with another classifier."""
    network = EfficientNet(replace(get_architecture("efficientnetv2_b0"), global_pool="avg+center"), num_classes=2)
    model_file.save(tmp_path / "wide.safetensors", network, class_names=CLASSES)
    wide = ("model=auto", f"weights={tmp_path / 'wide.safetensors'}")
    found = settled(*wide, recipe="finetune").recipe
    assert found.global_pool == "avg+center"
    assert build_model(found, found.model, num_classes=2).embed_dim == 2 * 1280
    assert settled(*wide, "global_pool=avg", recipe="finetune").recipe.global_pool == "avg"


@pytest.mark.parametrize(
    ("images", "epochs", "seen"), [(96, 100, "9,600"), (9469, 10.56, "99,993"), (50_000, 10, "500,000")]
)
def test_reason_for_the_number_of_epochs_is_logged(images, epochs, seen):
    notes = settled("epochs=auto", images=images).notes
    assert mentions(notes, "Epochs", epochs, "100,000", seen)
