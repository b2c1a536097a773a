"""Initial state of a run: weights, architecture and classifier."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides
from torch import nn

from efficientnetv2.architectures.registry import get_architecture, get_model_info
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.models import hub, model_file, pretrained
from efficientnetv2.models.blocks import ConvNorm, MBConv
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.factory import create
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.training.initial_weights import (
    BUNDLED,
    build_initial_model,
    build_model,
    default_model,
    load_weights,
    validate_weights_name,
    weights_candidates,
)
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.errors import InputError

CPU = torch.device("cpu")
SMALL = Architecture(
    stem_channels=8,
    stages=(Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1), Stage(mbconv(expand=2, kernel=3), 2, 16, 2)),
    head_channels=32,
)


def begun(*settings, classes=("cat", "dog"), recipe="finetune"):
    return build_initial_model(with_overrides(get_recipe(recipe), list(settings)), class_names=classes, device=CPU)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model file of two classes with random values, also in batch norm. Tests may only read it."""
    torch.manual_seed(1)
    network = create("efficientnetv2_b0", num_classes=2)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_mean.normal_()
    network.class_names = ("cat", "dog")
    network.preprocessing = replace(network.preprocessing, mean=(0.1, 0.2, 0.3))
    file = tmp_path_factory.mktemp("given") / "given.safetensors"
    model_file.save(file, network)
    return network, str(file)


@pytest.mark.parametrize(("classes", "head_too"), [(("cat", "dog"), True), (("dog", "elk"), False)])
def test_backbone_is_loaded_and_the_classifier_if_its_classes_are_equal(classes, head_too, given):
    donor, file = given
    begin = begun(f"weights={file}", classes=classes)
    assert (begin.model, begin.weights) == ("efficientnetv2_b0", file)
    for name, tensor in begin.network.state_dict().items():
        same = torch.equal(tensor, donor.state_dict()[name])
        assert same == (head_too or not name.startswith("classifier.") or name == "classifier.bias"), name
    assert begin.network.preprocessing.mean == (0.1, 0.2, 0.3)
    told, statistics = begin.notes[-2:]
    assert ("its classifier too" in told) == head_too
    assert mentions(statistics, "Frozen", "freeze_bn")


def test_classifier_whose_classes_no_file_states_is_not_kept(given, tmp_path):
    """Its outputs are called 0 and 1 in other places, which may be the labels of another task."""
    names = tensor_names("timm", given[0].architecture)
    tensors = {names[ours]: tensor.contiguous() for ours, tensor in given[0].state_dict().items()}
    save_file(tensors, tmp_path / "theirs.safetensors")
    begin = begun(f"weights={tmp_path / 'theirs.safetensors'}", classes=("0", "1"))
    assert any("a new classifier" in note for note in begin.notes)
    name = next(iter(given[0].state_dict()))  # of the stem
    assert torch.equal(begin.network.state_dict()[name], given[0].state_dict()[name])


def test_new_classifier_predicts_all_classes_equally(given):
    """zero_residual: all weights are 0, so each of three classes has probability 1/3."""
    network = begun(f"weights={given[1]}", classes=("a", "b", "c")).network.eval()
    assert torch.equal(network(torch.randn(2, 3, 64, 64)).softmax(1), torch.full((2, 3), 1 / 3))
    released = begun(f"weights={given[1]}", "init=default", classes=("a", "b", "c")).network
    assert 0 < released.classifier.weight.abs().max() <= 3**-0.5


@pytest.mark.parametrize(("init", "last"), [("zero_residual", 0.0), ("default", 1.0)])
def test_zero_residual_blocks_begin_as_their_shortcuts(init, last):
    """arXiv:1706.02677, section 5.1: the scale of the last batch norm, only in blocks with a shortcut."""
    network = begun("weights=none", f"init={init}", recipe="quick").network.eval()
    blocks = [module for module in network.modules() if isinstance(module, MBConv)]
    ends = [block.project if isinstance(block.project, ConvNorm) else block.spatial for block in blocks]
    scales = [end.norm.weight for end in ends]
    shortcut = [block.drop_path is not None for block in blocks]
    assert 0 < sum(shortcut) < len(blocks)
    for scale, has in zip(scales, shortcut, strict=True):
        assert torch.equal(scale, torch.full_like(scale, last if has else 1.0))
    pictures = torch.randn(2, 3, 64, 64)
    assert bool((network(pictures) == 0).all()) == (init == "zero_residual")


def test_weights_of_another_architecture_are_rejected(given):
    with pytest.raises(InputError, match=mentioning("efficientnetv2_b0", "efficientnetv2_b1")):
        begun(f"weights={given[1]}", "model=efficientnetv2_b1")


def test_architecture_error_suggests_an_option_that_works(given):
    """The recipe names an architecture, as published recipes do."""
    with pytest.raises(InputError, match=mentioning("efficientnetv2_s", "model=auto")):
        begun(f"weights={given[1]}", recipe="transfer_paper")
    assert begun(f"weights={given[1]}", "model=auto", recipe="transfer_paper").model == "efficientnetv2_b0"


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize(("size", "px"), [("s", 384), ("m", 480), ("l", 480), ("xl", 512)])
def test_21k_recipes_use_the_21k_weights_and_image_size_of_each_architecture(size, px, form, monkeypatch):
    """Sizes: google/automl, efficientnetv2. The weights have no values, because those of XL take 0.8 GB."""
    with torch.device("meta"):
        weights = create(f"efficientnetv2_{size}", num_classes=21_843)
    asked = []
    monkeypatch.setattr(
        "efficientnetv2.training.initial_weights.load_weights", lambda word, **_: (asked.append(word) or weights, ())
    )
    recipe = get_recipe(f"imagenet_from_21k_{size}_{form}")
    begin = build_initial_model(recipe, class_names=("cat", "dog"), device=CPU)
    assert asked == [f"efficientnetv2_{size}.in21k"]
    assert asked[0] in pretrained.weight_names()
    assert (begin.model, begin.network.num_classes) == (f"efficientnetv2_{size}", 2)
    assert (recipe.eval_image_size, recipe.progressive.last.image_size) == (px, px)


def test_torchvision_file_is_recognized_and_its_padding_is_used(tmp_path):
    """torchvision's B0 has symmetric padding and epsilon 1e-5, and is equal in all else."""
    torch.manual_seed(0)
    theirs = torchvision.models.efficientnet_b0(num_classes=7)
    file = tmp_path / "b0.pth"
    torch.save(theirs.state_dict(), file)
    begin = begun(f"weights={file}", "model=efficientnet_b0")
    assert begin.model == replace(get_architecture("efficientnet_b0"), padding="symmetric", batch_norm_epsilon=1e-5)
    recipe = Recipe.model_validate(get_recipe("finetune").to_json() | {"model": begin.model.to_json()})
    again = build_model(recipe, recipe.model, num_classes=2)
    again.load_state_dict(begin.network.state_dict())
    pictures = torch.randn(2, 3, 64, 64)
    theirs.classifier = nn.Identity()
    with torch.inference_mode():
        expected = theirs.eval()(pictures)
        assert torch.allclose(begin.network.eval().embed(pictures), expected, atol=1e-5)
        assert torch.allclose(again.eval().embed(pictures), expected, atol=1e-5)


def test_weights_of_a_custom_architecture_can_be_fine_tuned(tmp_path):
    network = create(SMALL, num_classes=2)
    network.class_names = ("a", "b")
    model_file.save(tmp_path / "small.safetensors", network)
    begin = begun(f"weights={tmp_path / 'small.safetensors'}")
    assert begin.model == SMALL
    assert "2 stages" in " ".join(begin.notes)


def test_global_pool_is_from_the_recipe_or_else_from_the_weights(given, tmp_path):
    assert begun(f"weights={given[1]}", "global_pool=null").network.embed_dim == 1280
    wide = begun(f"weights={given[1]}", "global_pool=avg+center").network
    assert wide.classifier.in_features == 2 * 1280
    wide.class_names = ("cat", "dog")
    model_file.save(tmp_path / "wide.safetensors", wide)
    kept = begun(f"weights={tmp_path / 'wide.safetensors'}", "global_pool=null")
    assert kept.network.embed_dim == 2 * 1280
    assert kept.model == "efficientnetv2_b0"


def test_architecture_with_another_pooling_than_the_weights_is_refused(given):
    wide = replace(get_architecture("efficientnetv2_b0"), global_pool="avg+center")
    settings = (f"weights={given[1]}", f"model={json.dumps(wide.to_json())}")
    with pytest.raises(InputError, match=mentioning("global_pool=avg+center", "global_pool=avg")):
        begun(*settings, "global_pool=null")
    assert begun(*settings, "global_pool=avg").network.embed_dim == 1280
    assert begun(*settings, "global_pool=avg+center").network.embed_dim == 2 * 1280


def test_layers_are_frozen_by_the_recipe_but_never_without_weights(given):
    begin = begun(f"weights={given[1]}", "freeze_stages=2", "freeze_bn=true")
    frozen = begin.network.train()
    assert not any(norm.training for norm in frozen.modules() if isinstance(norm, nn.BatchNorm2d))
    assert not frozen.stem.conv.weight.requires_grad
    assert any(mentions(note, "Frozen", "freeze_stages=2", "freeze_bn=true", "weights train") for note in begin.notes)
    assert frozen.head.conv.weight.requires_grad
    fresh = begun("weights=none", "freeze_stages=2", "freeze_bn=true")
    assert all(norm.training for norm in fresh.network.train().modules())
    assert mentions(" ".join(fresh.notes), "frozen")


def test_freeze_stages_all_trains_only_the_classifier(given):
    begin = begun(f"weights={given[1]}", "freeze_stages=all")
    # V2-B0 with 1,000 classes has 7,139,704 parameters (google/automl), the classifier 1,280 * 1,000 + 1,000.
    assert mentions(begin.notes, "2,562", "5,861,266")
    frozen = begin.network.train()
    trains = {name for name, weight in frozen.named_parameters() if weight.requires_grad}
    assert trains == {"classifier.weight", "classifier.bias"}
    assert not any(norm.training for norm in frozen.modules() if isinstance(norm, nn.BatchNorm2d))
    one = begun(f"weights={given[1]}", "freeze_stages=1")
    assert any(mentions(note, "freeze_stages=1", "freeze_bn") for note in one.notes)
    for wrong in ("-1", "some", "1.5"):
        with pytest.raises(InputError, match=mentioning("freeze_stages", "all")):
            begun(f"weights={given[1]}", f"freeze_stages={wrong}")


def test_torchvision_model_starts_from_random_weights():
    begin = begun("weights=none", "model=torchvision:resnet18")
    assert begin.model == "torchvision:resnet18"
    assert begin.network.num_classes == 2
    assert torch.equal(begin.network.module.fc.weight, torch.zeros(2, 512))
    assert begin.network.module.layer1[0].conv1.weight.abs().max() > 0
    with pytest.raises(InputError, match="global_pool"):
        begun("weights=none", "model=torchvision:resnet18", "global_pool=avg+center")


def test_both_classifiers_of_a_distilled_model_start_at_zero():
    network = begun("weights=none", "model=timm:deit_tiny_distilled_patch16_224").network.eval()
    assert network.module.head_dist.weight.abs().max() == network.module.head.weight.abs().max() == 0
    with torch.inference_mode():
        assert torch.equal(network(torch.randn(1, 3, 224, 224)), torch.zeros(1, 2))


@pytest.mark.parametrize("classes", [("elk", "fox", "owl"), ("elk", "fox")])
def test_weights_with_two_classifiers_start_a_run_for_other_classes(classes, tmp_path):
    """More classes or the same number."""
    torch.manual_seed(1)
    donor = create("timm:deit_tiny_distilled_patch16_224", num_classes=2)
    path = tmp_path / "distilled.safetensors"
    model_file.save(path, donor, class_names=("cat", "dog"))
    begin, again = (begun(f"weights={path}", classes=classes, recipe="quick").network for _ in range(2))
    assert (begin.num_classes, begin.class_names) == (len(classes), ())
    state, theirs = begin.module.state_dict(), donor.module.state_dict()
    assert all(torch.equal(state[name], theirs[name]) for name in theirs if "head" not in name)
    assert all(torch.equal(state[name], value) for name, value in again.module.state_dict().items())
    for head in ("head.weight", "head_dist.weight"):
        assert state[head].shape == (len(classes), 192)
        assert not torch.equal(state[head], theirs[head])
    assert begun(f"weights={path}").network.module.head.weight.equal(theirs["head.weight"])


def test_random_weights_depend_only_on_the_seed():
    one, same, other = (
        begun("weights=none", f"seed={seed}", recipe="quick").network.state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.conv.weight"], other["stem.conv.weight"])


def in_cache(name, monkeypatch, tmp_path):
    """Write a file into the cache of the hub, as in docs/how-to/offline.md."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    entry = pretrained.get_weights(name)
    folder = tmp_path / f"models--{entry.repository.replace('/', '--')}" / "snapshots" / "main"
    folder.mkdir(parents=True)
    network = create(name.partition(".")[0], num_classes=entry.num_classes)
    tensors = network.state_dict()
    save_file(
        {theirs: tensors[ours].contiguous() for ours, theirs in tensor_names("timm", network.architecture).items()},
        folder / "model.safetensors",
    )
    return tensors


def test_auto_weights_are_taken_from_the_cache_and_logged(monkeypatch, tmp_path):
    tensors = in_cache("efficientnetv2_b0.in1k", monkeypatch, tmp_path)
    begin = begun("weights=auto", "model=auto")
    assert begin.weights == "efficientnetv2_b0.in1k"
    assert "the cache" in begin.notes[0]
    assert torch.equal(begin.network.stem.conv.weight, tensors["stem.conv.weight"])
    assert begin.network.preprocessing.mean == get_model_info("efficientnetv2_b0").preprocessing.mean


def test_auto_uses_the_best_cached_weights_if_better_ones_cannot_be_downloaded(monkeypatch, tmp_path):
    in_cache("efficientnetv2_b3.in1k", monkeypatch, tmp_path)
    found = weights_candidates("efficientnetv2_b3")[0]
    assert found.word == "efficientnetv2_b3.in1k"
    assert found.lacking
    assert f"better ones are not available: {found.lacking}" in found.note


def test_offline_auto_uses_the_weights_of_the_repository_or_else_none(monkeypatch, tmp_path, given):
    shutil.copy(given[1], tmp_path / "efficientnetv2_b0.safetensors")
    monkeypatch.setattr("efficientnetv2.training.initial_weights.BUNDLED", tmp_path)
    shipped = weights_candidates("efficientnetv2_b0")[0]
    assert shipped.word == str(tmp_path / "efficientnetv2_b0.safetensors")
    assert "cache" in shipped.lacking  # for any choice, the note describes how to get published weights
    nothing = weights_candidates("efficientnetv2_s")[0]
    assert nothing.word == "none"
    assert mentions(nothing.note, "from scratch")
    assert "cache" in nothing.note
    assert "effnetv2 models --fetch efficientnetv2_s" in nothing.note  # prints how to fill the cache
    assert weights_candidates("torchvision:resnet18")[0].word == "none"
    assert weights_candidates(SMALL)[0].word == "none"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("efficientnetv2_s", ("efficientnetv2_s.in21k_ft_in1k", "weight")),
        ("efficientnetv2_b0.in1", ("in1k",)),
        ("nowhere.safetensors", ("no such file",)),
        ("torchvision:resnet18", ("torchvision:resnet18.TAG",)),
        ("imagenet", ("no such file",)),
        ("auot", ("did you mean", "auto")),
    ],
)
def test_unknown_weights_are_rejected(word, said):
    with pytest.raises(InputError, match=mentioning(*said)):
        load_weights(word)


def test_folder_of_an_unfinished_run_is_rejected(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: quick")
    with pytest.raises(InputError, match=mentioning("training")):
        load_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("had", "turns", "scale", "said"),
    [
        (1, [0, 0, 0], 1 / 3, "takes 1 channel.* RGB .* scaled by 1/3"),
        (2, [0, 1, 0], 2 / 3, "takes 2 channels.* in turn, scaled by 2/3"),
        (4, [0, 1, 2], 4 / 3, "takes 4 channels.* in turn, scaled by 4/3"),
    ],
)
def test_weights_of_other_channels_are_adapted_and_logged(had, turns, scale, said, tmp_path):
    network = create(SMALL, num_classes=2, in_channels=had)
    network.class_names = ("a", "b")
    model_file.save(tmp_path / "other.safetensors", network)
    begin = begun(f"weights={tmp_path / 'other.safetensors'}")
    assert begin.network.in_channels == 3
    assert torch.allclose(begin.network.stem.conv.weight, network.stem.conv.weight[:, turns] * scale)
    assert len(begin.network.preprocessing.mean) == 3
    assert re.search(said, " ".join(begin.notes))
    assert begin.network(torch.randn(2, 3, 64, 64)).shape == (2, 2)


@pytest.mark.parametrize(
    ("channels", "turns", "scale", "said"),
    [(5, [0, 1, 2, 0, 1], 3 / 5, ("5", "3", "3/5")), (2, [0, 1], 3 / 2, ("2", "3/2", "channel"))],
)
def test_rgb_weights_are_adapted_to_other_bands(channels, turns, scale, said, tmp_path):
    network = create(SMALL, num_classes=2)
    network.class_names = ("a", "b")
    model_file.save(tmp_path / "rgb.safetensors", network)
    recipe = with_overrides(get_recipe("quick"), [f"weights={tmp_path / 'rgb.safetensors'}"])
    begin = build_initial_model(recipe, class_names=("a", "b"), device=CPU, in_channels=channels)
    assert begin.network.preprocessing.channels == begin.network.in_channels == channels
    assert torch.allclose(begin.network.stem.conv.weight, network.stem.conv.weight[:, turns] * scale)
    assert mentions(" ".join(begin.notes), *said)
    fresh = with_overrides(get_recipe("quick"), ["weights=none"])
    assert (
        build_initial_model(fresh, class_names=("a", "b"), device=CPU, in_channels=channels).network.in_channels
        == channels
    )


def test_weights_with_a_grouped_first_convolution_are_rejected_with_a_fix(monkeypatch):
    grouped = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    network = WrappedModel(grouped, source="timm:grouped")
    network.class_names = ("a", "b")
    monkeypatch.setattr("efficientnetv2.training.initial_weights.load_weights", lambda word, **_: (network, ()))
    with pytest.raises(InputError, match=mentioning("4", "RGB")):
        begun("weights=four.safetensors")


def test_timm_file_without_a_classifier_can_be_fine_tuned(tmp_path):
    network = create("efficientnetv2_b0", num_classes=0)
    names = tensor_names("timm", network.architecture)
    tensors = {names[ours]: tensor for ours, tensor in network.state_dict().items()}
    save_file(tensors, tmp_path / "trunk.safetensors")
    begin = begun(f"weights={tmp_path / 'trunk.safetensors'}")
    assert torch.equal(begin.network.stem.conv.weight, network.stem.conv.weight)
    said = " ".join(begin.notes)
    assert "tf_efficientnetv2_b0" in said
    assert mentions(said, "interpolation")
    assert mentions(said, "--interpolation", "--mean", "--std"), "what training does not go by is not advised"


def test_python_file_as_a_model_is_rejected(tmp_path):
    """Custom code uses the custom training loop instead."""
    (tmp_path / "mine.py").write_text("network = None")
    with pytest.raises(InputError, match=mentioning("docs/how-to/own-training-loop.md")):
        begun("weights=none", f"model={tmp_path / 'mine.py'}")


@pytest.mark.parametrize("model", ["efficientnetv2_s.in1k", "timm:resnet50.a1_in1k"])
def test_weights_name_as_a_model_is_rejected(model):
    with pytest.raises(InputError, match=f"weights={model}"):
        begun("weights=none", f"model={model}")


def test_file_or_unknown_name_as_a_model_is_rejected(given):
    with pytest.raises(InputError, match="that names weights"):
        begun("weights=none", f"model={given[1]}")
    with pytest.raises(InputError, match=mentioning("did you mean", "efficientnetv2_s")):
        begun("weights=none", "model=efficientnet_v2_s")


def test_default_models():
    assert default_model(CPU) == "efficientnetv2_b0"
    assert default_model(torch.device("cuda")) == "efficientnetv2_s"


@pytest.mark.parametrize("folder", ["/gone/examples/weights/", "C:\\gone\\examples\\weights\\"])
def test_bundled_weights_of_another_installation_are_those_of_this_one(folder):
    """A recipe that was copied from another machine names its file there."""
    word = f"{folder}efficientnetv2_b0.safetensors"
    validate_weights_name(word)
    network, _ = load_weights(word)
    assert network.class_names == load_weights(str(BUNDLED / "efficientnetv2_b0.safetensors"))[0].class_names
    with pytest.raises(InputError, match="there is no such file"):
        validate_weights_name("/gone/examples/weights/mine.safetensors")
