"""Equal logits for checkpoints of TensorFlow's Saver with the variable names of the released code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.random_weights import randomise
from tests.messages import each_mentions, mentioning, mentions

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.models.conversion import tensorflow_checkpoint as interop
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.conversion.tensorflow_checkpoint import loading_tensorflow
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.utils.errors import InputError

with loading_tensorflow():
    tensorflow = pytest.importorskip("tensorflow")
timm = pytest.importorskip("timm")

TOLERANCE = 1e-4  # relative to the standard deviation of the logits
AVERAGE = "/ExponentialMovingAverage"

# Names of a V2-B0 in google/automl's efficientnetv2/effnetv2_model.py: block 0 (fused, no expansion),
# block 1 (fused), block 5 (MBConv with squeeze-excite).
NAMES_OF_THE_AUTHORS = {
    "stem/conv2d/kernel": (3, 3, 3, 32),
    "stem/tpu_batch_normalization/gamma": (32,),
    "blocks_0/conv2d/kernel": (3, 3, 32, 16),
    "blocks_0/tpu_batch_normalization/moving_mean": (16,),
    "blocks_1/conv2d/kernel": (3, 3, 16, 64),
    "blocks_1/conv2d_1/kernel": (1, 1, 64, 32),
    "blocks_1/tpu_batch_normalization_1/beta": (32,),
    "blocks_5/conv2d/kernel": (1, 1, 48, 192),
    "blocks_5/depthwise_conv2d/depthwise_kernel": (3, 3, 192, 1),
    "blocks_5/se/conv2d/kernel": (1, 1, 192, 12),
    "blocks_5/se/conv2d/bias": (12,),
    "blocks_5/se/conv2d_1/kernel": (1, 1, 12, 192),
    "blocks_5/conv2d_1/kernel": (1, 1, 192, 96),
    "blocks_5/tpu_batch_normalization_2/moving_variance": (96,),
    "head/conv2d/kernel": (1, 1, 192, 1280),
    "head/dense/kernel": (1280, 7),
    "head/dense/bias": (7,),
}


def random_timm(name, seed):
    """timm's model with random values, also in batch norm."""
    return randomise(timm.create_model(f"tf_{name}", num_classes=7), seed=seed)


def authors_variables(network):
    """timm's weights by the names of the released code, in TensorFlow's layout, without the tables of this package."""
    kinds = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    norms = {"bn1": "", "bn2": "_1", "bn3": "_2"}
    number, blocks = -1, {}
    values = {}
    for key, tensor in network.state_dict().items():
        *path, leaf = key.split(".")
        array = tensor.numpy()
        if leaf == "num_batches_tracked":
            continue
        if path[0] == "blocks":
            if tuple(path[:3]) not in blocks:
                number += 1
                blocks[tuple(path[:3])] = number
            scope, layer = f"blocks_{blocks[tuple(path[:3])]}", path[3]
        else:
            scope = "stem" if path[0] in ("conv_stem", "bn1") else "head"
            layer = {"bn1": "bn1", "bn2": "bn1"}.get(path[0], path[0])
        if layer.startswith("bn"):
            values[f"{scope}/tpu_batch_normalization{norms[layer]}/{kinds[leaf]}"] = array
        elif layer == "se":
            conv = "conv2d" if path[4] == "conv_reduce" else "conv2d_1"
            values[f"{scope}/se/{conv}/{'bias' if leaf == 'bias' else 'kernel'}"] = (
                array if leaf == "bias" else array.transpose(2, 3, 1, 0)
            )
        elif layer == "classifier":
            values[f"head/dense/{'bias' if leaf == 'bias' else 'kernel'}"] = array if leaf == "bias" else array.T
        elif layer == "conv_dw":
            values[f"{scope}/depthwise_conv2d/depthwise_kernel"] = array.transpose(2, 3, 0, 1)
        else:
            # The first convolution of a block has no number, apart from the depthwise one. The second has one.
            second = layer == "conv_pwl"
            values[f"{scope}/conv2d{'_1' if second else ''}/kernel"] = array.transpose(2, 3, 1, 0)
    return values


def save(folder, variables, step=1234):
    """Save by TensorFlow's Saver. Return the prefix."""
    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), v1.Session() as session:
        made = [v1.get_variable(name, initializer=value, use_resource=False) for name, value in variables.items()]
        session.run(v1.global_variables_initializer())
        v1.train.Saver(made).save(session, str(folder / "model.ckpt"), global_step=step)
    return folder / f"model.ckpt-{step}"


def checkpoint(folder, name, raw, average=None):
    """Complete state of a run: variables, optional moving averages, slots of the optimizer, step."""
    scope = name.replace("_", "-")
    variables = {f"{scope}/{key}": value for key, value in raw.items()}
    slots = {f"{key}/RMSProp": np.ones_like(value) for key, value in variables.items()}
    averages = {f"{scope}/{key}{AVERAGE}": value for key, value in (average or {}).items()}
    return save(folder, {**variables, **slots, **averages, "global_step": np.int64(1234)})


def loaded(raw, name, num_classes=7):
    network = EfficientNet(get_architecture(name), num_classes=num_classes)
    names = tensor_names("tensorflow", network.architecture)
    assert set(raw.tensors) == {theirs for ours, theirs in names.items() if num_classes or "classifier" not in ours}
    state = {ours: raw.tensors[theirs] for ours, theirs in names.items() if theirs in raw.tensors}
    left = network.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    return network.eval()


def distance(ours, theirs, px):
    torch.manual_seed(px)
    pictures = torch.randn(2, 3, px, px)
    with torch.inference_mode():
        expected, got = theirs(pictures), ours(pictures)
    assert 0.05 < expected.std() < 50
    return float((got - expected).abs().max() / expected.std())


@pytest.mark.parametrize("name", ["efficientnetv2_b0", "efficientnet_b0"])
def test_logits_equal_those_of_the_same_values(name, tmp_path):
    raw, average = random_timm(name, 0), random_timm(name, 1)
    prefix = checkpoint(tmp_path, name, authors_variables(raw), authors_variables(average))
    averaged = interop.read(prefix)
    assert averaged.model == name.replace("_", "-")
    assert mentions(averaged.notes[0], "EMA")
    for px in (64, 75):
        assert distance(loaded(averaged, name), average, px) < TOLERANCE
        assert distance(loaded(averaged, name), raw, px) > 100 * TOLERANCE
    slots = len(averaged.tensors) + 1  # and the step
    assert mentions(averaged.notes[1], slots, "optimizer")


def test_names_equal_the_released_code():
    names = tensor_names("tensorflow", get_architecture("efficientnetv2_b0"))
    with torch.device("meta"):
        state = create("efficientnetv2_b0", num_classes=7).state_dict()
    assert set(names) == {key for key in state if not key.endswith("num_batches_tracked")}
    assert len(set(names.values())) == len(names)
    ours = {theirs: tuple(state[key].shape) for key, theirs in names.items()}
    for theirs, shape in NAMES_OF_THE_AUTHORS.items():
        assert sorted(ours[theirs]) == sorted(shape)
    assert names["blocks.5.spatial.conv.weight"] == "blocks_5/depthwise_conv2d/depthwise_kernel"
    assert names["blocks.5.spatial.norm.weight"] == "blocks_5/tpu_batch_normalization_1/gamma"


class TestSmall:
    """Cases that are distinguished by names need only a small model."""

    KERNEL = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)

    def test_checkpoint_is_found_by_prefix_folder_or_index(self, tmp_path):
        prefix = save(tmp_path, {"b0/stem/conv2d/kernel": self.KERNEL})
        for path in (prefix, tmp_path, prefix.with_name("model.ckpt-1234.index")):
            assert interop.opens(path)
            tensor = interop.read(path).tensors["stem/conv2d/kernel"]
            assert tensor.shape == (4, 3, 2, 2)
            assert tensor[3, 2, 1, 0] == self.KERNEL[1, 0, 2, 3]
        moved = tmp_path / "moved"
        moved.mkdir()
        for file in tmp_path.glob("model.ckpt*"):
            shutil.move(file, moved)
        text = (tmp_path / "checkpoint").read_text()
        (moved / "checkpoint").write_text(text.replace('"model', '"/another/machine/model'))
        assert interop.read(moved).tensors
        assert not interop.opens(prefix)
        assert not interop.opens(tmp_path / "absent")

    def test_moving_averages_are_preferred(self, tmp_path):
        """Also without the scope of the head, which newer TensorFlow omits, and without any scope."""
        variables = {"stem/conv2d/kernel": self.KERNEL, f"stem/conv2d/kernel{AVERAGE}": -self.KERNEL}
        raw = interop.read(save(tmp_path, {**variables, "dense/bias": np.ones(2, "f4")}))
        assert raw.tensors["stem/conv2d/kernel"].max() == 0
        assert raw.tensors["head/dense/bias"].tolist() == [1, 1]
        assert each_mentions(raw.notes, ("EMA", "1"))
        assert raw.model is None

    def test_number_formats_are_converted(self, tmp_path):
        half = tensorflow.cast(self.KERNEL, tensorflow.bfloat16).numpy()
        raw = interop.read(save(tmp_path, {"stem/conv2d/kernel": half}))
        assert raw.tensors["stem/conv2d/kernel"].dtype == torch.bfloat16
        assert raw.tensors["stem/conv2d/kernel"][0, 0, 1, 1] == self.KERNEL[1, 1, 0, 0]

    def test_checkpoint_without_a_name_is_read(self, tmp_path):
        """As written by ``saver.save(session, "folder/")``."""
        save(tmp_path, {"stem/conv2d/kernel": self.KERNEL})
        for file in tmp_path.glob("model.ckpt-1234.*"):
            file.rename(tmp_path / file.name.removeprefix("model.ckpt-1234"))
        with pytest.raises(InputError, match=mentioning("checkpoint", "index")):
            interop.read(tmp_path / ".index")
        for file in tmp_path.glob(".*"):
            file.rename(tmp_path / f"model{file.name}")
        assert interop.read(tmp_path / "model.index").tensors

    def test_other_architecture_is_rejected(self, tmp_path):
        prefix = save(tmp_path, {"resnet/layer1/weights": self.KERNEL})
        with pytest.raises(InputError, match=mentioning("EfficientNet")):
            interop.read(prefix)

    def test_two_models_are_rejected(self, tmp_path):
        prefix = save(tmp_path, {"a/stem/conv2d/kernel": self.KERNEL, "b/stem/conv2d/kernel": self.KERNEL})
        with pytest.raises(InputError, match=mentioning("a/stem/conv2d/kernel", "b/stem/conv2d/kernel")):
            interop.read(prefix)

    def test_object_based_checkpoint_is_rejected(self, tmp_path):
        prefix = tensorflow.train.Checkpoint(kernel=tensorflow.Variable(self.KERNEL)).save(str(tmp_path / "c"))
        with pytest.raises(InputError, match=mentioning("tf.train.Checkpoint")):
            interop.read(Path(prefix))

    def test_truncated_checkpoint_is_rejected(self, tmp_path):
        prefix = save(tmp_path, {"stem/conv2d/kernel": self.KERNEL})
        data = next(tmp_path.glob("*.data-*"))
        data.write_bytes(data.read_bytes()[:50])
        with pytest.raises(InputError, match=mentioning("model.ckpt-1234")):
            interop.read(prefix)
        index = prefix.with_name("model.ckpt-1234.index")
        index.write_bytes(index.read_bytes()[:30])
        with pytest.raises(InputError, match=mentioning("cut short")):
            interop.read(prefix)
        index.unlink()
        with pytest.raises(InputError, match=mentioning("model.ckpt-1234.index")):
            interop.read(prefix)
        (tmp_path / "checkpoint").write_text("nothing")
        with pytest.raises(InputError, match=mentioning("checkpoint")):
            interop.read(tmp_path)


def test_missing_tensorflow_names_the_extra(tmp_path, monkeypatch):
    prefix = save(tmp_path, {"stem/conv2d/kernel": np.ones((3, 3, 3, 8), "f4")})
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match=r'pip install "tensorflow'):
        interop.read(prefix)


def test_loading_next_to_pytorch_is_silent_and_does_not_abort():
    """The process aborts if TensorFlow is imported before Triton, which PyTorch imports with its first optimizer."""
    program = """
import os, sys, torch
from efficientnetv2.models.conversion.tensorflow_checkpoint import loading_tensorflow
assert "tensorflow" not in sys.modules
with loading_tensorflow():
    import tensorflow
assert "TF_ENABLE_ONEDNN_OPTS" not in os.environ
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
import torchvision
print("alive")
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "alive\n"
    assert done.stderr == ""
