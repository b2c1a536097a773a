"""Equal logits to Keras for the same JPEG files."""

import copy
import functools
import json
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.random_weights import randomise
from tests.messages import mentioning, mentions

from efficientnetv2.architectures.registry import get_architecture, get_model_info
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.models.conversion import convert, keras_files, weight_writer
from efficientnetv2.models.conversion import keras as interop
from efficientnetv2.models.conversion.keras import refuse_other_heads
from efficientnetv2.models.conversion.layouts import tensor_names, to_tensorflow
from efficientnetv2.models.conversion.tensorflow_checkpoint import loading_tensorflow
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.errors import InputError

h5py = pytest.importorskip("h5py")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

pytestmark = [
    # Raised by Keras with numpy 2 and tensors of PyTorch.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
]

TOLERANCE = 1e-4  # relative to the standard deviation of the logits
PHOTOGRAPHS = sorted((Path(__file__).parents[3] / "examples/land_cover/images").glob("*.jpg"))[::50]
NAMES = (B0 := "efficientnetv2_b0", "efficientnet_b0")
FORMATS = (".keras", ".weights.h5", ".h5")
SYMMETRIC = {"mean": (128 / 255,) * 3, "std": (128 / 255,) * 3}
EVEN_PX, ODD_PX = 64, 75  # 75 becomes 38, 19, 10, 5, 3: odd and even


@pytest.fixture(autouse=True)
def _silent():
    with loading_tensorflow():
        yield


def pixels(preprocessing, photographs=PHOTOGRAPHS[:3]):
    """The model input of both libraries: (N, H, W, 3) uint8."""
    return np.stack([load_eval_image(str(path), preprocessing) for path in photographs])


def input_of(network, photographs=PHOTOGRAPHS[:3]):
    pictures = torch.from_numpy(pixels(network.preprocessing, photographs)).permute(0, 3, 1, 2)
    return normalize(pictures, mean=network.preprocessing.mean, std=network.preprocessing.std)


@functools.cache
def random_weights(name):
    """Random values, also in batch norm, with activations of usual size on photos."""
    network = create(name, num_classes=5)
    network.preprocessing = replace(network.preprocessing, image_size=96)
    randomise(network, input_of(network, PHOTOGRAPHS))
    return network.state_dict()


def random_network(name, px=EVEN_PX, *, num_classes=5, **scaling):
    """A new model with ``random_weights``."""
    network = create(name, num_classes=num_classes)
    network.load_state_dict(
        {key: tensor for key, tensor in random_weights(name).items() if num_classes or "classifier" not in key}
    )
    network.preprocessing = replace(network.preprocessing, image_size=px, **scaling)
    return network


def our_logits(network):
    """In float64, as ``keras_logits``, so that little of a difference is rounding."""
    with torch.inference_mode():
        return copy.deepcopy(network).double().eval()(input_of(network).double()).numpy()


def keras_logits(model, images):
    """For uint8 images, because Keras scales them itself. The softmax is removed. In float64."""

    def in_float64(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

    weights = model.get_weights()
    model = keras.models.clone_model(model, clone_function=in_float64)
    model.set_weights(weights)
    if hasattr(model.layers[-1], "activation") and model.layers[-1].name == "predictions":
        model.layers[-1].activation = keras.activations.linear
    with torch.inference_mode():
        return keras.ops.convert_to_numpy(model(images.astype(np.float64), training=False))


def distance(ours, theirs):
    assert np.isfinite(theirs).all()
    assert 0.02 < theirs.std() < 50  # constant or exploding logits would make the test useless
    return float(np.abs(ours - theirs).max() / theirs.std())


def tensors_of(raw, network):
    """The tensors of a file by the names of this package: none missing, none unused."""
    names = tensor_names("keras", network.architecture)
    if not network.num_classes:
        names = {ours: theirs for ours, theirs in names.items() if not ours.startswith("classifier.")}
    assert set(names.values()) == set(raw.tensors)
    return {ours: raw.tensors[theirs] for ours, theirs in names.items()}


def loaded(raw, network):
    """The model with the weights and the preprocessing of a file."""
    other = EfficientNet(network.architecture, num_classes=network.num_classes)
    left = other.load_state_dict(tensors_of(raw, network), strict=False)
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys)
    other.preprocessing = raw.preprocessing
    return other


def equal(raw, network):
    state = network.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in tensors_of(raw, network).items())


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_keras_in_both_directions(name, tmp_path):
    """Written and computed by Keras on real photos, then saved by Keras and read."""
    network = random_network(name, ODD_PX)
    weight_writer.write_keras(tmp_path / "ours.keras", network)
    model = keras.models.load_model(tmp_path / "ours.keras")
    theirs = keras_logits(model, pixels(network.preprocessing))
    assert distance(our_logits(network), theirs) < TOLERANCE

    model.save(tmp_path / "theirs.keras")
    read = interop.read(tmp_path / "theirs.keras")
    assert read.preprocessing == network.preprocessing
    again = loaded(read, network)
    assert distance(our_logits(again), theirs) < TOLERANCE
    assert (our_logits(again).argmax(1) == theirs.argmax(1)).all()

    # The same weights with a wrong architecture give other logits.
    for wrong in ({"padding": "symmetric"}, {"batch_norm_epsilon": 1e-5}):
        other = EfficientNet(replace(network.architecture, **wrong), num_classes=5)
        other.load_state_dict(network.state_dict())
        other.preprocessing = network.preprocessing
        assert distance(our_logits(other), theirs) > 10 * TOLERANCE
    again.preprocessing = replace(network.preprocessing, **SYMMETRIC)
    assert distance(our_logits(again), theirs) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "formats"), [("efficientnetv2_b0", FORMATS), ("efficientnet_b0", (".weights.h5", ".h5"))]
)
def test_keras_formats_are_read_to_the_bit(name, formats, tmp_path):
    network = random_network(name)
    weight_writer.write_keras(tmp_path / "ours.weights.h5", network)
    builder = {"efficientnetv2_b0": "EfficientNetV2B0", "efficientnet_b0": "EfficientNetB0"}[name]
    model = getattr(keras.applications, builder)(weights=None, classes=5, input_shape=(EVEN_PX, EVEN_PX, 3))
    model.load_weights(tmp_path / "ours.weights.h5")
    for suffix in formats:
        path = tmp_path / f"theirs{suffix}"
        (model.save_weights if suffix == ".weights.h5" else model.save)(path)
        assert keras_files.opens(path)
        raw = interop.read(path)
        assert equal(raw, network)
        assert raw.source == "keras"
        assert (raw.preprocessing.mean, raw.preprocessing.std) == (
            network.preprocessing.mean, network.preprocessing.std,
        )  # fmt: skip
        own_name = {"efficientnetv2_b0": "efficientnetv2-b0", "efficientnet_b0": "efficientnetb0"}[name]
        assert raw.model == (None if suffix == ".weights.h5" else own_name)
        assumed = [note for note in convert.read(path).notes if "activation" in note]
        assert bool(assumed) == (suffix == ".weights.h5")


@pytest.mark.parametrize("name", NAMES)
def test_written_file_is_read_back_to_the_bit(name, tmp_path):
    """Without a classifier it is a model with ``include_top=False``."""
    for suffix, num_classes in ((".keras", 0), (".weights.h5", 5), (".h5", 5)):
        network = random_network(name, num_classes=num_classes)
        path = tmp_path / f"network{suffix}"
        weight_writer.write_keras(path, network)
        raw = interop.read(path)
        assert equal(raw, network)
        # Files of weights have no image size.
        px = raw.preprocessing.image_size if suffix == ".weights.h5" else EVEN_PX
        assert raw.preprocessing == replace(network.preprocessing, image_size=px)
    assert len(list(tmp_path.iterdir())) == 3  # no temporary file remains


def test_keras_constructor_loads_the_weights(tmp_path):
    network = random_network("efficientnetv2_b0")
    weight_writer.write_keras(tmp_path / "ours.weights.h5", network)
    model = keras.applications.EfficientNetV2B0(
        weights=tmp_path / "ours.weights.h5", classes=5, input_shape=(EVEN_PX, EVEN_PX, 3), classifier_activation=None
    )
    theirs = keras_logits(model, pixels(network.preprocessing))
    assert distance(our_logits(network), theirs) < TOLERANCE


def test_mean_and_std_are_stored_in_the_model(tmp_path):
    scaling = {"mean": (0.3, 0.4, 0.5), "std": (0.1, 0.2, 0.4)}
    for name, suffix in zip(NAMES, (".h5", ".keras"), strict=True):
        network = random_network(name, **scaling)
        path = tmp_path / f"ours{suffix}"
        weight_writer.write_keras(path, network)
        assert interop.read(path).preprocessing == network.preprocessing
        model = keras.models.load_model(path)
        assert distance(our_logits(network), keras_logits(model, pixels(network.preprocessing))) < TOLERANCE
    # V1 has them in its weights, V2 only in the model description.
    weight_writer.write_keras(tmp_path / "v1.weights.h5", network)
    assert interop.read(tmp_path / "v1.weights.h5").preprocessing.mean == scaling["mean"]
    with pytest.raises(InputError, match=mentioning(".keras", "preprocessing")):
        weight_writer.write_keras(tmp_path / "v2.weights.h5", random_network("efficientnetv2_b0", **scaling))


def test_built_in_preprocessing_is_read(tmp_path):
    """ImageNet's values in B0, (x - 128) / 128 in S, none without ``include_preprocessing``."""
    options = {"weights": None, "include_top": False, "input_shape": (64, 64, 3)}
    b0 = keras.applications.EfficientNetV2B0(**options)
    for suffix in (".weights.h5", ".h5"):
        (b0.save_weights if suffix == ".weights.h5" else b0.save)(tmp_path / f"b0{suffix}")
        preprocessing = interop.read(tmp_path / f"b0{suffix}").preprocessing
        assert preprocessing.mean == (0.485, 0.456, 0.406)
        assert preprocessing.std == (0.229, 0.224, 0.225)

    keras.applications.EfficientNetV2S(**options).save_weights(tmp_path / "s.weights.h5")
    preprocessing = interop.read(tmp_path / "s.weights.h5").preprocessing
    assert preprocessing == get_model_info("efficientnetv2_s").preprocessing
    assert np.allclose((np.array([0, 128, 255]) / 255 - preprocessing.mean) / preprocessing.std, [-1, 0, 127 / 128])

    bare = keras.applications.EfficientNetV2B0(**options, include_preprocessing=False)
    for suffix in (".weights.h5", ".keras"):
        (bare.save_weights if suffix == ".weights.h5" else bare.save)(tmp_path / f"bare{suffix}")
        raw = interop.read(tmp_path / f"bare{suffix}")
        assert raw.stated == (() if suffix == ".weights.h5" else ("image_size",))
        assert raw.preprocessing == (
            None if suffix == ".weights.h5" else replace(get_model_info(B0).preprocessing, image_size=64)
        )
        assert "does not scale images" in raw.notes[0]


def test_third_scaling_layer_of_published_v1_weights_is_read(tmp_path):
    """Keras stores standard deviations instead of variances and divides by their roots once more."""
    std = np.array([0.229, 0.224, 0.225])
    picture = keras.Input((64, 64, 3))
    x = keras.layers.Rescaling(1 / 255)(picture)
    x = keras.layers.Normalization(mean=[0.485, 0.456, 0.406], variance=std.tolist())(x)
    scaled = keras.layers.Rescaling((1 / np.sqrt(std)).tolist())(x)
    model = keras.applications.EfficientNetV2B0(
        weights=None, include_top=False, input_shape=(64, 64, 3), input_tensor=scaled, include_preprocessing=False
    )
    model = keras.Model(picture, model.output)
    model.save(tmp_path / "described.keras")
    described = interop.read(tmp_path / "described.keras").preprocessing

    v1 = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(64, 64, 3))
    v1.layers[2].set_weights([np.array([0.485, 0.456, 0.406]), std, np.array(0)])
    v1.save_weights(tmp_path / "published.weights.h5")
    concluded = interop.read(tmp_path / "published.weights.h5").preprocessing

    images = pixels(described)
    theirs = keras.ops.convert_to_numpy(keras.Model(picture, scaled)(images.astype(np.float32)))
    for ours in (described, concluded):
        assert ours.std == tuple(std)
        got = normalize(torch.from_numpy(images).permute(0, 3, 1, 2), mean=ours.mean, std=ours.std)
        assert np.abs(got.permute(0, 2, 3, 1).numpy() - theirs).max() < 1e-5


def test_v1_without_an_input_size_pads_odd_maps_as_even_ones(tmp_path):
    """Equal at 64 px. At 80 px a map of 5 px is halved, where Keras pads differently."""
    network = random_network("efficientnet_b0", 64, num_classes=0)
    weight_writer.write_keras(tmp_path / "sized.weights.h5", network)
    sizeless = keras.applications.EfficientNetB0(weights=None, include_top=False, pooling="avg")
    sizeless.load_weights(tmp_path / "sized.weights.h5")
    sizeless.save(tmp_path / "sizeless.keras")
    raw = interop.read(tmp_path / "sizeless.keras")
    assert mentions(raw.notes[0], "32")
    assert raw.stated == ("mean", "std")  # the size is the published default
    assert not interop.read(tmp_path / "sized.weights.h5").notes
    again = loaded(raw, network)
    for px, same in ((64, True), (80, False)):
        again.preprocessing = replace(again.preprocessing, image_size=px)
        found = distance(our_logits(again), keras_logits(sizeless, pixels(again.preprocessing)))
        assert found < TOLERANCE if same else found > 10 * TOLERANCE


def test_model_inside_a_transfer_learning_model_is_read(tmp_path):
    """Augmentation, backbone and a head with a custom name."""
    trunk = keras.applications.EfficientNetV2B0(weights=None, include_top=False, input_shape=(64, 64, 3))
    model = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            keras.layers.RandomFlip(),
            trunk,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(4, name="mine"),
        ]
    )
    network = create("efficientnetv2_b0", num_classes=4)
    for suffix in FORMATS:
        path = tmp_path / f"network{suffix}"
        (model.save_weights if suffix == ".weights.h5" else model.save)(path)
        raw = interop.read(path)
        network = loaded(raw, network)
        assert mentions(raw.notes[0], "mine", "classifier")
        notes = " ".join(convert.read(path).notes)
        sized = suffix != ".weights.h5"
        assert ("preprocessing: image_size, mean and std as the file states" in notes) == sized
        assert ("states no crop_mode or interpolation; assumed" in notes) == sized
        assert ("states no image_size, crop_mode or interpolation; assumed" in notes) == (not sized)
        assert mentions(notes, path, "effnetv2 convert", "OUT", "--class-names")
        assert torch.equal(
            network.classifier.weight.T, torch.from_numpy(keras.ops.convert_to_numpy(model.layers[-1].kernel))
        )
        network.preprocessing = replace(network.preprocessing, image_size=64)
        theirs = keras_logits(model, pixels(network.preprocessing))
        assert np.abs(our_logits(network) - theirs).max() < 1e-5 + TOLERANCE * theirs.std()


@pytest.mark.parametrize("within", ["", "efficientnetv2-b0/"])
def test_legacy_weights_state_scaling_only_by_their_list_of_layers(within, tmp_path):
    """The list of a nested model has only layers with weights. Otherwise it has all."""
    network = create(B0, num_classes=2)
    state, path = network.state_dict(), tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        for ours, theirs in tensor_names("keras", network.architecture).items():
            layer, leaf = theirs.split(".")
            kind = {1: "vector", 2: "dense", 4: "convolution"}[state[ours].ndim]
            kind = "depthwise" if "dwconv" in layer else kind
            file[f"{within or f'{layer}/'}{layer}/{leaf}:0"] = to_tensorflow(state[ours], kind)
        if not within:
            file.create_group("input_1")
    raw = interop.read(path)
    assert ("does not scale images" in " ".join(raw.notes)) == (not within)
    assert raw.stated == ()


def test_input_size_of_an_outer_model_is_read(tmp_path):
    """As in transfer learning: Input((64, 64, 3)) with EfficientNetV2B0(include_top=False)."""
    trunk = keras.applications.EfficientNetV2B0(weights=None, include_top=False, pooling="avg")
    picture = keras.Input((64, 64, 3))
    path = tmp_path / "network.keras"
    keras.Model(picture, trunk(picture)).save(path)
    raw = interop.read(path)
    assert raw.preprocessing.image_size == 64
    assert raw.stated == ("image_size", "mean", "std")


def without_names(path):
    """Remove the layer names, as in versions of Keras that number layers and omit those without weights."""
    with h5py.File(path, "r+") as file:
        empty = []

        def visit(name, group):
            group.attrs.pop("name", None)
            if name.endswith("/vars") and not len(group):
                empty.append(name)

        file.visititems(visit)
        for name in empty:
            del file[name]


@pytest.mark.parametrize("name", NAMES)
def test_numbered_layers_are_named_by_their_order(name, tmp_path):
    network = random_network(name)
    path = tmp_path / "numbered.weights.h5"
    weight_writer.write_keras(path, network)
    without_names(path)
    raw = interop.read(path)
    assert equal(raw, network)
    with h5py.File(path, "r+") as file:  # as in TensorFlow's Keras 2.13
        file.move("layers", "_layer_checkpoint_dependencies")
    assert equal(interop.read(path), network)
    with h5py.File(path, "r+") as file:
        del file["_layer_checkpoint_dependencies/conv2d_7"]
    with pytest.raises(InputError, match=mentioning("Keras", "layer")):
        interop.read(path)


@pytest.mark.parametrize("name", ["efficientnetv2_b3", "efficientnetv2_s", "efficientnet_b2", "efficientnet_b4"])
def test_names_and_shapes_equal_keras(name):
    family, _, size = name.partition("_")
    builder = {"efficientnetv2": "EfficientNetV2", "efficientnet": "EfficientNet"}[family] + size.upper()
    with keras.device("meta"):
        model = getattr(keras.applications, builder)(weights=None)
    theirs = {
        f"{layer.name}.{weight.name}": tuple(weight.shape)
        for layer in model.layers
        for weight in layer.weights
        if not layer.name.startswith("normalization")
    }
    with torch.device("meta"):
        state = create(name).state_dict()
    names = tensor_names("keras", get_architecture(name))
    assert set(names.values()) == set(theirs)
    assert set(names) == {key for key in state if not key.endswith("num_batches_tracked")}
    assert {ours: sorted(state[ours].shape) for ours in names} == {o: sorted(theirs[t]) for o, t in names.items()}
    assert interop.detect({theirs: tuple(state[ours].shape) for ours, theirs in names.items()}) == name


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_read_unchanged(precision, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = keras.applications.EfficientNetB0(weights=None, classes=5, input_shape=(64, 64, 3))
    finally:
        keras.config.set_dtype_policy(before)
    model.save_weights(tmp_path / "half.weights.h5")
    raw = interop.read(tmp_path / "half.weights.h5")
    assert {tensor.dtype for tensor in raw.tensors.values()} == {getattr(torch, precision)}
    theirs = model.get_layer("predictions").kernel.value.detach()
    assert theirs.dtype == getattr(torch, precision)
    assert torch.equal(raw.tensors["predictions.kernel"], theirs.T)
    assert raw.preprocessing.std == (1, 1, 1)  # from a Normalization layer that was not adapted


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: create("efficientnetv2_xl", num_classes=2), "efficientnetv2_b0"),
        (lambda: EfficientNet(replace(get_architecture("efficientnetv2_b0"), padding="symmetric")), "padding"),
        (lambda: EfficientNet(replace(get_architecture("efficientnetv2_b0"), batch_norm_epsilon=1e-5)), "0.001"),
    ],
)
def test_model_that_keras_does_not_have_is_not_written(network, reason, tmp_path):
    with torch.device("meta"):
        network = network()
    with pytest.raises(InputError, match=f"Keras has no such model.*{reason}"):
        weight_writer.write_keras(tmp_path / "network.keras", network)
    assert not list(tmp_path.iterdir())


def test_suffix_that_keras_does_not_write_is_rejected(tmp_path):
    with pytest.raises(InputError, match=mentioning("weights.h5")):
        weight_writer.write_keras(tmp_path / "network.safetensors", create("efficientnetv2_b0", num_classes=2))


def test_missing_folder_is_reported(tmp_path):
    with pytest.raises(InputError, match=mentioning("No such file")):
        weight_writer.write_keras(tmp_path / "nowhere" / "network.keras", random_network("efficientnet_b0"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "whole.keras"
    weight_writer.write_keras(path, random_network("efficientnetv2_b0", 32))
    return path


class TestBadFiles:
    """The error names the file and the reason."""

    def test_truncated_file_is_rejected(self, whole, tmp_path):
        weights = tmp_path / "cut.weights.h5"
        with zipfile.ZipFile(whole) as archive:
            weights.write_bytes(archive.read("model.weights.h5")[:100_000])
        assert keras_files.opens(weights)
        with pytest.raises(InputError, match=mentioning("cut.weights.h5")):
            interop.read(weights)
        broken = tmp_path / "cut.keras"
        broken.write_bytes(whole.read_bytes()[:-200])
        assert not keras_files.opens(broken)
        with pytest.raises(InputError, match=mentioning("cut.keras")):
            interop.read(broken)

    def changed(self, whole, path, change):
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
            for member in source.namelist():
                data = source.read(member)
                target.writestr(member, change(data) if member == "config.json" else data)
        return path

    def test_description_that_is_not_json_is_rejected(self, whole, tmp_path):
        path = self.changed(whole, tmp_path / "a.keras", lambda text: text[:-20])
        with pytest.raises(InputError, match=mentioning("a.keras", "JSON")):
            interop.read(path)

    def test_preprocessing_layer_other_than_scaling_is_rejected(self, whole, tmp_path):
        def with_resizing(text):
            config = json.loads(text)
            layer = {"class_name": "Resizing", "config": {"name": "smaller", "height": 32, "width": 32}}
            config["config"]["layers"].insert(1, layer)
            return json.dumps(config)

        path = self.changed(whole, tmp_path / "a.keras", with_resizing)
        with pytest.raises(InputError, match=mentioning("smaller", "channel")):
            interop.read(path)

    def test_scale_of_zero_is_rejected(self, whole, tmp_path):
        path = self.changed(
            whole, tmp_path / "a.keras", lambda text: text.replace(b'"scale": 0.00392156862745098', b'"scale": 0')
        )
        with pytest.raises(InputError, match=mentioning("0", "finite")):
            interop.read(path)

    def test_links_out_of_the_file_are_not_followed(self, whole, tmp_path):
        path = tmp_path / "a.weights.h5"
        with zipfile.ZipFile(whole) as archive:
            path.write_bytes(archive.read("model.weights.h5"))
        shutil.copy(path, tmp_path / "other.h5")
        with h5py.File(path, "r+") as file:
            del file["layers/conv2d/vars/0"]
            file["layers/conv2d/vars/0"] = h5py.ExternalLink("other.h5", "/layers/conv2d/vars/0")
        with pytest.raises(InputError, match="points out of the file"):
            interop.read(path)

    def test_tensor_larger_than_its_data_is_rejected(self, whole, tmp_path):
        path = tmp_path / "a.weights.h5"
        with zipfile.ZipFile(whole) as archive:
            path.write_bytes(archive.read("model.weights.h5"))
        with h5py.File(path, "r+") as file:
            del file["layers/conv2d/vars/0"]
            file.create_dataset("layers/conv2d/vars/0", (10**6, 10**6), "f4", chunks=(1000, 1000))
        with pytest.raises(InputError, match=mentioning("4,000,000,000,000", "0")):
            interop.read(path)

    @pytest.mark.parametrize(
        "values",
        [
            np.array(["oak", "elm"], dtype=object),
            np.array([b"oak", b"elm"]),
            np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
            np.array([1 + 2j]),
            np.ones(2, np.longdouble),
            h5py.Empty("f4"),
        ],
        ids=["text", "bytes", "compound", "complex", "long double", "empty"],
    )
    @pytest.mark.parametrize("place", ["data/names", "data/names/kernel", "layers/conv2d/vars/0"])
    def test_other_hdf5_file_is_rejected(self, values, place, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file[place] = values
        with pytest.raises(InputError, match=rf"a\.h5: '/{place}' holds no numbers"):
            interop.read(tmp_path / "a.h5")

    def test_big_endian_numbers_are_read(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["predictions/predictions/bias:0"] = np.array([1.5, -2.0], ">f4")
        bias = interop.read(tmp_path / "a.h5").tensors["predictions.bias"]
        assert bias.tolist() == [1.5, -2.0]

    @pytest.mark.parametrize("description", [np.ones(3), 7, h5py.Empty("f4")])
    def test_description_that_is_not_text_is_rejected(self, description, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["predictions/predictions/bias:0"] = np.ones(2, "f4")
            file.attrs["model_config"] = description
        with pytest.raises(InputError, match=mentioning("a.h5")):
            interop.read(tmp_path / "a.h5")

    @pytest.mark.parametrize(
        ("constants", "said"),
        [
            ({"mean": [0.5, 0.5], "variance": [0.1, 0.1, 0.1]}, ("2", "3", "channel")),
            ({"mean": [0.5, 0.5, 0.5], "variance": [0.1] * 4}, ("4", "3", "channel")),
            ({"mean": [], "variance": [0.1, 0.1, 0.1]}, ("0", "3", "channel")),
            ({"mean": [0.5], "variance": [-1.0]}, ("0", "finite")),
            ({"mean": [float("nan")], "variance": [0.1]}, ("0", "finite")),
            ({"mean": [0.5], "variance": [float("inf")]}, ("0", "finite")),
        ],
    )
    def test_invalid_mean_and_std_are_rejected(self, whole, tmp_path, constants, said):
        def with_constants(text):
            config = json.loads(text)
            [layer] = [one for one in config["config"]["layers"] if one["class_name"] == "Normalization"]
            layer["config"].update(constants)
            return json.dumps(config)

        path = self.changed(whole, tmp_path / "a.keras", with_constants)
        with pytest.raises(InputError, match=mentioning(*said)):
            interop.read(path)

    @pytest.mark.parametrize("px", [0, -5])
    def test_invalid_image_size_is_replaced_by_the_published_size(self, whole, tmp_path, px):
        path = self.changed(
            whole,
            tmp_path / "a.keras",
            lambda text: text.replace(
                b'"batch_shape": [null, 32, 32, 3]', f'"batch_shape": [null, {px}, {px}, 3]'.encode()
            ),
        )
        assert interop.read(path).preprocessing.image_size == get_model_info("efficientnetv2_b0").eval_image_size

    def test_other_files_are_not_keras(self, tmp_path):
        (tmp_path / "text.h5").write_text("no HDF5")
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            archive.writestr("data.pkl", "")
        assert not keras_files.opens(tmp_path / "text.h5")
        assert not keras_files.opens(tmp_path / "other.zip")
        assert not keras_files.opens(tmp_path / "absent.keras")


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("a.keras", ["class names", "preprocessing: size, mean and std are in the model"]),
        ("a.weights.h5", ["class names", "preprocessing: mean and std are in the model"]),
    ],
)
def test_metadata_that_keras_ignores_is_reported(name, alone, tmp_path):
    network = random_network("efficientnet_b0")
    network.class_names = ("a", "b", "c", "d", "e")
    notes = convert.write(tmp_path / name, network, "keras")
    assert len(notes) == len(alone)
    assert all(word in note for word, note in zip(alone, notes, strict=True))


def test_reading_does_not_need_keras(tmp_path, monkeypatch):
    network = random_network("efficientnet_b0")
    weight_writer.write_keras(tmp_path / "a.keras", network)
    monkeypatch.setitem(sys.modules, "keras", None)
    assert equal(interop.read(tmp_path / "a.keras"), network)
    with pytest.raises(InputError, match=r'pip install "h5py[^"]*" "keras'):
        weight_writer.write_keras(tmp_path / "b.keras", network)


def behind(*layers):
    """A model description with these layers after a convolution."""
    conv = {"class_name": "Conv2D", "config": {"name": "top_conv"}}
    return {"class_name": "Functional", "config": {"layers": [conv, *layers]}}


def keras_layer(kind, **config):
    return {"class_name": kind, "config": {"name": kind.lower(), **config}}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([keras_layer("Dense", units=64, activation="relu"), keras_layer("Dense", units=1, activation="sigmoid")],
         ("2", "layer")),
        ([keras_layer("Dense", units=1, activation="sigmoid")], ("sigmoid",)),
        ([keras_layer("Dense", units=1, activation="linear")], ("has one output",)),
        ([keras_layer("Dense", units=5, activation="linear"), keras_layer("Activation", activation="sigmoid")],
         ("activation", "sigmoid")),
        ([keras_layer("GlobalMaxPooling2D"), keras_layer("Dense", units=5, activation="softmax")],
         ("globalmaxpooling2d", "GlobalMaxPooling2D")),
    ],
)  # fmt: skip
def test_unsupported_last_layers_are_rejected(layers, message):
    with pytest.raises(InputError, match=mentioning(*message)):
        refuse_other_heads(Path("some.keras"), behind(*layers))


@pytest.mark.parametrize("activation", ["softmax", "linear", {"class_name": "Softmax", "config": {}}])
def test_usual_last_layers_are_accepted(activation):
    pooled = [keras_layer("Activation", activation="swish"), keras_layer("GlobalAveragePooling2D")]
    refuse_other_heads(Path("some.keras"), behind(*pooled, keras_layer("Dense", units=5, activation=activation)))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_symmetric_scaling_is_stored_in_the_model(suffix, tmp_path):
    """(x - 128) / 128, as in S to L, is one Rescaling layer with an offset. Files of weights do not have it."""
    network, path = random_network(B0, **SYMMETRIC), tmp_path / f"ours{suffix}"
    weight_writer.write_keras(path, network)
    found = convert.read(path).network.preprocessing
    assert (found.mean, found.std) == (pytest.approx(SYMMETRIC["mean"]), pytest.approx(SYMMETRIC["std"]))
    theirs = keras_logits(keras.models.load_model(path), pixels(network.preprocessing))
    assert distance(our_logits(network), theirs) < TOLERANCE
