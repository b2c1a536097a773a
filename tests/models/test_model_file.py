"""Model files: equal after saving and loading, and invalid files are rejected with the reason."""

import copy
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.load import added_peak_bytes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.messages import mentioning, mentions
from torch import nn

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.models import model_file
from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.models.model_header import conversion_hint
from efficientnetv2.models.provenance import CALIBRATION_KEY, KEY, TrainingFingerprint
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError

SMALL = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=2, kernel=3), stride=2, channels=8, layers=2),
        Stage(mbconv(expand=2, kernel=3), stride=2, channels=16, layers=1),
    ),
    head_channels=24,
    padding="symmetric",
    batch_norm_epsilon=1e-5,
)
NAMES = ("forêt", "pasture", "<b>maize</b>")
PREPROCESSING = Preprocessing(image_size=33, crop_mode="border", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
RECIPE = {"name": "quick", "optimizer": {"lr": 0.1}, "weights": None, "sizes": [32, 48]}


def _network():
    torch.manual_seed(3)
    network = EfficientNet(SMALL, num_classes=3, dropout=0.3, drop_path=0.2)
    with torch.no_grad():
        for buffer in network.buffers():  # other statistics than in a new model
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return network


def _save(path, network=None, **changes):
    words = {"preprocessing": PREPROCESSING, "class_names": NAMES, "recipe": RECIPE, "metrics": {"top1": 0.9}}
    model_file.save(path, network or _network(), **(words | changes))
    return path


def _rewrite(path, change_json=None, change_tensors=None):
    """Change a file with safetensors only."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    plain, tensors = json.loads(metadata["efficientnetv2"]), load_file(path)
    for change, subject in ((change_json, plain), (change_tensors, tensors)):
        if change:
            change(subject)
    save_file(tensors, path, metadata | {"efficientnetv2": json.dumps(plain)})


def test_swapped_arguments_are_reported(tmp_path):
    with pytest.raises(InputError, match=mentioning("EfficientNet")):
        model_file.save(_network(), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=mentioning("efficientnetv2.create")):
        model_file.save(str(tmp_path / "m.safetensors"), nn.Linear(2, 2))
    assert not list(tmp_path.iterdir())


def test_loaded_model_equals_the_saved_model(tmp_path):
    network = _network()
    loaded = model_file.load(_save(tmp_path / "m.safetensors", network))
    assert loaded.architecture == SMALL
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.class_names == NAMES
    assert loaded.recipe == RECIPE
    assert loaded.metrics == {"top1": 0.9}
    assert not any(module.training for module in loaded.modules())
    images = torch.randn(2, 3, 33, 33)
    assert torch.equal(loaded(images), network.eval()(images))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])


def test_other_safetensors_readers_can_read_the_weights(tmp_path):
    network = _network().to(memory_format=torch.channels_last)
    tensors = load_file(_save(tmp_path / "m.safetensors", network))
    network.load_state_dict(tensors, strict=True)


def test_run_folder_loads_its_model_file(tmp_path):
    _save(tmp_path / "model.safetensors")
    assert model_file.load(tmp_path).class_names == NAMES
    with pytest.raises(InputError, match=mentioning("model.safetensors")):
        model_file.load(tmp_path.parent)


def test_mistyped_run_suggests_the_nearest_folder(tmp_path):
    (tmp_path / "runs/flowers").mkdir(parents=True)
    with pytest.raises(InputError, match=mentioning("did you mean", tmp_path / "runs/flowers")):
        model_file.load(tmp_path / "runs/flowerz")


def test_loaded_model_does_not_change_with_its_file(tmp_path):
    path = _save(tmp_path / "m.safetensors")
    loaded = model_file.load(path)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    size = path.stat().st_size
    with open(path, "rb+") as file:
        file.write(b"\xff" * size)
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.state_dict().items())


def test_loading_does_not_change_the_random_state(tmp_path):
    path = _save(tmp_path / "m.safetensors")
    state = torch.random.get_rng_state()
    model_file.load(path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_more_than_three_channels_are_saved(tmp_path):
    network = EfficientNet(SMALL, num_classes=3, in_channels=5)
    five = Preprocessing(image_size=32, mean=(0.5,) * 5, std=(0.2,) * 5)
    path = _save(tmp_path / "m.safetensors", network, preprocessing=five)
    assert model_file.load(path)(torch.zeros(1, 5, 32, 32)).shape == (1, 3)


def test_file_of_format_1_is_read():
    """Written by the package of that time, with the logits of that time."""
    loaded = model_file.load(Path(__file__).parent / "data" / "format_1.safetensors")
    assert (loaded.class_names, loaded.recipe, loaded.metrics) == (("bog", "fen"), {"name": "quick"}, {"top1": 0.75})
    assert loaded.preprocessing == Preprocessing(image_size=16, crop_mode="border")
    picture = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    torch.testing.assert_close(loaded(picture), torch.tensor([[0.06610342860221863, 0.2746164798736572]]))


@pytest.mark.parametrize("answer", ["softmax", "sigmoid"])
def test_activation_is_saved(tmp_path, answer):
    network = _network()
    network.activation = answer
    path = _save(tmp_path / "m.safetensors", network)
    assert model_file.load(path).activation == model_file.read_header(path).activation == answer


def test_files_of_format_3_have_softmax(tmp_path):
    path = _save(tmp_path / "m.safetensors")
    _rewrite(path, change_json=lambda plain: (plain.pop("activation"), plain.update(format_version=3)))
    assert model_file.load(path).activation == "softmax"


def test_damaged_file_of_format_1_is_rejected(tmp_path):
    path = tmp_path / "m.safetensors"
    damaged = bytearray((Path(__file__).parent / "data" / "format_1.safetensors").read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="SHA-256 differs"):
        model_file.load(path)


def test_sha256_covers_the_tensors_as_stored(tmp_path):
    """By hand: a line per tensor (name, type, shape, offsets), then the bytes after the header."""
    path = _save(tmp_path / "m.safetensors")
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    listed = json.loads(raw[8:start])
    words = json.loads(listed.pop("__metadata__")["efficientnetv2"])
    kinds = {"F32": "torch.float32", "I64": "torch.int64"}
    digest = hashlib.sha256()
    for name, row in sorted(listed.items()):
        first, end = row["data_offsets"]
        digest.update(f"{name} {kinds[row['dtype']]} {row['shape']} {first} {end}\n".encode())
    digest.update(raw[start:])
    assert words["sha256"] == digest.hexdigest()
    assert words["format_version"] == 5


@pytest.mark.parametrize("place", [0.4, 0.7, 0.99])
def test_flipped_bit_is_detected(tmp_path, place):
    path = _save(tmp_path / "m.safetensors")
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start + int((len(raw) - start) * place)] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="SHA-256 differs"):
        model_file.load(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(tmp_path, kind):
    network = _network()
    loaded = model_file.load(_save(tmp_path / "m.safetensors", copy.deepcopy(network).to(kind)))
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    expected = network.stem.conv.weight.to(kind).float()
    assert torch.equal(loaded.stem.conv.weight, expected)


def test_half_precision_halves_the_file_and_barely_changes_the_logits(tmp_path):
    """float16 has 11 significant bits, so kernels change by at most 1/2048. Batch norms and biases do not change."""
    network = _network().eval()
    loaded = model_file.load(_save(tmp_path / "half.safetensors", network, half=True))
    stored = load_file(tmp_path / "half.safetensors")
    for name, weight in network.state_dict().items():
        vector = weight.ndim < 2
        assert stored[name].dtype == (weight.dtype if vector else torch.float16)
        again = loaded.state_dict()[name]
        assert again.dtype == weight.dtype
        torch.testing.assert_close(again, weight, rtol=0 if vector else 2**-11, atol=0 if vector else 2**-25)
    assert loaded.preprocessing == PREPROCESSING
    images = torch.randn(4, 3, 33, 33)
    before, after = network(images), loaded(images)
    off = float((before - after).detach().abs().max() / before.detach().std())
    assert 0 < off < 5e-3, "of the logits' spread"
    model_file.save(tmp_path / "whole.safetensors", loaded)
    assert {one.dtype for one in load_file(tmp_path / "whole.safetensors").values()} == {torch.float32, torch.int64}


def test_weight_too_large_for_half_precision_is_rejected_without_a_file(tmp_path):
    network = _network()
    network.classifier.weight.data[0, 0] = 70_000.0
    with pytest.raises(InputError, match=mentioning("65,504", "classifier.weight")):
        _save(tmp_path / "m.safetensors", network, half=True)
    assert list(tmp_path.iterdir()) == []
    _save(tmp_path / "m.safetensors", network)


def test_missing_arguments_are_taken_from_the_model(tmp_path):
    loaded = model_file.load(_save(tmp_path / "a.safetensors"))
    model_file.save(tmp_path / "b.safetensors", loaded)
    again = model_file.load(tmp_path / "b.safetensors")
    assert (again.class_names, again.preprocessing) == (NAMES, PREPROCESSING)
    assert (again.recipe, again.metrics) == (RECIPE, {"top1": 0.9})
    first, second = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_model_without_a_classifier_has_no_class_names(tmp_path):
    path = tmp_path / "m.safetensors"
    trunk = adapt(_network(), num_classes=0)
    model_file.save(path, trunk, preprocessing=PREPROCESSING)
    loaded = model_file.load(path)
    assert (loaded.num_classes, loaded.class_names) == (0, ())
    assert loaded(torch.zeros(1, 3, 33, 33)).shape == (1, 24)
    with pytest.raises(InputError, match=mentioning("1", "class_names", "0")):
        model_file.save(path, trunk, class_names=("a",))


def test_weights_whose_sum_overflows_are_accepted(tmp_path):
    network = _network()
    torch.nn.init.constant_(network.classifier.weight, 3e38)
    assert torch.equal(
        model_file.load(_save(tmp_path / "m.safetensors", network)).classifier.weight, network.classifier.weight
    )


def test_infinities_that_cancel_are_rejected(tmp_path):
    network = _network()
    network.classifier.weight.data[0, :2] = torch.tensor([float("inf"), -float("inf")])
    with pytest.raises(InputError, match=r"classifier\.weight"):
        _save(tmp_path / "m.safetensors", network)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"", "incomplete"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"PK\x03\x04" + b"a" * 300, "pickle"),
        ((2**60).to_bytes(8, "little") + b"{" + b" " * 300, "not a safetensors file.*[Hh]eader"),
        (b"<!DOCTYPE html>" + b" " * 300, "not a safetensors file"),
    ],
)
def test_other_files_are_rejected(tmp_path, contents, says):
    path = tmp_path / "m.safetensors"
    path.write_bytes(contents)
    with pytest.raises(InputError, match=says):
        model_file.load(path)


@pytest.mark.parametrize("kept", [0.001, 0.02, 0.5, 0.999])
def test_truncated_file_is_reported_as_incomplete(tmp_path, kept):
    path = _save(tmp_path / "m.safetensors")
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(InputError, match=r"m\.safetensors.*incomplete"):
        model_file.load(path)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(InputError, match=mentioning("nothing.safetensors")):
        model_file.load(tmp_path / "nothing.safetensors")


def test_name_of_pretrained_weights_suggests_how_to_get_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=mentioning("efficientnetv2_b0.in1k")):
        model_file.load("efficientnetv2_b0.in1k")


def test_safetensors_of_other_programs_are_rejected(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(_network().state_dict(), path, {"format": "pt"})
    with pytest.raises(InputError, match=mentioning("efficientnetv2")):
        model_file.load(path)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"format_version": "x"}', "[" * 100_000])
def test_invalid_metadata_is_rejected(tmp_path, text):
    path = tmp_path / "m.safetensors"
    save_file(_network().state_dict(), path, {"efficientnetv2": text})
    with pytest.raises(InputError, match=mentioning("efficientnetv2", "damaged")):
        model_file.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plain: plain.update(class_names=["a", "b"]), "2 class_names for 3 outputs"),
        (lambda plain: plain.update(class_names=["a", "a", "b"]), "class_names are the same"),
        (lambda plain: plain.update(foreign="timm:resnet18"), "architecture.*timm:resnet18"),
        (lambda plain: plain.update(architecture=None, foreign="jax:net"), "jax:net"),
        (lambda plain: plain.update(architecture=None, foreign="timm:resnet10t"), "do not fit"),
        (lambda plain: plain.update(architecture=None, foreign="timm:resnet10t.c3_in1k"), r"timm:resnet10t\.c3_in1k"),
        (lambda plain: plain.update(architecture=None), "network=module"),
        (lambda plain: plain.update(format_version=0), "format 0 does not exist"),
        (lambda plain: plain.update(in_channels=4), "preprocessing of 3 channels for 4"),
        (
            lambda plain: plain["preprocessing"].update(bands={"numbers": [1, 2, 3, 4]}),
            "mean has 3 values, but images are made of 4 bands",
        ),
        (lambda plain: plain["preprocessing"].update(crop_mode="stretch"), r"preprocessing\.crop_mode"),
        (lambda plain: plain["preprocessing"].update(std=[0.0, 1.0, 1.0]), r"\(preprocessing\.std: std is \(0\.0"),
        (lambda plain: plain["architecture"]["stages"][0].update(stride=3), "stride is 3"),
        (lambda plain: plain.pop("recipe"), "recipe"),
        (lambda plain: plain.update(activation="argmax"), "activation: .*'softmax' or 'sigmoid'"),
        (lambda plain: plain.pop("activation"), "activation"),
        (lambda plain: plain.update(surprise=1), "surprise"),
        (lambda plain: plain["architecture"]["stages"][0].update(layers=900), "cannot be built.*layers"),
        (lambda plain: plain["architecture"]["stages"][0].update(layers=10**12), "layers is 1000.*at most 1,000"),
        (lambda plain: plain["architecture"].update(head_channels=2**70), "head_channels is 118.*at most"),
        (lambda plain: plain["preprocessing"].update(image_size=10**400), "image_size is 10.400, .*4,096"),
        (lambda plain: plain["preprocessing"].update(image_size=10**9), "image_size is 1000000000, .*4,096"),
        (lambda plain: plain["preprocessing"].update(image_size="wide"), "image_size: must be a whole number"),
        (lambda plain: plain["preprocessing"].update(mean=[float("nan")] * 3), r"mean is \(nan, .*1000"),
        (lambda plain: plain["preprocessing"].update(mean=[1e308, 0, 0]), r"mean is \(1e\+308, .*1000"),
        (lambda plain: plain["preprocessing"].update(std=[1e-320, 1, 1]), r"std is \(1e-320, .*1e-06"),
        (lambda plain: plain.update(format_version=6, package_version="9.1"), r"efficientnetv2 9\.1.*[Uu]pgrade"),
        (lambda plain: plain["architecture"].update(head_channels=32), r"do not fit.*'head.*float32 \[24"),
        (lambda plain: plain.update(sha256="0" * 64), "SHA-256 differs"),
    ],
)
def test_wrong_values_in_metadata_are_rejected(tmp_path, change, says):
    path = _save(tmp_path / "m.safetensors")
    _rewrite(path, change_json=change)
    with pytest.raises(InputError, match=f"m.safetensors.*{says}"):
        model_file.load(path)


def test_deeply_nested_metadata_is_rejected(tmp_path):
    """Too deep for the checks or for the JSON parser."""
    path = _save(tmp_path / "m.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for deep in (300, 800, 10_000):
        plain = json.loads(metadata["efficientnetv2"])
        text = json.dumps(plain | {"recipe": {"a": 7}}).replace("7", "[" * deep + "]" * deep)
        save_file(_network().state_dict(), path, metadata | {"efficientnetv2": text})
        with pytest.raises(InputError, match=r"m\.safetensors"):  # because of the nesting or of the SHA-256
            model_file.load(path)


@pytest.mark.parametrize("key", [KEY, CALIBRATION_KEY])
@pytest.mark.parametrize("value", ["1e999", "-1", "1.5", '"many"', "true", "9" * 400, "[3]"])
def test_invalid_number_of_images_is_named(tmp_path, key, value):
    path = _save(tmp_path / "m.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    text = f'{{"pictures": {value}, "marks": "", "temperature": 1.0, "fitted_on": "minival"}}'
    save_file(load_file(path), path, metadata | {key: text})
    with pytest.raises(InputError, match=mentioning(key, "m.safetensors", "0")):
        model_file.load(path)


@pytest.mark.parametrize("value", ["1e999", "0", "-1", "NaN", "null", "[1]"])
def test_invalid_temperature_is_named(tmp_path, value):
    path = _save(tmp_path / "m.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    text = f'{{"pictures": 3, "temperature": {value}, "fitted_on": "minival"}}'
    save_file(load_file(path), path, metadata | {CALIBRATION_KEY: text})
    with pytest.raises(InputError, match=rf"m\.safetensors.*'{CALIBRATION_KEY}'.*"):
        model_file.load(path)


def test_weights_of_another_architecture_are_rejected(tmp_path):
    def rename(tensors):
        tensors["classifier.gain"] = tensors.pop("classifier.bias")

    path = _save(tmp_path / "m.safetensors")
    _rewrite(path, change_tensors=rename)
    with pytest.raises(InputError, match=mentioning("classifier.bias", "classifier.gain")):
        model_file.load(path)


def test_weight_of_another_type_or_value_is_rejected(tmp_path):
    def count(tensors):
        tensors["classifier.bias"] = tensors["classifier.bias"].long()

    def nudge(tensors):
        tensors["classifier.bias"][1] += 1e-3

    def spoil(tensors):
        tensors["classifier.bias"][1] = float("nan")

    for change, says in ((count, r"int64 \[3\], not float32"), (nudge, "SHA-256"), (spoil, r"NaN.*classifier\.bias")):
        path = _save(tmp_path / "m.safetensors")
        _rewrite(path, change_tensors=change)
        with pytest.raises(InputError, match=says):
            model_file.load(path)


def test_negative_variance_is_rejected_when_loading_and_saving(tmp_path):
    """A variance of 0 is valid."""
    path = _save(tmp_path / "m.safetensors")

    def negate(tensors):
        tensors["stem.norm.running_var"][0] = -0.5

    network = _network()
    network.stem.norm.running_var.zero_()
    assert model_file.load(_save(tmp_path / "still.safetensors", network)).stem.norm.running_var.sum() == 0
    _rewrite(path, change_tensors=negate)
    with pytest.raises(InputError, match=mentioning("0", "stem.norm.running_var")):
        model_file.load(path)
    network.stem.norm.running_var[1] = -1e-9
    with pytest.raises(InputError, match=mentioning("0", "stem.norm.running_var")):
        _save(path, network)


def test_softmax_of_one_output_is_not_saved(tmp_path):
    """It is 1 for each image. A sigmoid of one label is not."""
    network, path = EfficientNet(SMALL, num_classes=1), tmp_path / "m.safetensors"
    with pytest.raises(InputError, match=mentioning("one output", "sigmoid")):
        model_file.save(path, network, class_names=("defect",))
    assert not path.exists()
    network.activation = "sigmoid"
    model_file.save(path, network, class_names=("defect",))
    assert model_file.load(path).activation == "sigmoid"


def test_invalid_model_is_not_saved_and_the_old_file_remains(tmp_path):
    path = _save(tmp_path / "m.safetensors")
    before = path.read_bytes()
    broken = _network()
    broken.classifier.bias.data[0] = float("inf")
    with pytest.raises(InputError, match=mentioning("1", "classifier.bias")):
        _save(path, broken)
    with pytest.raises(InputError, match=mentioning("2", "class_names", "3")):
        _save(path, class_names=("a", "b"))
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="could not be written"):
        _save(tmp_path / "nowhere" / "m.safetensors")


CHANGES = {
    "head of two layers": ("classifier", nn.Sequential(nn.Dropout(), nn.Linear(24, 3)), r"classifier\.1\.weight"),
    "head of 9": ("classifier", nn.Linear(24, 9), r"classifier.*\[9, 24\]"),
    "stem of 1 channel": ("stem.conv", nn.Conv2d(1, 8, 3, 2, 1, bias=False), r"stem\.conv"),
    "stem of stride 1": ("stem.conv", nn.Conv2d(3, 8, 3, 1, 1, bias=False), r"stem\.conv.*stride=\(1, 1\)"),
    "activation": ("stem.act", nn.ReLU(), r"stem\.act.*ReLU.*SiLU"),
    "no activation": ("stem.act", nn.Identity(), r"stem\.act.*nothing.*SiLU"),
    "epsilon": ("stem.norm", nn.BatchNorm2d(8, eps=0.1), r"stem\.norm.*0\.1"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_model_with_a_changed_layer_is_not_saved(tmp_path, case):
    """load() would reject the file or silently build another model."""
    name, layer, says = CHANGES[case]
    network = _network()
    network.set_submodule(name, layer)
    with pytest.raises(InputError, match=says):
        _save(tmp_path / "m.safetensors", network)
    assert list(tmp_path.iterdir()) == []


def test_changed_padding_is_not_saved(tmp_path):
    network = EfficientNet(replace(SMALL, padding="same"), num_classes=3)
    network.stem.conv = nn.Conv2d(3, 8, 3, 2, 0, bias=False)
    with pytest.raises(InputError, match=mentioning("stem.conv")):
        _save(tmp_path / "m.safetensors", network)


def test_torchvision_model_with_a_replaced_layer_is_not_saved(tmp_path):
    network = create("torchvision:mobilenet_v3_small", num_classes=3)
    _save(tmp_path / "m.safetensors", network)
    network.module.classifier[3] = nn.Sequential(nn.Linear(1024, 3))
    with pytest.raises(InputError, match=r"classifier\.3\.0\.weight"):
        _save(tmp_path / "m.safetensors", network)


@pytest.mark.parametrize(
    ("name", "layer"), [("relu", nn.GELU()), ("maxpool", nn.Identity()), ("bn1", nn.BatchNorm2d(64, eps=1e-3))]
)
def test_torchvision_model_with_another_layer_of_equal_tensors_is_not_saved(name, layer, tmp_path):
    """It would be loaded with the original layer, and predict something else."""
    network = create("torchvision:resnet18", num_classes=3)
    setattr(network.module, name, layer)
    with pytest.raises(InputError, match=name):
        _save(tmp_path / "m.safetensors", network)


def test_rates_of_another_library_may_change(tmp_path):
    network = create("timm:convnext_atto", num_classes=3, dropout=0.1, drop_path=0.1)
    loaded = model_file.load(_save(tmp_path / "m.safetensors", network.eval()))
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(pixels), network(pixels))


def test_layers_without_an_effect_in_evaluation_may_be_replaced(tmp_path):
    network = _network()
    network.dropout = nn.Identity()
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    loaded = model_file.load(_save(tmp_path / "m.safetensors", network))
    pixels = torch.randn(1, 3, 33, 33)
    torch.testing.assert_close(loaded(pixels), _network().eval()(pixels))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", torch.device("cuda:99"), ""])
def test_missing_device_is_named(tmp_path, device):
    with pytest.raises(InputError, match=f"device is '{device}'"):
        model_file.load(_save(tmp_path / "m.safetensors"), device)


@pytest.mark.parametrize("name", ["m.pth", "m", "m.safetensors.bak"])
def test_model_file_must_end_in_safetensors(tmp_path, name):
    with pytest.raises(InputError, match=mentioning(name)):
        _save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"metrics": {"top1": 0.5, "loss": float("nan")}}, r"metrics\.loss is nan"),
        ({"metrics": {"val": [{"f1": 1.0}, {"f1": -float("inf")}]}}, r"metrics\.val\[1\]\.f1 is -inf"),
        ({"metrics": {"top1": np.float32(0.5)}}, r"metrics\.top1 is a float32"),
        ({"recipe": {"optimizer": {"kind": torch.optim.SGD}}}, r"recipe\.optimizer\.kind is a type"),
        ({"recipe": {"epochs_of": {3: "warmup"}}}, r"recipe\.epochs_of has the key 3"),
    ],
)
def test_values_that_json_cannot_store_are_rejected_without_a_file(tmp_path, words, says):
    """RFC 8259: finite numbers, keys as text, and only a few types."""
    with pytest.raises(InputError, match=rf"m\.safetensors was not written: .*{says}"):
        _save(tmp_path / "m.safetensors", **words)
    assert list(tmp_path.iterdir()) == []


def test_tuple_is_saved_as_a_list(tmp_path):
    path = _save(tmp_path / "m.safetensors", recipe={"sizes": (32, 48)}, metrics={"top1": np.float64(0.5)})
    loaded = model_file.load(path)
    assert (loaded.recipe, loaded.metrics) == ({"sizes": [32, 48]}, {"top1": 0.5})


class Tied(nn.Module):
    """Two convolutions with a shared weight, as in an autoencoder."""

    def __init__(self, tied=True):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.classifier = nn.Linear(3, 2)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.classifier(self.b(self.a(x)).mean((2, 3)))


def test_shared_weight_is_saved_and_remains_shared(tmp_path):
    network = WrappedModel(Tied()).eval()
    _save(tmp_path / "m.safetensors", network, class_names=("a", "b"))
    assert network.module.a.weight is network.module.b.weight
    loaded = model_file.load(tmp_path / "m.safetensors", network=Tied())
    assert loaded.module.a.weight is loaded.module.b.weight
    pictures = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(pictures), network(pictures))
    assert len(list(loaded.parameters())) == len(list(network.parameters())) == 5


def test_two_weights_are_not_loaded_into_a_shared_one(tmp_path):
    _save(tmp_path / "m.safetensors", WrappedModel(Tied(tied=False)), class_names=("a", "b"))
    with pytest.raises(InputError, match=mentioning("a.weight", "b.weight")):
        model_file.load(tmp_path / "m.safetensors", network=Tied())


def test_weights_that_share_memory_are_saved_separately(tmp_path):
    module = Tied(tied=False)
    both = torch.randn(2, *module.a.weight.shape)
    module.a.weight, module.b.weight = nn.Parameter(both[0]), nn.Parameter(both[0])
    _save(tmp_path / "m.safetensors", WrappedModel(module), class_names=("a", "b"))
    tensors = load_file(tmp_path / "m.safetensors")
    assert torch.equal(tensors["a.weight"], both[0])
    assert torch.equal(tensors["b.weight"], both[0])


def test_pickle_is_rejected_with_the_convert_command(tmp_path):
    torch.save(_network().state_dict(), tmp_path / "m.pth")
    with pytest.raises(InputError, match=mentioning("effnetv2 convert", "m.pth")):
        model_file.load(tmp_path / "m.pth")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak, and resets it")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    """A second copy of the weights would take twice their size, a model built before loading three times."""
    path = tmp_path / "m.safetensors"
    model_file.save(path, EfficientNet(get_architecture("efficientnetv2_b0"), num_classes=0))
    file_bytes = path.stat().st_size
    assert 20e6 < file_bytes < 30e6
    assert added_peak_bytes("ours", path) <= 1.3 * file_bytes


def test_training_fingerprint_is_preserved(tmp_path):
    network = _network()
    assert model_file.load(_save(tmp_path / "none.safetensors", network)).trained_on is None
    remembered = TrainingFingerprint(7, np.array([3, 9], dtype=np.int64))
    first = model_file.load(_save(tmp_path / "a.safetensors", network, trained_on=remembered))
    again = model_file.load(_save(tmp_path / "b.safetensors", first))
    for loaded in (first, again):
        assert loaded.trained_on.num_images == 7
        assert loaded.trained_on.hashes.tolist() == [3, 9]
    other = model_file.load(
        _save(tmp_path / "c.safetensors", first, trained_on=TrainingFingerprint(1, remembered.hashes[:1]))
    )
    assert other.trained_on.hashes.tolist() == [3], "what trained it last"
    file = tmp_path / "a.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), file, metadata | {KEY: "no JSON"})
    with pytest.raises(InputError, match=mentioning(KEY, "a.safetensors")):
        model_file.load(file)


def test_custom_module_for_a_file_without_one_is_rejected(tmp_path):
    """Otherwise the module would silently remain unchanged."""
    network = EfficientNet(SMALL, num_classes=3)
    _save(tmp_path / "m.safetensors", network)
    with pytest.raises(InputError, match="Leave network out"):
        model_file.load(tmp_path / "m.safetensors", network=EfficientNet(SMALL, num_classes=3))


def test_missing_class_names_are_reported(tmp_path):
    with pytest.raises(InputError, match=mentioning("0", "class_names", "3")):
        model_file.save(tmp_path / "m.safetensors", EfficientNet(SMALL, num_classes=3))


def test_convert_command_is_quoted():
    told = conversion_hint(Path("my weights.bin"))
    assert mentions(told, "effnetv2 convert 'my weights.bin' OUT", "--weights")


def test_averaged_model_names_the_model_within_it(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(create("efficientnetv2_b0", num_classes=2))
    with pytest.raises(InputError, match=mentioning("AveragedModel", ".module")):
        model_file.save(tmp_path / "model.safetensors", averaged, class_names=("a", "b"))
