"""Truncated and changed files are read or rejected with a message. No other error occurs."""

import random
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from tests.messages import mentioning

from efficientnetv2.models.conversion.detect import detect
from efficientnetv2.models.conversion.weight_reader import is_model_file, read
from efficientnetv2.utils.errors import InputError

h5py = pytest.importorskip("h5py")

CUTS, CHANGES = 1200, 250  # places in a file


def tensors():
    torch.manual_seed(0)
    return {
        "conv_stem.weight": torch.randn(4, 3, 3, 3),
        "bn1.weight": torch.randn(4),
        "bn1.num_batches_tracked": torch.tensor(3),
    }


def zipped(path):
    torch.save(tensors(), path)


def legacy(path):
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)


def safetensors(path):
    save_file(tensors(), path)


def keras_weights(path):
    with h5py.File(path, "w") as file:
        for number, tensor in enumerate(tensors().values()):
            file[f"layers/conv2d{f'_{number}' * bool(number)}/vars/0"] = tensor.numpy()


def keras_legacy(path):
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = '{"config": {"layers": []}}'
        for name, tensor in tensors().items():
            file[f"model_weights/{name}/{name}/kernel:0"] = tensor.numpy()


def keras_archive(path):
    weights = path.with_name("weights")
    keras_weights(weights)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", '{"config": {"layers": []}}')
        archive.write(weights, "model.weights.h5")


FORMATS = [zipped, legacy, safetensors, keras_weights, keras_legacy, keras_archive]


@pytest.fixture
def whole(request, tmp_path):
    path = tmp_path / request.param.__name__
    request.param(path)
    return path


def is_refused(path):
    """True if the file is rejected. Any error other than InputError fails the test."""
    assert not is_model_file(path)
    message = None
    try:
        read(path)
    except InputError as error:
        message = str(error)
    assert message is None or str(path) in message
    return message is not None


@pytest.mark.parametrize("whole", FORMATS, indirect=True)
def test_every_truncated_file_is_rejected(whole):
    content = whole.read_bytes()
    for size in {*range(0, len(content), max(1, len(content) // CUTS)), len(content) - 1}:
        whole.write_bytes(content[:size])
        assert is_refused(whole), size


@pytest.mark.parametrize("whole", FORMATS, indirect=True)
def test_changed_file_is_read_or_rejected(whole):
    content, draw = whole.read_bytes(), random.Random(0)
    refused = 0
    for place in draw.choices(range(len(content)), k=CHANGES):
        for value in (content[place] ^ 1 << draw.randrange(8), 0xFF):
            whole.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            refused += is_refused(whole)
    assert refused > CHANGES // 20  # the changes affect what is read


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (b"PK\x05\x06", b"PK\x05\x07", "damaged archive"),  # no end of the central directory
        (b"archive/data.pkl", b"archive/\xff\xff\xff\xff.pkl", "damaged archive"),  # a name that is not text
    ],
)
def test_damaged_archive_directory_is_rejected(tmp_path, place, value, said):
    path = tmp_path / "archive.pth"
    torch.save(tensors(), path)
    content = path.read_bytes()
    assert place in content
    head, _, tail = content.rpartition(place)
    path.write_bytes(head + value + tail)
    with pytest.raises(InputError, match=said):
        read(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("zipped", [True, False])
def test_recursive_dictionary_is_rejected(tmp_path, zipped):
    endless = {"epoch": 1}
    endless["model"] = endless
    path = tmp_path / "endless.pth"
    torch.save(endless, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=mentioning("model")):
        read(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensor_larger_than_its_data_is_rejected(tmp_path, zipped):
    """One value with a shape of four terabytes, from strides of 0."""
    path = tmp_path / "small.pth"
    weights = tensors() | {"conv_head.weight": torch.zeros(1, 1, 1, 1).expand(2**20, 2**20, 1, 1)}
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 2**24
    with pytest.raises(InputError, match=mentioning("conv_head.weight", "1048576", "1", "4")):
        read(path)


@pytest.mark.parametrize(
    ("held", "said"), [(lambda one: one.to("meta"), "without values"), (torch.Tensor.to_sparse, "a sparse tensor")]
)
def test_sparse_and_meta_tensors_are_rejected(held, said, tmp_path):
    torch.save(tensors() | {"bn1.weight": held(tensors()["bn1.weight"])}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=rf"'bn1\.weight' is .*{said}.* save the tensors alone"):
        read(tmp_path / "odd.pth")


def test_nested_state_dicts_are_unwrapped(tmp_path):
    path = tmp_path / "nests.pth"
    torch.save({"model": {"state_dict": {"model": tensors()}}}, path)
    assert read(path).tensors.keys() == tensors().keys()


@pytest.mark.parametrize("scalar", ["conv_stem.weight", "conv_head.weight"])
def test_scalar_instead_of_a_convolution_is_rejected(tmp_path, scalar):
    others = {"conv_stem.weight": torch.zeros(24, 3, 3, 3), "conv_head.weight": torch.zeros(8, 8, 1, 1)}
    path = tmp_path / "scalar.safetensors"
    save_file(others | {scalar: torch.tensor(1.0)}, path)
    with pytest.raises(InputError, match=scalar):
        detect(read(path))
