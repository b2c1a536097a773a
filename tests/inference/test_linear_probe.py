"""The linear probe: scikit-learn's logistic regression on the embeddings of a backbone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler
from tests.data.test_splits import dataset as pictures
from tests.messages import mentioning

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.inference import linear_probe as room
from efficientnetv2.inference.linear_probe import fit_probe, linear_probe
from efficientnetv2.inference.predict import Embeddings, embed_dataset
from efficientnetv2.inference.probe_splits import GroupedData, deduplicate, sample_training_rows
from efficientnetv2.metrics.classification import classification_metrics, macro_f1
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

SMALL = Architecture(stem_channels=8, stages=(Stage(fused_mbconv(expand=2, kernel=3), 2, 8, 1),), head_channels=16)
PREPROCESSING = Preprocessing(image_size=32)
KEY = Key.of(0)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return create(SMALL, num_classes=0)


@pytest.fixture
def parts(class_folders):
    dataset = load_dataset(class_folders)
    return dataset.select(np.arange(0, 48, 2)), dataset.select(np.arange(1, 48, 2))


def test_embeddings_are_the_input_of_the_classifier(network, parts):
    embedded = embed_dataset(network, parts[0], preprocessing=PREPROCESSING, batch_size=5)
    assert embedded.vectors.shape == (24, 16)
    assert embedded.labels.tolist() == parts[0].labels.tolist()
    one = embed_dataset(network, parts[0].select([7]), preprocessing=PREPROCESSING)
    np.testing.assert_allclose(embedded.vectors[7], one.vectors[0], rtol=1e-4, atol=1e-5)


def test_random_features_separate_colors(network, parts):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = linear_probe(network, *parts, PREPROCESSING, key=KEY).metrics
    assert found.top1 == found.macro_f1 == 1.0
    assert (found.num_train_images, found.num_images) == (24, 24)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_unreadable_images_are_counted_without_copies(network, parts):
    """Three files are unreadable, and one of them is a copy: two labels fewer."""
    train, val = parts
    made = ["" if row != 9 else train.paths[8] for row in range(24)]
    train = replace(train, table=train.table.assign(augmented_from=made))
    for row in (2, 5, 9):
        Path(train.file(row)).write_bytes(b"no picture")
    found = linear_probe(network, train, val, PREPROCESSING, key=KEY)
    assert [row for row, _ in found.train.unreadable] == [2, 5, 9]
    assert (found.metrics.num_train_images, found.num_unreadable) == (21, 2)


@pytest.mark.parametrize(
    ("side", "lost", "said"),
    [(0, range(24), ("24",)), (1, range(24), ("24",)), (0, range(8, 24), ("blue", "16"))],
    ids=["learning", "measuring", "one class"],
)
def test_too_few_readable_images_are_an_error(side, lost, said, network, parts):
    """In shards, unreadable images are found only now. scikit-learn's message would be about arrays."""
    for row in lost:
        Path(parts[side].file(row)).write_bytes(b"no picture")
    with pytest.raises(InputError, match=mentioning(*said)):
        linear_probe(network, *parts, PREPROCESSING, key=KEY)


def test_random_labels_are_not_learned(network, parts):
    train, val = parts
    shuffled = replace(
        train, table=train.table.assign(label=np.random.default_rng(0).permutation(train.table["label"]))
    )
    found = linear_probe(network, shuffled, val, PREPROCESSING, key=KEY).metrics
    assert found.top1 < 0.8


@pytest.mark.parametrize("balanced", [False, True])
def test_probe_equals_logistic_regression_at_the_selected_strength(balanced):
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 25, 15])
    vectors = (draw.normal(size=(100, 8)) * np.arange(1, 9) + labels[:, None]).astype(np.float32)
    pipeline, strength = fit_probe(Embeddings(np.arange(100), labels, vectors), key=KEY, balanced=balanced)
    by_hand = LogisticRegression(C=strength, class_weight="balanced" if balanced else None, max_iter=1000)
    scaled = StandardScaler().fit_transform(vectors)
    by_hand.fit(scaled, labels)
    np.testing.assert_allclose(pipeline.predict_proba(vectors), by_hand.predict_proba(scaled), atol=1e-3)


@pytest.mark.parametrize(("classes", "fits"), [(250, 6), (300, 1)])
def test_many_classes_use_the_default_strength(classes, fits, monkeypatch):
    """A full fit costs 2,000 x 1,280 x K. A selection among five costs five fits of three quarters."""
    made = []
    monkeypatch.setattr(room, "fit_classifier", lambda vectors, labels, *_: made.append(len(labels)) or _NoPrediction())
    labels = np.arange(2_000) % classes
    vectors = np.zeros((2_000, 1_280), dtype=np.float32)
    _, strength = fit_probe(Embeddings(np.arange(2_000), labels, vectors), key=KEY, balanced=False)
    assert made == [1_500] * (fits - 1) + [2_000]
    assert strength == (room.DEFAULT_STRENGTH if fits == 1 else room._STRENGTHS[0])


class _NoPrediction:
    def predict(self, vectors):
        return np.full(len(vectors), -1)


def test_copies_and_neighbors_do_not_affect_the_strength():
    """Each vector three times with a little noise. Without groups, memorizing a copy would be rewarded."""
    labels, vectors = _with_noisy_copies(240, np.random.default_rng(2))
    alone = Embeddings(np.arange(240), labels, vectors[:240])
    every, family = Embeddings(np.arange(720), np.tile(labels, 3), vectors), np.tile(np.arange(240), 3)
    _, expected = fit_probe(alone, key=KEY, balanced=False)
    _, parted = fit_probe(every, key=KEY, balanced=False)
    assert parted > expected
    copies = GroupedData(family, family, np.arange(720) >= 240)
    assert fit_probe(every, key=KEY, balanced=False, groups=copies)[1] == expected
    places = GroupedData(family, np.arange(720), np.zeros(720, dtype=bool))
    assert fit_probe(every, key=KEY, balanced=False, groups=places)[1] == expected


def _with_noisy_copies(count, draw):
    """Labels of three classes, and vectors of ``count`` images, followed by two noisy copies of each."""
    labels = np.arange(count) % 3
    own = 0.15 * draw.normal(size=(3, 300))[labels] + draw.normal(size=(count, 300))
    again = np.concatenate([own, own, own])
    again[count:] += 0.3 * draw.normal(size=(2 * count, 300))
    return labels, again.astype(np.float32)


def test_split_without_groups_is_that_of_scikit_learn():
    labels = np.arange(60) % 3
    split = StratifiedShuffleSplit(1, test_size=0.25, random_state=KEY.torch_seed() % 2**32)
    ((learning, choosing),) = GroupedData.from_dataset(pictures(labels), np.arange(60), key=KEY).draw_splits(
        labels, key=KEY, test_fraction=0.25
    )
    expected = next(split.split(labels, labels))
    np.testing.assert_array_equal(learning, expected[0])
    np.testing.assert_array_equal(choosing, expected[1])


def test_locations_are_not_split_if_each_class_remains_in_training():
    labels = np.tile([0, 1], 40)
    place = np.arange(80) // 8
    data = pictures(labels, latitude=place + 0.5, longitude=place + 0.5)
    together = GroupedData.from_dataset(data, None, key=KEY)
    assert len(np.unique(together.clusters)) == 10
    ((learning, choosing),) = together.draw_splits(labels, key=KEY, test_fraction=0.25)
    assert not set(place[learning]) & set(place[choosing])
    assert 12 <= len(choosing) <= 28
    one_place_each = pictures(labels, latitude=labels + 0.5, longitude=labels + 0.5)
    assert len(np.unique(GroupedData.from_dataset(one_place_each, None, key=KEY).clusters)) == 80


def test_few_images_are_not_grouped_by_location():
    """No class has an image for each part that the strength is selected with."""
    labels = np.array([0, 1, 0, 1, 0, 1])
    few = pictures(labels, latitude=np.arange(6) + 0.5, longitude=3.0 * np.arange(6))
    np.testing.assert_array_equal(np.unique(GroupedData.from_dataset(few, None, key=KEY).clusters), np.arange(6))


@pytest.mark.parametrize(("places", "each", "draws"), [(20, 5, 4), (60, 20, 2), (40, 50, 1), (100, 1, 1)])
def test_few_groups_are_split_several_times(places, each, draws, monkeypatch):
    """A quarter of 100 images has few groups. A quarter of 2,000 has 500, which is enough. Single images: one split."""
    of = Embeddings(np.arange(places * each), np.arange(places * each) % 2, np.zeros((places * each, 3), np.float32))
    together = GroupedData(np.arange(places * each) // each, np.arange(places * each), np.zeros(places * each, bool))
    seen = []
    monkeypatch.setattr(
        room, "fit_classifier", lambda *words: seen.append(words) or DummyClassifier().fit(words[0], words[1])
    )
    fit_probe(of, key=KEY, balanced=False, groups=together)
    assert len(seen) == 5 * draws + 1


def test_copies_without_their_source_keep_one_representative():
    copies = GroupedData(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), np.array([True, True, True, False]))
    assert copies.originals.tolist() == [0, 3]


def test_class_weights_improve_the_rare_class():
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1], [190, 10])
    vectors = (draw.normal(size=(200, 4)) + labels[:, None]).astype(np.float32)
    embedded = Embeddings(np.arange(200), labels, vectors)
    plain, weighed = (
        f1_score(labels, fit_probe(embedded, key=KEY, balanced=balanced)[0].predict(vectors), average="macro")
        for balanced in (False, True)
    )
    assert weighed > plain


def test_class_with_one_image_is_accepted():
    vectors = np.eye(5, dtype=np.float32)
    pipeline, _ = fit_probe(Embeddings(np.arange(5), np.array([0, 0, 1, 1, 2]), vectors), key=KEY, balanced=True)
    assert set(pipeline.classes_) == {0, 1, 2}


def test_macro_f1_ignores_classes_that_are_only_predicted():
    """As in the report: 19 of 20 are right, and the last prediction is a class without images. F1 is 38/39."""
    truth, predicted = np.zeros(20, dtype=np.int64), np.array([0] * 19 + [1])
    expected = classification_metrics(truth, np.eye(2)[predicted], ("a", "b")).macro_f1
    assert macro_f1(truth, predicted) == pytest.approx(expected) == pytest.approx(38 / 39)


def test_image_limit_follows_the_cost_on_a_cpu():
    """V2-B0 at 224 px: 0.718 billion multiply-adds, 5,000 images. S at 384 px: 8.37 billion, 430, so at least 500."""
    cpu = torch.device("cpu")
    b0, s = create("efficientnetv2_b0", num_classes=0), create("efficientnetv2_s", num_classes=0)
    assert room.max_probe_images(b0, 224, 10, cpu) == 5000
    assert room.max_probe_images(b0, 448, 10, cpu) == pytest.approx(5014 / 4, rel=0.01)
    assert room.max_probe_images(s, 384, 10, cpu) == 500
    assert room.max_probe_images(s, 384, 300, cpu) == 1500
    assert room.max_probe_images(s, 384, 10, torch.device("cuda")) == 5000


def test_large_datasets_are_sampled(network, parts, monkeypatch):
    monkeypatch.setattr(room, "MAX_IMAGES", 12)
    found = linear_probe(network, *parts, PREPROCESSING, key=KEY).metrics
    assert (found.num_train_images, found.num_images) == (12, 12)


def test_sample_prefers_images_to_copies():
    """900 images of one class, and 60 with 14 copies each. 200 images are about half of each class, with all 60."""
    labels = np.repeat([0, 1, 1], [900, 60, 840])
    origin = [None] * 960 + [f"{900 + number % 60}.jpg" for number in range(840)]
    made = pictures(labels, path=[f"{row}.jpg" for row in range(1800)], augmented_from=origin)
    contents = np.arange(1800)
    contents[450:900] = np.arange(450)  # half of the first class are duplicate files
    rows = sample_training_rows(labels, 200, KEY, deduplicate(made, contents))
    assert len(rows) == len(np.unique(rows)) == 200
    of_first, of_second = rows[labels[rows] == 0], rows[labels[rows] == 1]
    assert 75 <= len(of_first) <= 125
    assert len(np.unique(contents[of_first])) == len(of_first)
    assert set(range(900, 960)) <= set(of_second.tolist()), "copies beside all of these fill the rest"
    plain = sample_training_rows(labels, 200, KEY)
    np.testing.assert_array_equal(plain, sample_training_rows(labels, 200, KEY, np.ones(1800, dtype=bool)))
    assert np.bincount(labels[plain]).tolist() == np.bincount(labels[rows]).tolist()


def test_class_missing_from_the_sample_is_added(network, parts, monkeypatch):
    """One of 9 images is of another class, and 2 are sampled. A probe of one class cannot be fitted."""
    train, val = parts
    rare = train.select([0, *np.flatnonzero(train.labels == 2)])
    assert np.bincount(rare.labels).tolist() == [1, 0, 8]
    monkeypatch.setattr(room, "max_probe_images", lambda *_: 2)
    for seed in range(3):
        found = linear_probe(network, rare, val, PREPROCESSING, key=Key.of(seed))
        assert len(np.unique(found.train.labels)) == 2
