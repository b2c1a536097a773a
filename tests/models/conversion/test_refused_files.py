"""Files that cannot be read: the error has the name, the expected and the found content."""

import json
import pickle
import shutil
import warnings

import pytest
import torch
import torchvision as their_torchvision
from safetensors.torch import save_file
from tests.messages import mentioning, mentions
from tests.models.conversion.timm_state import timm_state

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.models.conversion import convert, detect
from efficientnetv2.models.conversion.layouts import tensor_names, to_tensorflow
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.utils.errors import InputError

their_timm = pytest.importorskip("timm")

B0 = "tf_efficientnetv2_b0"


def refusal(path, **arguments):
    with pytest.raises(InputError) as error:
        convert.read(path, **arguments)
    assert str(path.parent) in str(error.value)
    return str(error.value)


def saved(path, tensors):
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)
    return path


@pytest.mark.parametrize("prefix", ["", "network."])
def test_tensors_of_this_package_name_the_way_to_a_model_file(prefix, tmp_path):
    """For example a checkpoint of Lightning with a model of ``create``."""
    tensors = EfficientNet(get_architecture("efficientnetv2_b0"), num_classes=2).state_dict()
    path = saved(tmp_path / "last.ckpt", {"state_dict": {prefix + name: tensor for name, tensor in tensors.items()}})
    assert mentions(refusal(path), "load_state_dict", "efficientnetv2.save")


def test_missing_file_is_rejected(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.pth")


def test_folder_without_a_known_file_is_rejected(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_file_is_rejected(tmp_path, suffix, share):
    path = saved(tmp_path / f"cut{suffix}", timm_state())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "incomplete" in refusal(path)


def test_truncated_legacy_pickle_is_rejected(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(timm_state(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:200_000])
    assert mentions(refusal(path), "damaged")


def test_huge_declared_header_is_rejected(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b'{"a":1}')
    assert mentions(refusal(path), "header")


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("text.pth", b"these are no weights, but words\n" * 9),
        ("few.csv", b"path,label\na.jpg,cat\n"),
        ("rand.h5", bytes(range(7, 207))),
        ("photo.safetensors", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(300)),
    ],
)
def test_file_without_weights_is_rejected(tmp_path, name, contents):
    (tmp_path / name).write_bytes(contents)
    assert mentions(refusal(tmp_path / name), "PyTorch", "HDF5")


def test_header_that_is_not_json_is_rejected(tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes((24).to_bytes(8, "little") + b"{no json, no json at all")
    assert "JSON" in refusal(path)


@pytest.mark.parametrize("network", ["timm", "torchvision"])
def test_other_architecture_is_rejected(tmp_path, network):
    tensors = timm_state("resnet18") if network == "timm" else their_torchvision.models.mobilenet_v2().state_dict()
    message = refusal(saved(tmp_path / "other.pth", tensors))
    assert mentions(message, "EfficientNet")
    assert next(iter(tensors)) in message


@pytest.mark.parametrize("name", ["efficientnetv2_rw_t", "efficientnetv2_rw_s", "efficientnetv2_rw_m"])
def test_other_timm_architecture_is_rejected_by_name_with_the_reason(tmp_path, name):
    with torch.device("meta"):
        network = their_timm.create_model(name, num_classes=2)
    tensors = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in network.state_dict().items()}
    message = refusal(saved(tmp_path / "any.safetensors", tensors))
    assert f"'{name}'" in message
    assert "before the official code" in message


def test_missing_tensors_are_listed_by_both_names(tmp_path):
    tensors = timm_state()
    kept = dict(list(tensors.items())[: len(tensors) // 2])
    message = refusal(saved(tmp_path / "half.safetensors", kept))
    assert mentions(message, "efficientnetv2_b0")
    # 420 tensors include 59 counters of batch norm. The file has the first half.
    wanted = [name for name in tensors if not name.endswith("num_batches_tracked")]
    gone = [name for name in wanted if name not in kept and not name.startswith("classifier")]
    assert f"{len(gone)} of {len(wanted) - 2} missing: '{gone[0]} (ours: blocks." in message


def test_unused_tensors_are_listed(tmp_path):
    message = refusal(saved(tmp_path / "more.pth", timm_state() | {"extra.weight": torch.zeros(1)}))
    assert mentions(message, "1", "extra.weight")


def test_wrong_shape_is_listed_by_both_names(tmp_path):
    message = refusal(saved(tmp_path / "wrong.pth", timm_state() | {"conv_head.weight": torch.zeros(1000, 192, 1, 1)}))
    assert mentions(message, "conv_head.weight", "head.conv.weight", "1000", "192", "1", "1280")


def test_classifier_without_bias_is_rejected(tmp_path):
    tensors = timm_state()
    del tensors["classifier.bias"]
    assert "classifier.bias" in refusal(saved(tmp_path / "half.pth", tensors))


def test_classifier_with_different_numbers_of_classes_is_rejected(tmp_path):
    tensors = timm_state(num_classes=5) | {"classifier.bias": torch.zeros(7)}
    message = refusal(saved(tmp_path / "mixed.pth", tensors))
    assert mentions(message, "5", "classifier.weight", "7", "classifier.bias")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_rejected(tmp_path, value):
    tensors = timm_state()
    tensors["blocks.1.0.bn1.weight"][3] = value
    message = refusal(saved(tmp_path / "nan.safetensors", tensors))
    assert mentions(message, "1", "420", "NaN", "blocks.1.0.bn1.weight")


def test_negative_variance_is_rejected(tmp_path):
    tensors = timm_state()
    tensors["bn1.running_var"].neg_()
    message = refusal(saved(tmp_path / "negative.safetensors", tensors))
    assert mentions(message, "1", "0", "bn1.running_var")


def test_integer_weights_are_rejected(tmp_path):
    tensors = timm_state()
    tensors["conv_stem.weight"] = tensors["conv_stem.weight"].to(torch.int8)
    message = refusal(saved(tmp_path / "int8.safetensors", tensors))
    assert mentions(message, "conv_stem.weight", "stem.conv.weight", "int8")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickle_with_code_is_not_run(tmp_path, protocol):
    trace = tmp_path / "ran"
    torch.save({"state_dict": timm_state(), "args": Bomb(trace)}, tmp_path / "zip.pth", pickle_protocol=protocol)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb(trace), protocol))
    for name in ("zip.pth", "bare.pth"):
        message = refusal(tmp_path / name)
        assert "run code" in message
        assert mentions(message, "torch.save", "model.state_dict", "FILE")
    assert not trace.exists()


def test_torchscript_program_is_not_run(tmp_path):
    path = tmp_path / "script.pt"
    module = torch.nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's deprecation of such files
        torch.jit.save(torch.jit.script(module), path)
    assert "TorchScript" in refusal(path)


def test_file_without_a_state_dict_is_rejected(tmp_path):
    assert mentions(refusal(saved(tmp_path / "list.pth", [torch.zeros(1)])), "state dict")
    assert "'epoch'" in refusal(saved(tmp_path / "own.pth", {"epoch": 3, "net": timm_state()}))


def stating(config, **values):
    """config.json with other values in its pretrained_cfg."""
    return config | {"pretrained_cfg": config["pretrained_cfg"] | values}


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory):
    """A model of two classes in a folder, as timm uploads it. Tests may only copy it."""
    hub = tmp_path_factory.mktemp("uploaded")
    their_timm.models.save_for_hf(their_timm.create_model(B0, num_classes=2), str(hub), safe_serialization=True)
    return hub


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: "{", ("JSON",)),
        (lambda config: [config], ("architecture",)),
        (lambda config: {"architectures": ["ViT"]}, ("architecture",)),
        (lambda config: config | {"architecture": "resnet50"}, ("resnet50", "timm")),
        (lambda config: config | {"architecture": "efficientnetv2_rw_s"}, ("before the official code",)),
        (lambda config: config | {"architecture": "tf_efficientnetv2_s"}, ("tf_efficientnetv2_s",)),
        (lambda config: config | {"label_names": ["a", "b", "c"]}, ("3", "2", "class")),
        (lambda config: config | {"label_names": [1, 2]}, ("not a list of names",)),
        (lambda config: config | {"model_args": {"act_layer": "relu"}}, ("act_layer",)),
        (lambda config: config | {"pretrained_cfg": {"input_size": [3, 64, 64]}}, ("preprocessing",)),
        (lambda config: stating(config, std=[0, 1, 1]), ("above 0",)),
        (lambda config: config | {"model_args": ["bn_eps"]}, ("model_args",)),
        (lambda config: config | {"model_args": "bn_eps"}, ("model_args",)),
        (lambda config: config | {"model_args": {"bn_eps": "x"}}, ("model_args", "bn_eps", "'x'")),
        (lambda config: config | {"model_args": {"bn_eps": "0.001"}}, ("model_args", "bn_eps", "0.001")),
        (lambda config: config | {"model_args": {"bn_eps": True}}, ("model_args", "bn_eps")),
        (lambda config: config | {"model_args": {"bn_eps": -1}}, ("model_args", "bn_eps", "-1")),
        (lambda config: config | {"model_args": {"bn_eps": 0}}, ("model_args", "bn_eps", "0")),
        (lambda config: config | {"model_args": {"bn_eps": float("nan")}}, ("model_args", "bn_eps")),
        (lambda config: stating(config, crop_pct=7), ("crop_pct", "7", "0", "1")),
        (lambda config: stating(config, crop_pct=1e-320), ("preprocessing",)),
        (lambda config: stating(config, crop_pct=float("nan")), ("crop_pct",)),
        (lambda config: stating(config, crop_pct="all"), ("preprocessing",)),
        (lambda config: stating(config, crop_mode=["center"]), ("preprocessing",)),
        (lambda config: stating(config, test_input_size=[3, 0, 0]), ("preprocessing",)),
        (lambda config: stating(config, mean=[]), ("mean", "per channel")),
        (lambda config: stating(config, mean=[0.5, float("nan"), 0.5]), ("mean", "finite")),
        (lambda config: stating(config, std=[0.2]), ("mean has 3 values and std 1",)),
    ],
)
def test_invalid_config_of_a_hub_folder_is_rejected(uploaded, tmp_path, change, said):
    hub = shutil.copytree(uploaded, tmp_path / "hub")
    config = change(json.loads((hub / "config.json").read_text()))
    (hub / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(InputError) as error:
        convert.read(hub)
    assert mentions(str(error.value), *said)
    assert str(hub) in str(error.value)


def test_hub_folder_without_weights_is_rejected(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": B0}))
    with pytest.raises(InputError, match=mentioning("model.safetensors")):
        convert.read(tmp_path)


def test_model_name_that_contradicts_the_file_is_rejected(tmp_path):
    path = tmp_path / "arch.pth"
    torch.save({"arch": B0, "state_dict": timm_state()}, path)
    assert mentions(refusal(path, model="tf_efficientnetv2_b1"), "tf_efficientnetv2_b0")
    silent = refusal(saved(tmp_path / "silent.pth", timm_state()), model="efficientnetv2_s")
    assert mentions(silent, "efficientnetv2_s", "`model`")


def keras_weights(path, name="efficientnetv2_b0"):
    with torch.device("meta"):
        network = EfficientNet(get_architecture(name), num_classes=2)
    with pytest.importorskip("h5py").File(path, "w") as file:
        for ours, theirs in tensor_names("keras", network.architecture).items():
            shape = network.state_dict()[ours].shape
            kind = "vector" if len(shape) == 1 else "dense" if len(shape) == 2 else "convolution"
            kind = "depthwise" if "dwconv" in theirs and len(shape) == 4 else kind
            layer, leaf = theirs.split(".")
            file[f"{layer}/{layer}/{leaf}:0"] = to_tensorflow(torch.ones(shape), kind)
    return path


@pytest.mark.parametrize("model", ["bogus", "efficientnetv2-b00", "resnet50", "tf_efficientnetv2_b0"])
def test_unknown_keras_name_is_rejected(tmp_path, model):
    message = refusal(keras_weights(tmp_path / "b0.h5"), model=model)
    assert mentions(message, model, "is not one of the", "Keras")
    assert ("did you mean" in message) == (model not in ("bogus", "resnet50"))


@pytest.mark.parametrize("model", ["efficientnetv2_b0", "efficientnetv2-b0", "EfficientNetV2B0"])
def test_matching_keras_name_is_accepted_and_another_is_rejected(tmp_path, model):
    path = keras_weights(tmp_path / "b0.h5")
    assert convert.read(path, model=model).name == convert.read(path).name == "efficientnetv2_b0"
    other = model.replace("b0", "b1").replace("B0", "B1")
    assert mentions(refusal(path, model=other), other, "efficientnetv2_b0", "`model`")


def test_unknown_name_of_the_released_code_is_rejected():
    assert detect.published_name("tensorflow", "efficientnetv2-s") == "efficientnetv2_s"
    assert detect.published_name("tensorflow", "efficientnet-b0") == "efficientnet_b0"
    with pytest.raises(InputError, match=mentioning("did you mean", "efficientnetv2-s")):
        detect.published_name("tensorflow", "efficientnetv2-ss")


def test_v2_b0_of_torchvision_is_rejected(tmp_path):
    path = saved(tmp_path / "b0.pth", their_torchvision.models.efficientnet_b0().state_dict())
    assert mentions(refusal(path, model="efficientnet_v2_b0"), "torchvision")


def test_other_pooling_of_a_hub_folder_is_rejected(uploaded, tmp_path):
    """The tensors fit, but the logits would be those of mean pooling."""
    hub = shutil.copytree(uploaded, tmp_path / "hub")
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps(config | {"model_args": {"global_pool": "avg"}}))
    assert convert.read(hub).network.num_classes == 2
    (hub / "config.json").write_text(json.dumps(config | {"model_args": {"global_pool": "max"}}))
    with pytest.raises(InputError, match=mentioning("model_args", "global_pool")):
        convert.read(hub)
