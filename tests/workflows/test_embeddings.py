"""``predict`` writes embeddings, the input of the classifier, for image search."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.inference.test_predictor import tiny_network
from tests.messages import mentioning

import efficientnetv2 as ev2

CPU = {"device": "cpu", "workers": 0}


def green(rng):
    """A noisy image in a random green."""
    return (rng.integers((60, 150, 60), (100, 200, 100)) + rng.integers(-20, 20, (16, 16, 3))).astype(np.uint8)


@pytest.fixture
def images(tmp_path):
    """12 images of the size of the model. The last image is a copy of the first."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(11):
        Image.fromarray(green(rng)).save(folder / f"{number:02d}.png")
    (folder / "11.png").write_bytes((folder / "00.png").read_bytes())
    return folder


@pytest.fixture
def model(tmp_path):
    ev2.save(tmp_path / "model.safetensors", tiny_network())
    return tmp_path / "model.safetensors"


def test_embeddings_equal_the_input_of_the_classifier(model, images, tmp_path):
    (images / "broken.png").write_bytes(b"x")
    table = ev2.predict(model, images, embeddings=tmp_path / "e.parquet", **CPU)
    found = pq.read_table(tmp_path / "e.parquet")
    assert found.column("path").to_pylist() == table["path"].tolist()
    loaded, seen = ev2.load(model), []
    loaded.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        loaded(torch.stack([loaded.preprocessing(images / f"{number:02d}.png") for number in range(12)]))
    np.testing.assert_allclose(np.array(found.column("embedding").to_pylist()), seen[0], atol=1e-5)


def test_nearest_images_are_the_most_similar(model, images, tmp_path):
    file = tmp_path / "e.parquet"
    ev2.predict(model, images, embeddings=file, **CPU)
    queries = ev2.Predictor(model).embed([images / "00.png", images / "05.png"])
    found = ev2.nearest_images(file, queries, k=2)
    assert found["query"].tolist() == [0, 0, 1, 1]
    assert [path[-6:] for path in found["path"]][:3] == ["00.png", "11.png", "05.png"]
    assert found["similarity"].tolist()[:3] == pytest.approx([1, 1, 1], abs=1e-5)
    everything = ev2.nearest_images(file, queries[0], k=100)
    units = torch.nn.functional.normalize(ev2.Predictor(model).embed(sorted(images.iterdir())))
    assert everything["similarity"].tolist() == pytest.approx(
        sorted((units @ units[0]).tolist(), reverse=True), abs=1e-4
    )
    with pytest.raises(ev2.InputError, match=mentioning("queries", "16")):
        ev2.nearest_images(file, np.zeros(7))
    with pytest.raises(ev2.InputError, match=mentioning("model.safetensors", "--embeddings")):
        ev2.nearest_images(model, queries)
    assert len(ev2.nearest_images(file, queries[:0])) == 0
    pd.read_parquet(file).to_parquet(tmp_path / "by_pandas.parquet")  # lists of variable length
    with pytest.raises(ev2.InputError, match=mentioning("by_pandas.parquet", "--embeddings")):
        ev2.nearest_images(tmp_path / "by_pandas.parquet", queries)


def test_embeddings_replace_only_embeddings(model, images, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\nimages/00.png,a\n")
    pd.read_csv(tmp_path / "labels.csv").to_parquet(tmp_path / "labels.parquet")
    for name in ("e.csv", "labels.parquet"):
        with pytest.raises(ev2.InputError, match=mentioning("embeddings", name)):
            ev2.predict(model, images, embeddings=tmp_path / name, **CPU)
    ev2.predict(model, images, embeddings=tmp_path / "e.parquet", **CPU)
    ev2.predict(model, images, embeddings=tmp_path / "e.parquet", **CPU)


def test_queries_are_compared_in_parts(model, images, tmp_path, monkeypatch):
    ev2.predict(model, images, embeddings=tmp_path / "e.parquet", **CPU)
    queries = ev2.Predictor(model).embed(sorted(images.iterdir())[:5])
    whole = ev2.nearest_images(tmp_path / "e.parquet", queries, k=2)
    monkeypatch.setattr("efficientnetv2.inference.embeddings._AT_ONCE", 30)  # less than three queries
    parts = ev2.nearest_images(tmp_path / "e.parquet", queries, k=2)
    assert parts["query"].tolist() == whole["query"].tolist()
    assert parts["similarity"].tolist() == pytest.approx(whole["similarity"].tolist(), abs=1e-5)
