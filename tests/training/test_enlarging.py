"""Limits of training sizes by the stored size of the images."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tests.command_line import NETWORK
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe, resumed_recipe, sets_sizes
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.training.resolve_image_sizes import limit_upscaling, lower_sizes_for_budget
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError


@pytest.mark.parametrize(
    ("stored_size", "sizes"),
    [
        (20, [32, 32, 64, 64]),  # at least 64 px
        (28, [32, 32, 64, 64]),
        (32, [32, 32, 64, 64]),
        (36, [64, 64, 64, 96]),  # 72 px, rounded up to a size of the schedule
        (63, [64, 96, 96, 128]),
        (500, [64, 96, 96, 128]),
        (None, [64, 96, 96, 128]),
    ],
)
def test_images_are_enlarged_to_at_most_twice_their_size(stored_size, sizes):
    recipe, said = limit_upscaling(get_recipe("quick"), stored_size)
    assert [recipe.progressive.stage(index).image_size for index in range(4)] == sizes
    assert recipe.max_upscale is None
    assert [mentions(line, stored_size, "128") for line in said] == ([True] if sizes[-1] < 128 else [])


def test_pretrained_weights_enlarge_images_to_four_times_their_size():
    recipe, said = limit_upscaling(get_recipe("finetune"), 32)
    assert [recipe.progressive.stage(index).image_size for index in range(3)] == [64, 96, 128]
    assert len(said) == 1
    assert limit_upscaling(get_recipe("finetune"), 56)[1] == []


def test_limit_changes_only_the_image_sizes():
    quick = get_recipe("quick")
    recipe, _ = limit_upscaling(quick, 32)
    plan = recipe.progressive.to_json() | {"image_size": quick.progressive.to_json()["image_size"]}
    assert plan == quick.progressive.to_json()
    assert recipe.to_json() | {"progressive": plan, "max_upscale": 2.0} == quick.to_json()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("progressive.order=random", "Sizes: 32 to 64 px instead of up to 128"),  # whichever size is drawn first
        ("progressive.stages=1", "Sizes: 64 px instead of up to 128"),
    ],
)
def test_reported_sizes_are_those_of_the_run(setting, said):
    assert limit_upscaling(with_overrides(get_recipe("quick"), [setting]), 32)[1][0].startswith(said)


def test_one_size_remains_one_size():
    fixed = with_overrides(get_recipe("quick"), ["progressive.stages=1", "progressive.image_size=224", "max_upscale=3"])
    assert limit_upscaling(fixed, 40)[0].progressive.last.image_size == 128
    ramp = get_recipe("quick").model_copy(
        update={"progressive": ProgressiveSchedule(stages=4, image_size=Ramp(100, 200, continuous=True))}
    )
    smaller = limit_upscaling(ramp, 50)[0].progressive
    assert (smaller.at(0, total_steps=100).image_size, smaller.last.image_size) == (50, 100)


@pytest.mark.parametrize(
    "words",
    [
        TrainOverrides(image_size=128),
        TrainOverrides(settings=("progressive.image_size={start: 64, end: 128}",)),
        TrainOverrides(settings=("progressive.image_size.end=128",)),
        TrainOverrides(settings=("progressive={stages: 1, image_size: 128}",)),
        TrainOverrides(settings=("max_upscale=null",)),
    ],
)
def test_requested_size_is_used(words):
    named_so = TrainOverrides(recipe="quick", weights="none", image_size=words.image_size, settings=words.settings)
    recipe, _ = requested_recipe(named_so, "cpu")
    assert recipe.max_upscale is None
    assert limit_upscaling(recipe, 32) == (recipe, [])
    also = TrainOverrides(recipe="quick", weights="none", image_size=256, settings=("max_upscale=3",))
    assert requested_recipe(also, "cpu")[0].max_upscale == 3


QUICKLY = ("ghost_batch_size=8", "batch_size=8", "precision=fp32", "compile=false", "epochs=5")


def settled_run(words, folder):
    """The recipe file of a run with these arguments, on images of 32 px."""
    cpu = torch.device("cpu")
    asked, _ = requested_recipe(words, cpu)
    recipe = resolve_recipe(asked, TrainingSet(300, ("a", "b"), stored_size=32), Hardware(cpu)).recipe
    assert recipe.progressive.last.image_size < asked.progressive.last.image_size, "or it would say nothing"
    (folder / "run").mkdir()
    (folder / "run/recipe.yaml").write_text(recipe.to_yaml())
    return recipe, folder / "run/recipe.yaml"


def gone_on(words, file):
    return resumed_recipe(words, file)


@pytest.mark.parametrize("further", [("max_upscale=3",), ()])
@pytest.mark.parametrize("by_file", [True, False])
def test_run_resumes_with_its_original_arguments(by_file, further, tmp_path):
    """``max_upscale`` of the recipe or of the arguments has reduced its sizes."""
    (tmp_path / "mine.yaml").write_text(get_recipe("finetune").to_yaml())
    recipe = str(tmp_path / "mine.yaml") if by_file else "finetune"
    words = TrainOverrides(model=NETWORK, recipe=recipe, weights="none", settings=(*QUICKLY, *further))
    run, file = settled_run(words, tmp_path)
    assert gone_on(words, file) == run
    for other, said in (
        (("progressive.image_size.end=192",), r"image_size.end: \S+ there, 192"),
        (("progressive.image_size={start: 200, end: 224}", "max_upscale=3"), r"image_size.start: \S+ there, 200"),
    ):
        with pytest.raises(InputError, match=said):
            gone_on(replace(words, settings=(*QUICKLY, *other)), file)


def test_run_resumes_with_automatic_evaluation_sizes(tmp_path):
    """The run has replaced them by numbers. A restart by a launcher has the original arguments."""
    words = TrainOverrides(
        model=NETWORK,
        recipe="finetune",
        weights="none",
        settings=(*QUICKLY, "minival=0.1", "eval_image_size_candidates=auto"),
    )
    run, file = settled_run(words, tmp_path)
    assert isinstance(run.eval_image_size_candidates, tuple)
    assert gone_on(words, file) == run
    other = replace(words, settings=(*words.settings[:-1], "eval_image_size_candidates=[320]"))
    with pytest.raises(InputError, match=mentioning("eval_image_size_candidates")):
        gone_on(other, file)


def test_renamed_run_resumes(tmp_path):
    words = TrainOverrides(
        model=NETWORK, recipe="finetune", weights="none", settings=(*QUICKLY, "name=mine", "max_upscale=3")
    )
    run, file = settled_run(words, tmp_path)
    assert (run.name, gone_on(words, file)) == ("mine", run)


def test_run_with_requested_size_and_max_upscale_resumes(tmp_path):
    words = TrainOverrides(
        model=NETWORK, recipe="quick", weights="none", image_size=256, settings=(*QUICKLY, "max_upscale=3")
    )
    run, file = settled_run(words, tmp_path)
    assert gone_on(words, file) == run


def test_recipe_file_may_name_the_architecture_without_the_padding_of_the_weights(tmp_path):
    mine = get_recipe("finetune").model_copy(update={"model": "efficientnetv2_s", "weights": "theirs.pth"})
    (tmp_path / "mine.yaml").write_text(mine.to_yaml())
    padded = replace(get_architecture("efficientnetv2_s"), padding="symmetric", batch_norm_epsilon=1e-5)
    run = limit_upscaling(mine, 32)[0].model_copy(update={"model": padded})
    (tmp_path / "recipe.yaml").write_text(run.to_yaml())
    words = TrainOverrides(recipe=str(tmp_path / "mine.yaml"))
    assert gone_on(words, tmp_path / "recipe.yaml").model == padded
    with pytest.raises(InputError, match="model"):
        gone_on(replace(words, model="efficientnetv2_b0"), tmp_path / "recipe.yaml")
    assert gone_on(replace(words, model="efficientnetv2_s"), tmp_path / "recipe.yaml").model == padded


@pytest.mark.parametrize(
    "edit", [{"padding": "symmetric"}, {"batch_norm_epsilon": 1e-5}, {"global_pool": "avg+center"}]
)
def test_run_from_scratch_is_not_resumed_with_an_edited_architecture(edit, tmp_path):
    words = TrainOverrides(model=NETWORK, recipe="quick", weights="none", settings=QUICKLY)
    run, file = settled_run(words, tmp_path)
    assert gone_on(words, file) == run
    with pytest.raises(InputError, match="model"):
        gone_on(replace(words, model=replace(words.model, **edit)), file)


def in_time(images: float):
    """Epochs of 1,000 images, if a number of images of 128 px fits into the time."""

    def epochs_of(recipe):
        plan = recipe.progressive
        pixels = sum(share * plan.stage(stage).image_size ** 2 for stage, share in enumerate(plan.weights))
        return images * 128**2 / pixels / 1000

    return epochs_of


def sizes_of(recipe):
    return [recipe.progressive.stage(index).image_size for index in range(recipe.progressive.stages)]


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        (9000, [128, 192, 224]),  # more than three epochs
        (5000, [96, 160, 192]),
        (1200, [64, 64, 96]),
        (10, [32, 64, 64]),  # three epochs do not fit at any size
    ],
)
def test_sizes_are_reduced_until_three_epochs_fit(images, sizes):
    finetune, epochs_of = get_recipe("finetune"), in_time(images)
    recipe, said = lower_sizes_for_budget(finetune, epochs_of, lambda sized: True)
    assert sizes_of(recipe) == sizes
    assert epochs_of(recipe) >= 3 or sizes[-1] == 64
    if recipe is finetune:
        assert said == []
    else:
        assert mentions(said[0], sizes[0], sizes[-1], "224")
        assert "minutes" in said[0]
        assert "image_size=224" in said[0]


def test_sizes_that_the_model_cannot_take_are_left_out():
    """The first stage of inception_v3 would be below its minimum of 75 px. A ViT takes one size."""
    recipe = get_recipe("finetune")
    least, _ = lower_sizes_for_budget(recipe, in_time(10), lambda sized: sized.progressive.stage(0).image_size >= 75)
    assert sizes_of(least)[0] == 96
    assert lower_sizes_for_budget(recipe, in_time(10), lambda sized: False) == (recipe, [])


def test_evaluation_sizes_are_reduced_with_training_sizes():
    recipe = with_overrides(
        get_recipe("finetune"), ["eval_image_size=288", "minival=0.1", "eval_image_size_candidates=[224, 256, 320]"]
    )
    lower, _ = lower_sizes_for_budget(recipe, in_time(1200), lambda sized: True)
    assert lower.progressive.last.image_size == 96
    assert (lower.eval_image_size, lower.eval_image_size_candidates) == (128, (96, 128))


def test_run_with_reduced_sizes_resumes_with_the_same_arguments(tmp_path):
    """Its recipe is from a file that sets sizes."""
    own = with_overrides(get_recipe("finetune"), ["max_upscale=null", "eval_image_size=224"])
    lower, _ = lower_sizes_for_budget(own, in_time(1200), lambda sized: True)
    there = lower.model_copy(update={"epochs": 3.0, "weights": "none"})
    there = there.model_copy(update={"head_init": "random", "freeze_bn": False, "model": "efficientnetv2_b0"})
    (tmp_path / "recipe.yaml").write_text(there.to_yaml())
    words = TrainOverrides(recipe=own, model="efficientnetv2_b0", weights="none", minutes=5)
    assert resumed_recipe(words, tmp_path / "recipe.yaml").eval_image_size == 96
    with pytest.raises(InputError, match="progressive"):
        resumed_recipe(replace(words, minutes=None), tmp_path / "recipe.yaml")


def test_run_without_time_for_its_probe_resumes_with_the_same_arguments(tmp_path):
    settings = ["max_upscale=null", "head_init=linear_probe", "weights=a.safetensors"]
    own = with_overrides(get_recipe("finetune"), settings)
    there = own.model_copy(update={"epochs": 3.0, "head_init": "random"})
    (tmp_path / "recipe.yaml").write_text(there.to_yaml())
    facts = {"command": "", "auto_choices": [], "microbatches": {}}
    facts |= {"preprocessing": Preprocessing(image_size=32).to_json()}
    (tmp_path / "run.json").write_text(json.dumps(facts | {"probe_images": 0}))
    words = TrainOverrides(recipe=own, minutes=5)
    assert resumed_recipe(words, tmp_path / "recipe.yaml").head_init == "random"
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="head_init"):
        resumed_recipe(words, tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("words", "named_there"),
    [
        (TrainOverrides(minutes=5), False),
        (TrainOverrides(minutes=5, settings=("progressive.stages=2", "optimizer.lr=1")), False),
        (TrainOverrides(minutes=5, image_size=224), True),
        (TrainOverrides(minutes=5, settings=("progressive.image_size={start: 64, end: 224}",)), True),
        (TrainOverrides(minutes=5, settings=("eval_image_size=224",)), True),
    ],
)
def test_arguments_that_set_sizes_are_recognized(words, named_there):
    assert sets_sizes(words) is named_there


def test_automatic_minival_that_the_data_did_not_allow_resumes(tmp_path):
    """A restart by a launcher has the original arguments, with ``minival: auto`` of a recipe file."""
    words = TrainOverrides(model=NETWORK, recipe="finetune", weights="none", settings=(*QUICKLY, "minival=null"))
    run, file = settled_run(words, tmp_path)
    assert run.minival is None
    assert gone_on(replace(words, settings=(*QUICKLY, "minival=auto")), file) == run
    with pytest.raises(InputError, match=mentioning("minival")):
        gone_on(replace(words, settings=(*QUICKLY, "minival=0.1")), file)
