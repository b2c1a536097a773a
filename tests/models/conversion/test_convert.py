"""Conversion from and to the files of timm and torchvision."""

import argparse
import json
import os
from dataclasses import replace

import pytest
import torch
import torchvision as their_torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests.messages import each_mentions, mentioning, mentions
from tests.models.conversion.timm_state import timm_state
from torch import nn

from efficientnetv2.architectures.registry import get_architecture, get_model_info
from efficientnetv2.models import model_file
from efficientnetv2.models.conversion import convert
from efficientnetv2.models.conversion.timm_config import stated_preprocessing
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.convert import convert as convert_model

their_timm = pytest.importorskip("timm")

B0 = "efficientnetv2_b0"
PREPROCESSING = Preprocessing(
    image_size=160,
    crop_mode="center",
    crop_pct=0.8,
    interpolation="bilinear",
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
)
SYMMETRIC = replace(get_architecture("efficientnet_b0"), padding="symmetric", batch_norm_epsilon=1e-5)


def timm_file(path, name=f"tf_{B0}", change=None, **arguments):
    """A timm state dict, with an optional change."""
    tensors = timm_state(name, **arguments)
    if change:
        change(tensors)
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)
    return path


def our_network(table=None, classes=("oak", "elm", "ash"), channels=3):
    torch.manual_seed(2)
    network = EfficientNet(table or get_architecture(B0), num_classes=len(classes), in_channels=channels)
    network.preprocessing = PREPROCESSING.with_channels(channels)
    network.class_names = classes
    return network.eval()


@pytest.mark.parametrize(("classes", "channels"), [(1000, 3), (7, 3), (0, 3), (1, 4), (5, 1)])
def test_any_number_of_classes_and_channels_is_read(tmp_path, classes, channels):
    path = timm_file(tmp_path / "b0.safetensors", num_classes=classes, in_chans=channels)
    network = convert.read(path).network
    assert (network.num_classes, network.in_channels, len(network.class_names)) == (classes, channels, classes)
    assert network.preprocessing.channels == channels
    assert not network.training
    with torch.inference_mode():
        assert network(torch.randn(1, channels, 64, 64)).shape == (1, classes or 1280)


def test_weights_equal_the_file_and_do_not_share_its_memory(tmp_path):
    path = timm_file(tmp_path / "b0.safetensors")
    network = convert.read(path).network
    stem = network.state_dict()["stem.conv.weight"]
    assert torch.equal(stem, load_file(path)["conv_stem.weight"])
    path.write_bytes(bytes(path.stat().st_size))
    assert stem.abs().sum() > 0


def test_ambiguous_timm_file_is_read_as_the_tf_model_with_a_note(tmp_path):
    path = timm_file(tmp_path / "any.safetensors", "efficientnet_b0")
    read = convert.read(path)
    assert (read.theirs, read.network.architecture) == ("tf_efficientnet_b0", get_architecture("efficientnet_b0"))
    assert any("--model efficientnet_b0" in note for note in read.notes)
    told = convert.read(path, model="efficientnet_b0")
    assert (told.network.architecture.padding, told.network.architecture.batch_norm_epsilon) == ("symmetric", 1e-5)
    assert not any("--model" in note for note in told.notes)


def test_hub_folder_states_its_timm_model_and_preprocessing(tmp_path):
    theirs = their_timm.create_model("efficientnet_b1", num_classes=2, bn_momentum=0.01)
    their_timm.models.save_for_hf(
        theirs, str(tmp_path), model_config={"label_names": ["no", "yes"]}, safe_serialization=True
    )
    read = convert.read(tmp_path)
    assert read.network.architecture.padding == "symmetric"
    assert read.network.class_names == ("no", "yes")
    # timm 1.0.31, efficientnet_b1.ra4_e3600_r240_in1k: tested at 288 px, crop_pct 1.0
    config = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert read.network.preprocessing.image_size == config["test_input_size"][1] == 288
    assert read.network.preprocessing.mean == (0.5, 0.5, 0.5)
    of_file = convert.read(tmp_path / "model.safetensors").network
    assert (of_file.preprocessing, of_file.architecture) == (read.network.preprocessing, read.network.architecture)
    (tmp_path / "config.json").write_text('{"model_type": "of another program"}')
    assert convert.read(tmp_path / "model.safetensors").network.architecture.padding == "same"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly_with_a_note(tmp_path, kind):
    def halve(tensors):
        tensors.update({k: v.to(kind) for k, v in tensors.items() if v.is_floating_point()})

    path = timm_file(tmp_path / "half.safetensors", change=halve)
    read = convert.read(path)
    weight = read.network.state_dict()["head.conv.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, load_file(path)["conv_head.weight"].float())
    assert any(str(kind).removeprefix("torch.") in note for note in read.notes)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda tensors: {"state_dict": tensors, "epoch": 7}, None),
        (lambda tensors: {"model": {f"module.{k}": v for k, v in tensors.items()}}, None),
        (lambda tensors: {f"module._orig_mod.{k}": v for k, v in tensors.items()}, None),
        (
            lambda tensors: {
                "state_dict": {k: torch.zeros_like(v) for k, v in tensors.items()},
                "state_dict_ema": tensors,
                "arch": f"tf_{B0}",
            },
            "'state_dict_ema'",
        ),
        (lambda tensors: {"state_dict": tensors, "arch": f"hf-hub:timm/tf_{B0}.in1k"}, None),
        (lambda tensors: {"state_dict": tensors, "arch": "local-dir:for_timm"}, None),
        (lambda tensors: {"state_dict": tensors, "arch": "distributeddataparallel"}, None),
        (
            lambda tensors: {
                "model": {k: torch.zeros_like(v) for k, v in tensors.items()},
                "model_ema": {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in tensors.items()},
            },
            "'model_ema'",
        ),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_training_programs_are_unwrapped(tmp_path, wrap, said, zipped):
    tensors = timm_state()
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(tensors), path, _use_new_zipfile_serialization=zipped)
    read = convert.read(path)
    assert torch.equal(read.network.state_dict()["stem.conv.weight"], tensors["conv_stem.weight"])
    assert any(said in note for note in read.notes) if said else not any("averaged" in n for n in read.notes)


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("model.", ".ckpt"),
        ("net.backbone.", ".ckpt"),
        ("net.backbone.", ".safetensors"),
        ("module._orig_mod.", ".safetensors"),
    ],
)
def test_model_inside_a_module_is_read(tmp_path, prefix, suffix):
    """As in Lightning's checkpoints, also with other tensors next to the model."""
    tensors = timm_state(num_classes=3)
    held = {prefix + name: tensor for name, tensor in tensors.items()}
    path = tmp_path / f"last{suffix}"
    for beside in ({}, {"criterion.weight": torch.ones(3)}):
        if suffix == ".ckpt":
            torch.save({"state_dict": held | beside, "pytorch-lightning_version": "2.5"}, path)
        else:
            save_file(held | beside, path)
        read = convert.read(path)
        assert torch.equal(read.network.state_dict()["stem.conv.weight"], tensors["conv_stem.weight"])
        assert torch.equal(read.network.classifier.bias, tensors["classifier.bias"])
        told = " ".join(read.notes)
        assert (f"'{prefix}'" in told) == (prefix != "module._orig_mod.")
        assert ("'criterion.weight'" in told) == bool(beside)


def test_checkpoint_of_two_models_is_rejected_with_their_names(tmp_path):
    tensors = timm_state(num_classes=3)
    both = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in tensors.items()}
    torch.save(both, tmp_path / "two.pth")
    with pytest.raises(InputError, match=mentioning("2", "student.", "teacher.")):
        convert.read(tmp_path / "two.pth")


@pytest.mark.parametrize(
    "head",
    [
        {"classifier.1": nn.Linear(1280, 8), "classifier.4": nn.Linear(8, 7)},
        {"fc.0": nn.Linear(1280, 8), "fc.2": nn.Linear(8, 7)},
    ],
    ids=["within the classifier", "of another name"],
)
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_backbone_of_a_model_with_a_custom_head_is_read(tmp_path, library, head):
    whole = their_torchvision.models.efficientnet_b0().state_dict() if library == "torchvision" else timm_state()
    tensors = {name: one for name, one in whole.items() if not name.startswith("classifier.")}
    new = {f"{at}.{name}": one for at, layer in head.items() for name, one in layer.state_dict().items()}
    torch.save(tensors | new, tmp_path / "tuned.pth")
    read = convert.read(tmp_path / "tuned.pth")
    assert (read.network.num_classes, read.network.class_names) == (0, ())
    first = "features.0.0.weight" if library == "torchvision" else "conv_stem.weight"
    assert torch.equal(read.network.state_dict()["stem.conv.weight"], tensors[first])
    (told,) = [note for note in read.notes if "classifier" in note]
    assert f"'{next(iter(new))}'" in told
    tensors.pop(next(name for name in tensors if name.endswith("weight")))
    torch.save(tensors | new, tmp_path / "less.pth")
    with pytest.raises(InputError, match="missing"):
        convert.read(tmp_path / "less.pth")


@pytest.mark.parametrize(
    ("library", "layer"),
    [("torchvision", "classifier"), ("torchvision", "classifier.0"), ("timm", "classifier.1"), ("timm", "fc")],
)
def test_head_of_one_linear_layer_of_any_name_is_the_classifier(tmp_path, library, layer):
    whole = their_torchvision.models.efficientnet_b0().state_dict() if library == "torchvision" else timm_state()
    tensors = {name: one for name, one in whole.items() if not name.startswith("classifier.")}
    head = nn.Linear(1280, 2)
    tensors |= {f"{layer}.{name}": one for name, one in head.state_dict().items()}
    torch.save(tensors, tmp_path / "tuned.pth")
    read = convert.read(tmp_path / "tuned.pth")
    assert torch.equal(read.network.state_dict()["classifier.weight"], head.weight)
    assert torch.equal(read.network.state_dict()["classifier.bias"], head.bias)
    assert any(mentions(note, f"'{layer}'", "classifier") for note in read.notes)
    convert_model(tmp_path / "tuned.pth", tmp_path / "tuned.safetensors", class_names=["oak", "elm"])
    assert model_file.load(tmp_path / "tuned.safetensors").class_names == ("oak", "elm")
    tensors[f"{layer}.weight"] = torch.zeros(2, 1281)
    torch.save(tensors, tmp_path / "wider.pth")
    assert convert.read(tmp_path / "wider.pth").network.num_classes == 0


def test_assumed_activation_is_stated(tmp_path):
    read = convert.read(timm_file(tmp_path / "b0.safetensors", num_classes=3))
    assert any(mentions(note, "activation", "softmax") for note in read.notes)
    for classes in (0, 1000):
        read = convert.read(timm_file(tmp_path / "b0.safetensors", num_classes=classes))
        assert not any("softmax" in note for note in read.notes)
    convert.write(tmp_path / "hub", our_network(), "timm")
    assert not any("softmax" in note for note in convert.read(tmp_path / "hub").notes)


def test_single_output_is_refused_as_a_model_file(tmp_path):
    """Its softmax would be 1 for each image."""
    path = timm_file(tmp_path / "b0.safetensors", num_classes=1)
    with pytest.raises(InputError, match=mentioning("one output", "sigmoid")):
        convert_model(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_checkpoint_of_the_timm_trainer_is_read(tmp_path):
    """CheckpointSaver saves the command-line options, an argparse.Namespace, with the weights."""
    from timm.utils import CheckpointSaver, ModelEmaV2

    torch.manual_seed(3)
    model = their_timm.create_model("tf_efficientnetv2_b0", num_classes=2)
    averaged = ModelEmaV2(model)
    torch.nn.init.normal_(averaged.module.classifier.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = argparse.Namespace(model="tf_efficientnetv2_b0", lr=0.1, mean=[0.5] * 3, resume="", amp=None)
    for args in (options, None):  # without options, it saves the class name instead of the model name
        saver = CheckpointSaver(model, optimizer, args, averaged, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
        saver.save_checkpoint(0, metric=71.5)
        imported = convert.read(tmp_path / "last.pth.tar")
        assert imported.theirs == "tf_efficientnetv2_b0"
        assert torch.equal(imported.network.classifier.weight, averaged.module.classifier.weight)
        assert "averaged" in imported.notes[0]


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_is_recognized_by_content(tmp_path, zipped):
    state = timm_state(num_classes=2)
    torch.save(state, tmp_path / "b0.safetensors", _use_new_zipfile_serialization=zipped)
    network = convert.read(tmp_path / "b0.safetensors").network
    assert torch.equal(network.classifier.weight, state["classifier.weight"])


def test_counters_may_be_missing(tmp_path):
    def leave_out(tensors):
        for name in [name for name in tensors if name.endswith("num_batches_tracked")]:
            del tensors[name]

    read = convert.read(timm_file(tmp_path / "b0.safetensors", change=leave_out))
    assert read.network.state_dict()["stem.norm.num_batches_tracked"] == 0


def test_1000_outputs_are_the_classes_of_imagenet(tmp_path):
    names = convert.read(timm_file(tmp_path / "b0.pth")).network.class_names
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    assert len(set(names)) == 1000


def test_timm_loads_the_exported_folder_with_its_preprocessing(tmp_path):
    from timm.data import resolve_model_data_config

    network = our_network()
    convert.write(tmp_path / "hub", network, "timm")
    theirs = their_timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    pictures = torch.randn(2, 3, 75, 75)
    with torch.inference_mode():
        assert torch.allclose(network(pictures), theirs(pictures), atol=1e-5)
    config = resolve_model_data_config(theirs)
    assert config["input_size"] == [3, 160, 160]
    assert (config["crop_pct"], config["crop_mode"], config["interpolation"]) == (0.8, "center", "bilinear")
    assert (tuple(config["mean"]), tuple(config["std"])) == (PREPROCESSING.mean, PREPROCESSING.std)


def test_timm_model_is_exported_only_to_timm(tmp_path):
    network = create("timm:test_efficientnet", num_classes=2, in_channels=4).eval()
    network.class_names, network.activation = ("a", "b"), "sigmoid"
    convert.write(tmp_path / "hub", network, "timm")
    theirs = their_timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    pictures = torch.randn(2, 4, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(network(pictures), theirs(pictures), atol=1e-5)
    assert json.loads((tmp_path / "hub/config.json").read_text())["problem_type"] == "multi_label_classification"
    with pytest.raises(InputError, match=mentioning("torchvision", "timm:test_efficientnet")):
        convert.write(tmp_path / "out.pth", network, "torchvision")


def test_several_labels_are_read_from_the_config_of_a_hub_folder(tmp_path):
    """Transformers drops the metadata of this package when it saves a model again, and keeps problem_type."""
    network = our_network()
    network.activation = "sigmoid"
    convert.write(tmp_path / "hub", network, "timm")
    weights = tmp_path / "hub/model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    assert convert.read(tmp_path / "hub").network.activation == "sigmoid"
    config = json.loads((tmp_path / "hub/config.json").read_text())
    (tmp_path / "hub/config.json").write_text(json.dumps(config | {"problem_type": "single_label_classification"}))
    assert convert.read(tmp_path / "hub").network.activation == "softmax"


@pytest.mark.parametrize("out", ["out.pth", "out.safetensors"])
@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_b0"])
def test_timm_model_that_this_package_has_too_is_read_back(name, out, tmp_path):
    """The tensors of both paddings are equal; the metadata of this package has the name."""
    network = create(f"timm:{name}", num_classes=2).eval()
    network.class_names, network.activation = ("a", "b"), "sigmoid"
    convert.write(tmp_path / out, network, "timm")
    found = convert.read(tmp_path / out).network
    assert (found.class_names, found.activation) == (("a", "b"), "sigmoid")
    pictures = torch.randn(2, 3, 65, 65)
    with torch.inference_mode():
        assert torch.allclose(network(pictures), found(pictures), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "px"), [("test_vit", 160), pytest.param("coat_lite_tiny", 224, marks=pytest.mark.slow)]
)
def test_timm_opens_a_model_of_a_fixed_size_and_one_of_shared_modules(name, px, tmp_path):
    """Position embeddings of 160 px, where timm's default is 224 px; CoaT has its encodings in each block too."""
    network = create(f"timm:{name}", num_classes=2).eval()
    convert.write(tmp_path / "hub", network, "timm")
    theirs = their_timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    pictures = torch.randn(2, 3, px, px)
    with torch.inference_mode():
        assert torch.allclose(network(pictures), theirs(pictures), atol=1e-5)


@pytest.mark.parametrize(
    ("table", "channels", "classes", "crop_mode"),
    [
        (get_architecture(B0), 3, ("oak", "elm", "ash"), "center"),
        (get_architecture(B0), 4, (), "squash"),
        (SYMMETRIC, 1, ("a", "b"), "border"),
        # For example torchvision's V2-S. timm's models without tf_ have another epsilon, so config.json has it.
        (replace(get_architecture("efficientnet_b0"), padding="symmetric"), 3, ("a", "b"), "center"),
    ],
)
def test_timm_folder_is_read_back_with_equal_bits(tmp_path, table, channels, classes, crop_mode):
    network = our_network(table, classes, channels)
    crop = 0.8 if crop_mode == "center" else 1.0
    network.preprocessing = replace(network.preprocessing, crop_mode=crop_mode, crop_pct=crop)
    convert.write(tmp_path / "hub", network, "timm")
    back = convert.read(tmp_path / "hub").network
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), back.state_dict().values(), strict=True)
    )
    assert (back.architecture, back.preprocessing) == (network.architecture, network.preprocessing)
    assert back.class_names == network.class_names
    theirs = their_timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    pictures = torch.randn(1, channels, 70, 70)
    with torch.inference_mode():
        assert torch.allclose(network(pictures), theirs(pictures), atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_loads_the_exported_file_strictly(tmp_path, suffix):
    network, path = our_network(SYMMETRIC), tmp_path / f"out{suffix}"
    convert.write(path, network, "torchvision")
    theirs = their_torchvision.models.efficientnet_b0(num_classes=3).eval()
    theirs.load_state_dict(load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True))
    pictures = torch.randn(2, 3, 75, 75)
    with torch.inference_mode():
        assert torch.allclose(network(pictures), theirs(pictures), atol=1e-5)
    back = convert.read(path)
    assert back.network.architecture == SYMMETRIC
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), back.network.state_dict().values(),
                                                 strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("to", "out", "table", "why"),
    [
        ("torchvision", "o.pth", get_architecture("efficientnetv2_s"), ("same", "symmetric")),
        ("torchvision", "o.pth", get_architecture(B0), ("efficientnetv2_b0",)),
        ("torchvision", "o.pth", replace(get_architecture("efficientnet_b0"), padding="symmetric"), ("0.001",)),
        ("torchvision", "o.bin", replace(get_architecture("efficientnetv2_s"), padding="symmetric"), (".pth",)),
        ("timm", "o", replace(get_architecture(B0), padding="symmetric"), ("TensorFlow",)),
        ("timm", "o", replace(get_architecture(B0), head_channels=64), ("only the published models",)),
        ("timm", "o.pth", replace(get_architecture("efficientnetv2_s"), padding="symmetric"), ("Give a folder",)),
    ],
)
def test_model_with_other_outputs_in_the_target_library_is_not_written(tmp_path, to, out, table, why):
    with torch.device("meta"):
        network = our_network(table)
    with pytest.raises(InputError, match="was not written") as error:
        convert.write(tmp_path / out, network, to)
    assert mentions(str(error.value), *why)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 4])
def test_torchvision_has_no_model_of_other_channels(tmp_path, channels):
    with pytest.raises(InputError, match=mentioning("3 channels", str(channels))):
        convert.write(tmp_path / "o.pth", our_network(SYMMETRIC, channels=channels), "torchvision")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("channels", "first"), [(1, None), (3, "conv_stem"), (5, None)])
def test_older_timm_keeps_the_first_convolution(tmp_path, channels, first):
    """timm 1.0.29 adapts the layer named there to in_chans from 3 channels, and on failure makes it random."""
    convert.write(tmp_path / "o", our_network(channels=channels), "timm")
    assert json.loads((tmp_path / "o/config.json").read_text())["pretrained_cfg"]["first_conv"] == first


@pytest.mark.parametrize(
    ("to", "out"), [("timm", "o"), ("timm", "o.pth"), ("torchvision", "o.pth"), ("keras", "o.keras")]
)
def test_error_names_the_unsupported_pooling(tmp_path, to, out):
    with torch.device("meta"):
        network = our_network(replace(get_architecture("efficientnet_b0"), global_pool="avg+center"))
    with pytest.raises(InputError, match=mentioning("avg+center")):
        convert.write(tmp_path / out, network, to)
    assert not list(tmp_path.iterdir())


def test_file_in_place_of_a_timm_folder_is_rejected(tmp_path):
    (tmp_path / "mine").write_text("of the user")
    with pytest.raises(InputError, match=mentioning("timm")):
        convert.write(tmp_path / "mine", our_network(), "timm")
    assert (tmp_path / "mine").read_text() == "of the user"


@pytest.mark.parametrize(
    ("to", "out", "table", "alone"),
    [
        ("timm", "hub", get_architecture(B0), ["test-time augmentation (tta 'd4')"]),
        ("timm", "o.safetensors", get_architecture(B0), ["class names", "preprocessing", "test-time augmentation"]),
        ("torchvision", "o.pth", SYMMETRIC, ["class names", "preprocessing", "test-time augmentation"]),
    ],
)
def test_metadata_that_the_target_library_ignores_is_reported(tmp_path, to, out, table, alone):
    network = our_network(table)
    network.preprocessing = replace(PREPROCESSING, tta="d4")
    notes = convert.write(tmp_path / out, network, to)
    assert each_mentions(notes, *((f"the {word}",) for word in alone))


def test_default_metadata_is_not_reported_as_ignored(tmp_path):
    assert convert.write(tmp_path / "hub", our_network(), "timm") == ()
    [note] = convert.write(tmp_path / "o.pth", our_network(classes=("0", "1")), "timm")
    assert "preprocessing" in note
    network = our_network()
    network.preprocessing = replace(PREPROCESSING, crop_pct=0.77)  # 207.8 px for 160 px
    [note] = convert.write(tmp_path / "hub", network, "timm")
    assert mentions(note, f"{160 / 208:.6g}", "crop_pct", "0.77")


def test_missing_preprocessing_of_b0_is_the_published_one(tmp_path):
    """The note has a complete command to change it, also for file names with spaces."""
    path = timm_file(tmp_path / "my b0.safetensors")
    read = convert.read(path)
    assert read.network.preprocessing == get_model_info(B0).preprocessing
    [note] = [note for note in read.notes if note.startswith("preprocessing")]
    for words in (
        "states no image_size, crop_mode, interpolation, mean or std",
        f"timm's tf_{B0}: image_size 224, crop_mode center (0.875 of the shorter side), interpolation bicubic, mean "
        "0.485",
        f"effnetv2 convert '{path}' OUT with --image-size, --crop-mode, --interpolation, --mean or --std",
    ):
        assert words in note


def test_tag_sets_the_preprocessing_of_its_weights(tmp_path):
    """Weights of adversarial propagation use mean and std 0.5 instead of ImageNet's."""
    path = timm_file(tmp_path / "b0.safetensors", "tf_efficientnet_b0")
    plain, tagged, older = (
        convert.read(path, model=f"tf_efficientnet_b0{tag}").network.preprocessing for tag in ("", ".ap_in1k", "_ap")
    )
    assert plain.mean == get_model_info("efficientnet_b0").preprocessing.mean != tagged.mean
    assert tagged.mean == tagged.std == (0.5, 0.5, 0.5)
    assert older == tagged


def test_tag_of_a_timm_model_without_tf_sets_the_preprocessing(tmp_path):
    plain = timm_file(tmp_path / "b3.safetensors", "efficientnet_b3", num_classes=2)
    imported = convert.read(plain, model="efficientnet_b3")
    seen = imported.network.preprocessing
    assert (seen.image_size, seen.crop_pct) == (320, 1.0)
    assert any(mentions(note, "efficientnet_b3.ra2_in1k", "image_size", "320") for note in imported.notes)
    trained = {"arch": "tf_efficientnet_b0", "state_dict": timm_state("tf_efficientnet_b0")}
    torch.save(trained, tmp_path / "trained.pth")
    tagged = convert.read(tmp_path / "trained.pth", model="tf_efficientnet_b0.ap_in1k").network.preprocessing
    assert tagged.mean == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match=mentioning("tf_efficientnet_b0", "`model`")):
        convert.read(tmp_path / "trained.pth", model="efficientnet_b0")


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_safetensors_header_that_looks_like_a_pickle_is_recognized(tmp_path, start):
    """The length of the header is a multiple of 8, so one file in 32 begins like a pickle."""
    path = tmp_path / "in.safetensors"
    tensors = timm_state(num_classes=2)
    save_file(tensors, path, {"note": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    meant, period = int.from_bytes(start, "little"), 256 ** len(start)
    assert meant % 8 == 0, "headers are so long"
    save_file(tensors, path, {"note": "x" * ((meant - length) % period)})
    assert path.read_bytes().startswith(start)
    assert convert.read(path).network.num_classes == 2


@pytest.mark.parametrize(
    ("out", "writer", "error"),
    [
        (
            "folder",
            "efficientnetv2.models.conversion.weight_writer.save_file",
            SafetensorError("No space left on device"),
        ),
        ("x.pth", "torch.save", RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nat")),
        ("y.pth", "torch.save", OSError(28, "No space left on device")),
    ],
)
def test_full_disk_is_reported_and_leaves_no_partial_file(tmp_path, monkeypatch, out, writer, error):
    def full(*_):
        raise error

    monkeypatch.setattr(writer, full)
    with pytest.raises(InputError, match=mentioning(out)):
        convert.write(tmp_path / out, our_network(), "timm")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_name_of_a_downloaded_file_sets_its_preprocessing(tmp_path):
    """Its tensors do not tell that these weights have another mean."""
    file = timm_file(tmp_path / "efficientnet_b0.ap_in1k.safetensors", "tf_efficientnet_b0")
    convert_model(file, tmp_path / "b0.safetensors")
    assert model_file.load(tmp_path / "b0.safetensors").preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("to", "suffix"), [("timm", ".safetensors"), ("keras", ".keras")])
def test_name_of_a_downloaded_file_leaves_what_a_file_states(to, suffix, tmp_path):
    if to == "keras":
        os.environ.setdefault("KERAS_BACKEND", "torch")
        pytest.importorskip("keras")
    file = tmp_path / f"efficientnet_b0.ap_in1k{suffix}"
    network = our_network(get_architecture("efficientnet_b0"), ("oak", "elm", "ash"))
    convert.write(file, network, to)
    convert_model(file, tmp_path / "back.safetensors")
    back = model_file.load(tmp_path / "back.safetensors")
    assert (back.preprocessing, back.class_names) == (network.preprocessing, network.class_names)


def test_timm_model_with_a_black_margin_is_read_without_it():
    """timm 1.0.31, volo_d5_448: input of 448 px, crop_pct 1.15."""
    config = {"input_size": (3, 448, 448), "crop_pct": 1.15, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    found, notes = stated_preprocessing(config, "volo_d5_448")
    assert (found.image_size, found.crop_pct) == (448, 1.0)
    assert any(mentions(note, "1.15") for note in notes)


def test_numbered_class_names_of_a_config_are_in_numeric_order(tmp_path):
    """timm allows {"0": name, ...}. As text, "10" comes before "2"."""
    names = tuple(f"class {number}" for number in range(12))
    convert.write(tmp_path / "hub", our_network(classes=names), "timm")
    path = tmp_path / "hub/config.json"
    numbered = {str(number): names[number] for number in reversed(range(12))}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_names": numbered}))
    weights = tmp_path / "hub/model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})  # without our metadata
    assert convert.read(tmp_path / "hub").network.class_names == names
