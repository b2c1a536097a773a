"""Built-in datasets: small ones of the real layout, compared with torchvision on the same files."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from tests.messages import mentions
from tests.standard_sets import write_flowers
from torchvision import datasets

from efficientnetv2.data import builtin_datasets
from efficientnetv2.data.builtin_datasets import BUILTIN_NAMES
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.utils.errors import InputError

CLASSES = ["airplane", "bird", "train"]
BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EFFNETV2_DATA", raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write_pickle(file: Path, content: object) -> list[str]:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(content))
    return [file.name, hashlib.md5(file.read_bytes()).hexdigest()]


def write_python_cifar(
    monkeypatch, folder: Path, cifar: type, label_key: str, names_key: str, train: list[str]
) -> None:
    """CIFAR as torchvision downloads it; the checksums are those of the small files."""
    rng = np.random.default_rng(0)

    def batch(name: str, count: int) -> list[str]:
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        return write_pickle(folder / name, {"data": data, label_key: [i % 3 for i in range(count)]})

    monkeypatch.setattr(cifar, "train_list", [batch(name, 6) for name in train])
    monkeypatch.setattr(cifar, "test_list", [batch("test_batch" if len(train) > 1 else "test", 4)])
    name, md5 = write_pickle(folder / cifar.meta["filename"], {names_key: CLASSES})
    monkeypatch.setattr(cifar, "meta", {"filename": name, "key": names_key, "md5": md5})


@pytest.mark.parametrize(
    ("name", "cifar", "label_key", "names_key", "train"),
    [
        ("cifar10", datasets.CIFAR10, "labels", "label_names", BATCHES),
        ("cifar100", datasets.CIFAR100, "fine_labels", "fine_label_names", ["train"]),
    ],
)
def test_cifar_is_converted_once_and_equals_torchvision(
    name, cifar, label_key, names_key, train, data_dir, monkeypatch
):
    write_python_cifar(monkeypatch, data_dir / cifar.base_folder, cifar, label_key, names_key, train)
    dataset = load_dataset(name)
    assert dataset.published == name
    assert dataset.class_names == tuple(CLASSES)
    parts = {split: cifar("data", train=split == "train") for split in ("train", "test")}
    assert Counter(dataset.split) == {split: len(images) for split, images in parts.items()}
    for row, path in enumerate(dataset.paths):
        image, label = parts[dataset.split[row]][int(Path(path).stem)]
        assert dataset.labels[row] == label
        np.testing.assert_array_equal(load_image(dataset.file(row)), image)
    assert {entry.name for entry in data_dir.iterdir()} == {cifar.base_folder, f"{name}-images"}
    monkeypatch.setattr(cifar, "__init__", None)  # a second reading does not need torchvision
    assert load_dataset(name).digest() == dataset.digest()


def test_damaged_cifar_is_rejected_before_unpickling(data_dir, monkeypatch):
    folder = data_dir / "cifar-10-batches-py"
    write_python_cifar(monkeypatch, folder, datasets.CIFAR10, "labels", "label_names", BATCHES)
    (folder / "data_batch_2").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(InputError, match="not found or corrupted"):
        load_dataset("cifar10")
    assert not (data_dir.parent / "executed").exists()


def write_images(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)


def test_eurosat_and_imagenette_are_read_from_folders(data_dir):
    write_images(*(data_dir / f"eurosat/2750/{name}/{name}_1.jpg" for name in ("Forest", "River")))
    assert load_dataset("eurosat").paths == ["eurosat/2750/Forest/Forest_1.jpg", "eurosat/2750/River/River_1.jpg"]
    ids = ("n01440764", "n02102040")
    write_images(
        *(data_dir / f"imagenette2-160/{split}/{name}/{name}_1.JPEG" for split in ("train", "val") for name in ids)
    )
    dataset = load_dataset("imagenette")
    assert dataset.class_names == ("English springer", "tench")
    assert dataset.split.tolist() == ["train", "train", "val", "val"]


def test_flowers_are_read_from_matlab_files(data_dir, monkeypatch):
    write_flowers(data_dir, monkeypatch, [77, 1, 77, 1, 1, 77], trnid=[1, 2], valid=[3, 4], tstid=[5, 6])
    dataset = load_dataset("flowers102")
    assert dataset.class_names == ("passion flower", "pink primrose")
    assert list(zip(dataset.paths, dataset.labels.tolist(), dataset.split, strict=True)) == [
        (f"flowers-102/jpg/image_0000{i}.jpg", label, split)
        for i, label, split in zip(
            range(1, 7), [0, 1, 0, 1, 1, 0], ["train"] * 2 + ["val"] * 2 + ["test"] * 2, strict=True
        )
    ]


def test_cars_are_read_from_matlab_files(data_dir):
    """One name has a slash, and class ids start at 1, as in the real files."""
    folder, names = data_dir / "stanford_cars", ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    write_images(*(folder / f"cars_{split}/0000{i}.jpg" for split in ("train", "test") for i in (1, 2)))
    (folder / "devkit").mkdir()
    scipy.io.savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    fields = [("fname", object), ("class", object)]
    for file, labels in (("devkit/cars_train_annos.mat", [2, 1]), ("cars_test_annos_withlabels.mat", [2, 2])):
        rows = [(f"0000{i}.jpg", np.uint8(label)) for i, label in enumerate(labels, start=1)]
        scipy.io.savemat(folder / file, {"annotations": np.array([rows], dtype=fields)})
    dataset = load_dataset("stanford_cars")
    assert dataset.class_names == tuple(names)
    assert list(zip(dataset.paths, dataset.labels.tolist(), dataset.split, strict=True)) == [
        ("stanford_cars/cars_train/00001.jpg", 1, "train"),
        ("stanford_cars/cars_train/00002.jpg", 0, "train"),
        ("stanford_cars/cars_test/00001.jpg", 1, "test"),
        ("stanford_cars/cars_test/00002.jpg", 1, "test"),
    ]


def test_pets_equal_torchvision(data_dir):
    folder = data_dir / "oxford-iiit-pet"
    write_images(*(folder / f"images/{name}.jpg" for name in ("Abyssinian_1", "great_pyrenees_2", "Abyssinian_3")))
    (folder / "annotations").mkdir()
    (folder / "annotations/trainval.txt").write_text("Abyssinian_1 1 1 1\ngreat_pyrenees_2 2 2 1\n")
    (folder / "annotations/test.txt").write_text("Abyssinian_3 1 1 1\n")
    dataset, expected = load_dataset("oxford_iiit_pet"), datasets.OxfordIIITPet("data")
    assert dataset.class_names == ("Abyssinian", "great_pyrenees")
    assert dataset.labels.tolist() == [expected[0][1], expected[1][1], 0]
    assert dataset.split.tolist() == ["train", "train", "test"]


def test_data_folder_is_set_by_the_environment_variable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EFFNETV2_DATA", str(tmp_path / "sets"))
    write_images(*(tmp_path / f"sets/eurosat/2750/{name}/1.jpg" for name in ("Forest", "River")))
    assert load_dataset("eurosat").root == tmp_path / "sets"


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_missing_dataset_names_the_folder_and_the_download(data_dir, name):
    with pytest.raises(InputError) as error:
        load_dataset(name)
    message = str(error.value)
    assert str(data_dir) in message
    assert mentions(message, "EFFNETV2_DATA")
    call = message.split("torchvision.datasets.")[1].split("(")[0]
    assert hasattr(datasets, call)
    assert list(data_dir.iterdir()) == []


def test_two_processes_that_convert_a_dataset_write_it_once(data_dir, monkeypatch):
    """The other process is slightly faster, and its result is used."""
    folder = data_dir / "cifar-10-batches-py"
    write_python_cifar(monkeypatch, folder, datasets.CIFAR10, "labels", "label_names", BATCHES)
    os_replace = os.replace

    def replace_too_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(builtin_datasets.os, "replace", os_replace)
        load_dataset("cifar10")
        os_replace(source, target)

    monkeypatch.setattr(builtin_datasets.os, "replace", replace_too_late)
    assert len(load_dataset("cifar10")) == 34
    assert {path.name for path in data_dir.iterdir()} == {folder.name, "cifar10-images"}
