"""The predictor: equal predictions for every kind of image input, from a model file alone."""

import io
import tempfile
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tests.messages import mentioning

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.data import raster_checks
from efficientnetv2.inference.predictor import Predictor, _load
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError

SMALL = Architecture(
    stem_channels=8, stages=(Stage(fused_mbconv(expand=2, kernel=3), stride=2, channels=8, layers=1),), head_channels=16
)
NAMES = ("forest", "pasture", "maize")
PREPROCESSING = Preprocessing(image_size=16, mean=(0.2, 0.3, 0.4), std=(0.1, 0.1, 0.1))


def tiny_network():
    """A model for 16 px with random weights, in evaluation mode."""
    torch.manual_seed(0)
    model = EfficientNet(SMALL, num_classes=3).eval()
    model.preprocessing, model.class_names = PREPROCESSING, NAMES
    return model


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    model_file.save(path, tiny_network())
    return path


def _pixels(seed=0, side=16):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_all_input_types_give_equal_predictions(model, tmp_path):
    pixels = _pixels()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    opaque = np.concatenate([pixels, np.full((16, 16, 1), 255, np.uint8)], axis=2)
    predictor = Predictor(model)
    predictions = predictor([str(tmp_path / "a.png"), tmp_path / "a.png", image, pixels, opaque])
    assert len(predictions) == 5
    for prediction in predictions:
        assert prediction.probabilities == pytest.approx(predictions[0].probabilities, rel=1e-4)
    assert predictor(pixels)[0].label == predictor(tmp_path / "a.png")[0].label == predictions[0].label


def test_prediction_is_the_softmax_of_the_model_on_normalized_pixels(model):
    pixels = _pixels()
    normalized = (pixels / 255 - np.array([0.2, 0.3, 0.4])) / 0.1
    network = model_file.load(model)
    with torch.no_grad():
        probabilities = network(torch.from_numpy(normalized).float().permute(2, 0, 1)[None]).softmax(1)[0]
    (prediction,) = Predictor(network)(pixels)
    assert list(prediction.probabilities) == list(NAMES)
    assert list(prediction.probabilities.values()) == pytest.approx(probabilities.tolist(), rel=1e-3)
    assert prediction.label == NAMES[int(probabilities.argmax())]
    assert prediction.probability == pytest.approx(float(probabilities.max()), rel=1e-3)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_non_finite_predictions_get_no_label(model):
    network = model_file.load(model)
    network.stem.norm.running_var.neg_()
    with pytest.raises(InputError, match=mentioning("1", "NaN")):
        Predictor(network)(_pixels())


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_upload_and_file_have_equal_predictions(model, tmp_path, kind):
    """Web forms pass bytes or a stream without a file name."""
    path = tmp_path / f"a.{kind}"
    Image.fromarray(_pixels()).save(path)
    content = path.read_bytes()
    predictor = Predictor(model)
    (expected,) = predictor(path)
    with open(path, "rb") as opened:
        uploads = [content, bytearray(content), memoryview(content), io.BytesIO(content), opened]
        predictions = [*predictor(uploads), *predictor(content), *predictor(io.BytesIO(content))]
    assert len(predictions) == 7
    for prediction in predictions:
        assert prediction.probabilities == pytest.approx(expected.probabilities, rel=1e-4)


def test_png_with_the_name_of_a_tiff_is_read_as_png(model, tmp_path):
    pytest.importorskip("rasterio", reason="needs the extra geo")
    path = tmp_path / "photo.tif"
    Image.fromarray(_pixels()).convert("RGBA").save(path, "PNG")
    predictor = Predictor(model)
    (by_path,), (by_bytes,) = predictor(path), predictor(path.read_bytes())
    assert by_path.probabilities == pytest.approx(by_bytes.probabilities, rel=1e-4)


@pytest.mark.parametrize("has_gdal", [True, False])
def test_tiff_in_memory_without_a_temporary_folder(model, tmp_path, monkeypatch, has_gdal):
    """As in a container whose disk cannot be written. Only GDAL needs a file."""
    content = io.BytesIO()
    Image.fromarray(_pixels()).save(content, "TIFF")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(raster_checks, "has_gdal", lambda: has_gdal)
    predictor = Predictor(model)
    if has_gdal:
        with pytest.raises(InputError, match=mentioning("temporary folder")):
            predictor(content.getvalue())
    else:
        assert predictor(content.getvalue())[0].label


def test_invalid_upload_is_named(model):
    with pytest.raises(InputError, match=r"images\[1\]"):
        Predictor(model)([_pixels(), b"no image"])
    with pytest.raises(InputError, match='"rb"'):
        Predictor(model)(io.StringIO("text"))


def test_iterable_is_read_batch_by_batch(model):
    read = []

    def images():
        for seed in range(5):
            read.append(seed)
            yield _pixels(seed)

    predictor = Predictor(model, batch_size=2)
    predictions = predictor(images())
    assert read == list(range(5))
    assert [prediction.label for prediction in predictions] == [predictor(_pixels(seed))[0].label for seed in range(5)]
    batches = predictor._batches(images())
    next(batches)
    assert read == [*range(5), 0, 1]


def test_frames_of_one_image_have_their_own_predictions(model, tmp_path):
    """Pillow's iterator gives one object, which it moves from frame to frame."""
    frames = [Image.fromarray(_pixels(seed)) for seed in range(4)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    predictor = Predictor(model)
    with Image.open(tmp_path / "stack.tif") as image:
        found = predictor(ImageSequence.Iterator(image))
    assert len(found) == 4
    for prediction, expected in zip(found, predictor(frames), strict=True):
        assert prediction.probabilities == pytest.approx(expected.probabilities, rel=1e-4)
    with Image.open(tmp_path / "stack.tif") as closed:
        pass
    with pytest.raises(InputError, match=r"images\[0\]"):
        predictor([closed])
    frames[0].save(tmp_path / "still.gif")
    with Image.open(tmp_path / "still.gif") as loaded:
        loaded.load()
    assert predictor([loaded])[0].label == predictor([tmp_path / "still.gif"])[0].label


def test_embeddings_are_the_input_of_the_classifier(model):
    predictor = Predictor(model, batch_size=2)
    pixels = [_pixels(seed) for seed in range(3)]
    embeddings = predictor.embed(pixels)
    assert embeddings.shape == (3, 16)
    probabilities = predictor.network.classifier(embeddings).softmax(1)
    for row, prediction in zip(probabilities.tolist(), predictor(pixels), strict=True):
        assert row == pytest.approx(list(prediction.probabilities.values()), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_network_of_another_number_format_predicts(dtype):
    expected, network = Predictor(tiny_network()), tiny_network().to(dtype)
    (found,), vectors = Predictor(network)(_pixels()), Predictor(network).embed(_pixels())
    assert found.probabilities == pytest.approx(expected(_pixels())[0].probabilities, abs=0.02)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors, expected.embed(_pixels()), atol=0.05)


def test_module_may_have_parameters_of_other_number_formats():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(np.log(10.0)))  # float64, of one number
            self.stem, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.scale.exp() * self.stem(images).mean(dim=(2, 3)))

    (found,) = Predictor(create(Scaled()))(_pixels(side=32))
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_weights_of_a_network_in_training_keep_their_layout():
    """A fused optimizer needs the layout that its state has."""
    network = tiny_network()
    before = [weight.stride() for weight in network.parameters()]
    Predictor(network)(_pixels())
    assert [weight.stride() for weight in network.parameters()] == before


def test_repr_has_file_classes_size_and_device(model):
    predictor = Predictor(model, device="cpu")
    assert predictor.classes == NAMES
    assert predictor.preprocessing == PREPROCESSING
    for fact in (str(model), "3 classes", "16 px", "cpu"):
        assert fact in repr(predictor)
    nameless = Predictor(EfficientNet(SMALL, num_classes=2))
    assert nameless.classes == tuple(nameless(_pixels())[0].probabilities) == ("0", "1")


@pytest.mark.parametrize("crop_mode", ["squash", "center", "border"])
def test_preprocessing_converts_an_image_to_the_model_input(tmp_path, crop_mode):
    model = EfficientNet(SMALL, num_classes=3)
    model.preprocessing = Preprocessing(image_size=16, crop_mode=crop_mode, mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
    Image.fromarray(_pixels(side=40)[:30]).save(tmp_path / "a.png")
    batch = model.preprocessing(tmp_path / "a.png")[None]
    assert batch.shape == (1, 3, 16, 16)
    assert batch.dtype == torch.float32
    with torch.no_grad():
        probabilities = model.eval()(batch).softmax(1)[0]
    (prediction,) = Predictor(model, device="cpu")((tmp_path / "a.png").read_bytes())
    assert list(prediction.probabilities.values()) == pytest.approx(probabilities.tolist(), rel=1e-4)
    with pytest.raises(InputError, match=r"nowhere\.jpg"):
        model.preprocessing("nowhere.jpg")


@pytest.mark.parametrize(
    ("device", "says"), [("gpu", "gpu.*cuda"), ("cuda:99", "cuda:99"), (torch.device("cuda:99"), "cuda:99")]
)
def test_missing_device_is_rejected(model, device, says):
    with pytest.raises(InputError, match=says):
        Predictor(model, device=device)


def test_gpu_is_the_default_device_if_available(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Predictor(model).device == torch.device("cuda")


@pytest.mark.parametrize("no_model", [None, 3, torch.nn.Linear(2, 2)])
def test_non_model_object_is_rejected(no_model):
    with pytest.raises(InputError, match=type(no_model).__name__):
        Predictor(no_model)


def test_order_is_kept_over_batches_and_sizes(model):
    images = [_pixels(seed, side=16 + 5 * seed) for seed in range(5)]
    together = Predictor(model.parent, batch_size=2)(images)
    alone = [Predictor(model)(picture)[0] for picture in images]
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)
    assert len({round(one.probability, 6) for one in alone}) > 1


def test_arrays_may_have_four_dimensions_or_be_gray(model):
    predictor = Predictor(model)
    stack = np.stack([_pixels(0), _pixels(1)])
    assert [a.label for a in predictor(stack)] == [predictor(one)[0].label for one in stack]
    gray = stack[0, :, :, 0]
    colored = predictor(np.stack([gray] * 3, axis=2))[0]
    assert predictor(gray)[0].probabilities == pytest.approx(colored.probabilities, rel=1e-4)
    assert predictor([]) == []


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.zeros((16, 16, 3), np.float32), ("float32", "16", "3", "255")),
        (np.zeros((3, 16, 16), np.uint8), ("3", "16")),
        (np.zeros((0, 4, 3), np.uint8), ("not an image",)),
        ([3], ("type int is n",)),
        ({"a": "a.jpg"}, ("type dict is n",)),
        (None, ("NoneType", "image")),
        (3, ("type int is n",)),
        ("nowhere.jpg", ("nowhere.jpg", "0")),
    ],
)
def test_non_image_object_is_named(model, picture, says):
    with pytest.raises(InputError, match=mentioning(*says)):
        Predictor(model)(picture)


def test_broken_file_is_named_with_its_number(model, tmp_path):
    (tmp_path / "b.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"b\.jpg.*images\[1\]"):
        Predictor(model, batch_size=1)([_pixels(), tmp_path / "b.jpg"])


def test_model_of_five_channels_without_bands_is_rejected(tmp_path):
    model = EfficientNet(SMALL, num_classes=3, in_channels=5)
    five = Preprocessing(image_size=16, mean=(0.5,) * 5, std=(0.2,) * 5)
    path = tmp_path / "five.safetensors"
    model_file.save(path, model, preprocessing=five, class_names=NAMES, recipe={}, metrics={})
    with pytest.raises(InputError, match="5 channels"):
        Predictor(path)


def test_rasters_with_many_bits_need_a_model_with_bands(model, tmp_path, monkeypatch):
    """Pillow keeps only the upper 8 of 16 bits. Without the extra geo, images are read by Pillow."""
    pytest.importorskip("rasterio", reason="needs the extra geo")
    from tests.rasters import write_raster  # imports rasterio

    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((16, 16), 3_000, np.uint16)).save(path)
    with pytest.raises(InputError, match=mentioning("deep.tif", "uint16", "gdal_translate", "1")):
        Predictor(model)(path)
    unnamed = write_raster(tmp_path / "unnamed.tif", np.full((3, 16, 16), 99, np.uint8), photometric="MINISBLACK")
    (prediction,), (expected,) = Predictor(model)(unnamed), Predictor(model)(np.full((16, 16, 3), 99, np.uint8))
    assert prediction.probabilities == expected.probabilities, "8 bits that Pillow can't open"
    gray = Image.new("L", (16, 16), 3_000 >> 8)
    gray.save(tmp_path / "plain.tif")
    assert len(Predictor(model)(tmp_path / "plain.tif")) == 1
    monkeypatch.setattr("efficientnetv2.data.raster_checks.has_gdal", lambda: False)
    (prediction,), (expected,) = Predictor(model)(path), Predictor(model)(gray)
    assert prediction.probabilities == expected.probabilities


def _by_rule(*numbers, low=1_000.0, high=5_000.0, kinds=("uint16",), nodata=()):
    """A predictor of a model of rasters with 16 bits."""
    count = len(numbers)
    model = EfficientNet(SMALL, num_classes=3, in_channels=count)
    rule = Bands(numbers, low=(low,) * count, high=(high,) * count, kinds=kinds, nodata=nodata)
    model.preprocessing = Preprocessing(image_size=16, mean=(0.5,) * count, std=(0.2,) * count, bands=rule)
    return Predictor(model)


def _levels(predictor, image):
    return _load(image, predictor.preprocessing)


def test_16_bit_image_and_its_file_are_read_equally(model, tmp_path):
    pytest.importorskip("rasterio", reason="needs the extra geo")
    path = tmp_path / "deep.tif"
    values = np.random.default_rng(0).integers(0, 6_000, (16, 16), dtype=np.uint16)
    Image.fromarray(values).save(path)
    predictor = _by_rule(1, 1, 1)
    expected = _levels(predictor, path)
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(_levels(predictor, Image.open(path)), expected)
    np.testing.assert_array_equal(_levels(predictor, np.stack([values] * 3, axis=2)), expected)
    for unfit in (Predictor(model), _by_rule(1, 2, 3), _by_rule(1, 2, 3, 4)):
        with pytest.raises(InputError) as by_path:
            unfit(path)
        with pytest.raises(InputError) as by_image:
            unfit(Image.open(path))
        assert str(by_image.value) == str(by_path.value)
    with pytest.raises(InputError, match=mentioning("float32", "1000", "5000")):
        predictor(Image.fromarray(values.astype(np.float32) / 6_000))
    with pytest.raises(InputError, match=mentioning("float64")):
        predictor(np.stack([values / 6_000] * 3, axis=2))


def test_8_bit_array_and_its_file_are_read_equally_by_mixed_bands(tmp_path):
    """The model was trained on rasters of 8 and 16 bits. With 16 bits only, the array is an ordinary image."""
    pytest.importorskip("rasterio", reason="needs the extra geo")
    from tests.rasters import write_raster  # imports rasterio

    pixels = _pixels()
    path = write_raster(tmp_path / "eight.tif", pixels.transpose(2, 0, 1))
    predictor = _by_rule(1, 2, 3, low=10.0, kinds=("uint16", "uint8"))
    expected = _levels(predictor, path)
    assert 5 < len(np.unique(expected)) < 20
    np.testing.assert_array_equal(_levels(predictor, pixels), expected)
    np.testing.assert_array_equal(_levels(_by_rule(1, 2, 3), pixels), pixels)


def test_nodata_counts_in_8_bit_arrays_as_in_their_files(tmp_path):
    pytest.importorskip("rasterio", reason="needs the extra geo")
    from tests.rasters import write_raster  # imports rasterio

    pixels = _pixels()
    pixels[:4] = 255
    path = write_raster(tmp_path / "margin.tif", pixels.transpose(2, 0, 1))
    predictor = _by_rule(1, 2, 3, low=0.0, high=255.0, kinds=("uint8",), nodata=(255.0,))
    np.testing.assert_array_equal(_levels(predictor, pixels), _levels(predictor, path))


def test_16_bit_png_and_its_pil_image_are_read_equally(model, tmp_path):
    values = np.random.default_rng(0).integers(0, 65_536, (16, 16), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    predictor = Predictor(model)
    by_path, by_image = (_levels(predictor, one(tmp_path / "deep.png")) for one in (str, Image.open))
    np.testing.assert_array_equal(by_image, by_path)


def test_16_bit_images_of_other_formats_are_rejected_by_raster_models(tmp_path):
    """Pillow keeps only the upper 8 bits, which would be nearly black in the value range of the bands."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((16, 16), 3_000, np.uint16)).save(path)
    predictor = _by_rule(1, 1, 1)
    with Image.open(path) as opened:
        for picture in (path, str(path), opened):
            with pytest.raises(InputError, match=mentioning("deep.png", "8", "GeoTIFFs")):
                predictor(picture)
    eight = Image.fromarray(np.full((16, 16), 200, np.uint8))
    eight.save(tmp_path / "gray.png")
    by_path, by_image = (_levels(predictor, one) for one in (tmp_path / "gray.png", eight))
    np.testing.assert_array_equal(by_path, by_image)


@pytest.mark.parametrize("at_once", [0, -1])
def test_batch_size_below_one_is_rejected(model, at_once):
    with pytest.raises(InputError, match=mentioning(at_once, "batch_size", "1")):
        Predictor(model, batch_size=at_once)


def test_8_bit_array_and_file_are_rejected_by_16_bit_raster_models(tmp_path):
    pytest.importorskip("rasterio", reason="needs the extra geo")
    from tests.rasters import write_raster  # imports rasterio

    values = np.random.default_rng(0).integers(0, 200, (16, 16, 4)).astype(np.uint8)
    path = write_raster(tmp_path / "other.tif", values.transpose(2, 0, 1))
    predictor = _by_rule(1, 2, 3, 4)
    for image in (path, values):
        with pytest.raises(InputError, match=mentioning("uint8", "uint16", "1000", "5000")):
            predictor(image)
    assert len(predictor(values.astype(np.uint16))) == 1


def test_float_array_may_mark_missing_values_of_integer_rasters():
    pytest.importorskip("rasterio", reason="needs the extra geo")
    values = np.random.default_rng(0).integers(0, 6000, (16, 16, 4))
    predictor = _by_rule(1, 2, 3, 4)
    np.testing.assert_array_equal(*(_levels(predictor, values.astype(dtype)) for dtype in (np.uint16, np.float32)))
    holed = values.astype(np.float32)
    holed[:8] = np.nan
    assert len(predictor(holed)) == 1


def test_repeated_pil_image_is_loaded_by_one_thread_at_a_time(model, tmp_path, monkeypatch):
    Image.fromarray(_pixels()).save(tmp_path / "a.png")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    loading, most = [], []
    with Image.open(tmp_path / "a.png") as image:
        load = image.load

        def slow():
            loading.append(1)
            most.append(len(loading))
            time.sleep(0.01)
            try:
                return load()
            finally:
                loading.pop()

        monkeypatch.setattr(image, "load", slow)
        found = Predictor(model)([image] * 8)
    assert max(most) == 1
    (expected,) = Predictor(model)(tmp_path / "a.png")
    for one in found:
        assert one.probabilities == pytest.approx(expected.probabilities, rel=1e-4)
