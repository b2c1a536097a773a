"""Batch prediction: logits in order, in evaluation mode, equal to a plain PyTorch forward pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.messages import mentioning
from torch import nn

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.inference.predict import (
    Predictions,
    Runtime,
    embed_dataset,
    eval_mode,
    merge_shards,
    predict,
    predict_dataset,
)
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.ensemble import Ensemble
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.transforms.geometric import symmetry
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError, MemoryShortError

SMALL = Architecture(
    stem_channels=8, stages=(Stage(fused_mbconv(expand=2, kernel=3), stride=2, channels=8, layers=2),), head_channels=16
)
PREPROCESSING = Preprocessing(image_size=16, mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))


def _model():
    torch.manual_seed(0)
    return EfficientNet(SMALL, num_classes=3, dropout=0.5, drop_path=0.5)


def _images(n):
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_logits_equal_the_plain_forward_pass_for_any_batches():
    model, images = _model(), _images(7)
    logits = predict(model, images.split(3), preprocessing=PREPROCESSING)
    mean, std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    with torch.no_grad():
        expected = _model().eval()((images / 255 - mean) / std)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 100 * 1e-4  # otherwise the tolerance above would hide differences


def test_model_without_classes_is_rejected():
    with pytest.raises(InputError, match=mentioning("classifier", "weights")):
        predict(EfficientNet(SMALL, num_classes=0), [_images(2)], preprocessing=PREPROCESSING)


@pytest.mark.parametrize("tta", ["none", "d4"])
@pytest.mark.parametrize("poison", ["variance", "overflow"])
def test_non_finite_predictions_are_rejected_immediately(poison, tta):
    """The square root of a negative variance is NaN. 3e38 times 3e38 overflows float32."""
    model = _model()
    if poison == "variance":
        model.stem.norm.running_var.neg_()
    else:
        nn.init.constant_(model.stem.norm.weight, 3e38)
        nn.init.constant_(model.head.norm.weight, 3e38)
    preprocessing, seen = replace(PREPROCESSING, tta=tta), []
    with pytest.raises(InputError, match=mentioning("4", "0", "NaN")):
        predict(model, _images(12).split(4), preprocessing=preprocessing, progress=seen.append)
    assert not seen


def test_image_with_a_non_finite_prediction_is_counted_over_batches():
    model = _model()
    images = _images(7)
    images[5] = 0  # black: below the mean everywhere
    model.register_forward_hook(
        lambda module, inputs, output: output.masked_fill((inputs[0].amax((1, 2, 3)) < 0)[:, None], float("inf"))
    )
    with pytest.raises(InputError, match=mentioning("1", "6", "5")):
        predict(model, images.split(3), preprocessing=PREPROCESSING)


def test_training_mode_is_restored():
    """Also with a frozen stem: weights still get gradients, and frozen parts stay frozen."""
    model = _model().train()
    model.stem.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict(model, [_images(2)], preprocessing=PREPROCESSING)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model(torch.zeros(2, 3, 16, 16)).sum().backward()
    assert model.classifier.bias.grad is not None


def test_mode_is_restored_after_an_error():
    layer, seen = nn.Dropout(), []

    def fails():
        with eval_mode(layer):
            seen.append(layer.training)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert (seen, layer.training) == ([False], True)


def test_progress_counts_images():
    done = []
    predict(_model(), _images(5).split(2), preprocessing=PREPROCESSING, progress=done.append)
    assert done == [2, 4, 5]


def test_no_images_give_empty_logits():
    assert predict(_model(), [], preprocessing=PREPROCESSING).shape == (0, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_and_cpu_logits_are_equal():
    images = _images(4)
    on_cpu = predict(_model(), [images], preprocessing=PREPROCESSING)
    on_gpu = predict(_model(), [images], preprocessing=PREPROCESSING, device="cuda")
    assert on_gpu.device.type == "cpu"
    torch.testing.assert_close(on_gpu, on_cpu, rtol=2e-2, atol=2e-2)  # convolutions in TF32


def _limited_memory(network, most):
    """The model on a simulated machine with memory for ``most`` images per pass, and the sizes of all passes."""
    passes = []

    def count(module, inputs):
        passes.append(len(inputs[0]))
        if passes[-1] > most:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    network.register_forward_pre_hook(count)
    return network, passes


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_out_of_memory_reduces_the_batch_with_equal_predictions(tmp_path, tta):
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "ab"[number % 2] / f"{number:02d}.png")
    dataset, preprocessing = load_dataset(tmp_path), replace(PREPROCESSING, tta=tta)
    expected = predict_dataset(_model(), dataset, preprocessing=preprocessing, batch_size=20)
    model, passes = _limited_memory(_model(), 8)
    found = predict_dataset(model, dataset, preprocessing=preprocessing, batch_size=20)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert found.samples.tolist() == list(range(30))
    each = 1 if tta == "none" else 8
    assert passes == [20, 10, *[5] * (6 * each)], "and does not try again what did not fit"


def test_too_little_memory_for_one_image_is_an_error():
    model, passes = _limited_memory(_model(), 0)
    with pytest.raises(MemoryShortError, match=mentioning("16", "smaller images")):
        predict(model, [_images(5)], preprocessing=PREPROCESSING)
    assert passes == [5, 2, 1]


def test_other_errors_are_raised_unchanged():
    model = _model()
    model.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(model, [_images(5)], preprocessing=PREPROCESSING)


@pytest.mark.parametrize("workers", [0, 1])
def test_dataset_predictions_keep_the_order_without_unreadable_images(tmp_path, workers):
    generator = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "odd" / "1.png").write_bytes(b"no picture")
    dataset = load_dataset(tmp_path)
    broken = next(i for i in range(6) if str(dataset.file(i)).endswith("1.png"))
    found = predict_dataset(
        _model(), dataset, preprocessing=PREPROCESSING, runtime=Runtime(workers=workers), batch_size=2
    )
    readable = [i for i in range(6) if i != broken]
    assert found.samples.tolist() == readable
    assert found.labels.tolist() == dataset.labels[readable].tolist()
    assert [place for place, _ in found.unreadable] == [broken]
    images = torch.stack([torch.from_numpy(np.array(Image.open(dataset.file(i)))) for i in readable])
    alone = predict(_model(), [images.permute(0, 3, 1, 2)], preprocessing=PREPROCESSING)
    torch.testing.assert_close(found.logits, alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.probabilities, alone.softmax(1), rtol=1e-3)


def test_dataset_predictions_are_in_memory_once(class_folders, monkeypatch):
    """Each batch is written in place. Concatenating 5 GB of vectors at the end would take 10 GB after hours of work."""
    dataset, joined, join = load_dataset(class_folders), [], torch.cat

    def spy(parts, *words, **named):
        whole = join(parts, *words, **named)
        joined.append(tuple(whole.shape))
        return whole

    monkeypatch.setattr(torch, "cat", spy)
    words = {"preprocessing": PREPROCESSING, "batch_size": 5}
    logits = predict_dataset(_model(), dataset, **words).logits
    vectors = embed_dataset(_model(), dataset, **words).vectors
    assert (tuple(logits.shape), vectors.shape) == ((48, 3), (48, 16))
    assert {(5, 3), (5, 16)} <= set(joined), "of what a batch came to"
    assert not {(48, 3), (48, 16)} & set(joined)


def test_d4_tta_is_the_mean_over_all_rotations_and_flips_of_pil():
    model, images = _model(), _images(3)
    seen = predict(model, [images], preprocessing=replace(PREPROCESSING, tta="d4"))
    turns = [None, *Image.Transpose]
    assert len(turns) == 8
    total = 0
    for turn in turns:
        arrays = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        turned = np.stack([np.asarray(one if turn is None else one.transpose(turn)) for one in arrays])
        batch = torch.from_numpy(turned).permute(0, 3, 1, 2)
        total = total + predict(model, [batch], preprocessing=PREPROCESSING).softmax(1)
    torch.testing.assert_close(seen.softmax(1), total / 8, rtol=1e-4, atol=1e-5)
    once = predict(model, [images], preprocessing=PREPROCESSING).softmax(1)
    assert (seen.softmax(1) - once).abs().max() > 0.005  # a hundred times the tolerance above


def test_d4_tta_is_invariant_to_rotation():
    model, images = _model(), _images(4)
    tta = replace(PREPROCESSING, tta="d4")
    one, other = (predict(model, [batch], preprocessing=tta) for batch in (images, images.rot90(1, (2, 3))))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_temperature_applies_to_the_mean_over_tta_also_in_an_ensemble():
    """It was fitted to this mean. Single transforms would need another temperature."""
    model, images = _model(), _images(6)
    model.classifier.weight.data *= 20  # so that transforms differ
    model.calibration = Calibration(temperature=2.5, num_images=60, fitted_on="minival")
    options = {"preprocessing": replace(PREPROCESSING, tta="d4")}
    alone = predict(model, [images], **options).softmax(dim=1)
    torch.testing.assert_close(predict(Ensemble([model]), [images], **options).softmax(dim=1), alone)
    other = _model()
    both = predict(Ensemble([model, other]), [images], **options).softmax(dim=1)
    torch.testing.assert_close(both, (alone + predict(other, [images], **options).softmax(dim=1)) / 2)


def test_d4_tta_of_sigmoid_models_is_the_mean_of_probabilities():
    model, images = _model(), _images(3)
    model.activation = "sigmoid"
    each = [predict(model, [symmetry(images, index)], preprocessing=PREPROCESSING).sigmoid() for index in range(8)]
    together = predict(model, [images], preprocessing=replace(PREPROCESSING, tta="d4")).sigmoid()
    torch.testing.assert_close(together, torch.stack(each).mean(dim=0), atol=1e-5, rtol=0)


def test_shards_are_merged_in_dataset_order():
    every = torch.arange(21.0).reshape(7, 3)
    rows = [np.array([0, 2]), np.array([0, 1]), np.array([0, 1])]  # of 0, 3, 6; 1, 4; 2, 5: image 3 was unreadable
    parts = [
        Predictions(own, own * 3 + rank, every[own * 3 + rank], ((1, "is damaged"),) if rank == 0 else ())
        for rank, own in enumerate(rows)
    ]
    whole = merge_shards(parts, 3)
    assert whole.samples.tolist() == whole.labels.tolist() == [0, 1, 2, 4, 5, 6]
    assert torch.equal(whole.logits, every[[0, 1, 2, 4, 5, 6]])
    assert whole.unreadable == ((3, "is damaged"),)
    assert merge_shards(parts[:1], 3) is parts[0]
    assert merge_shards([], 3).logits.shape == (0, 3)


def test_scores_of_unknown_images_are_merged_in_dataset_order():
    own, logits = np.arange(2), torch.zeros(2, 3)
    parts = [
        Predictions(own, own, logits, unknown_scores=torch.tensor([first, first + 2])) for first in (0.0, 1.0)
    ]  # of 0 and 2, and of 1 and 3
    assert merge_shards(parts, 3).unknown_scores.tolist() == [0, 1, 2, 3]


class CachesInEvaluation(nn.Module):
    """As attention biases in timm's tiny_vit: forgotten when training begins."""

    def __init__(self):
        super().__init__()
        self.weight, self.cache = nn.Parameter(torch.ones(())), None

    def train(self, mode=True):
        if mode:
            self.cache = None
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return x * self.weight
        self.cache = self.weight.detach().clone() if self.cache is None else self.cache
        return x * self.cache


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_uses_no_cached_weights(training):
    """Also those of averaged weights, which stay in evaluation mode."""
    network = nn.Sequential(CachesInEvaluation()).train(training)
    for weight in (1.0, 3.0):
        with torch.no_grad():
            network[0].weight.fill_(weight)
        with eval_mode(network):
            assert float(network(torch.ones(()))) == weight
        assert network.training == network[0].training == training
    assert (network[0].cache is None) == training


def test_each_process_reports_the_rows_of_the_whole_dataset(class_folders, monkeypatch):
    """A checkpoint saves them: rows of a part would give the labels of other images."""
    monkeypatch.setattr("efficientnetv2.inference.predict.gather_to_main", lambda world, shard: [shard])
    dataset = load_dataset(class_folders)
    saved = torch.full((len(dataset), 3), torch.nan)
    expected = predict_dataset(_model(), dataset, preprocessing=PREPROCESSING).logits
    for rank in range(2):
        predict_dataset(
            _model(), dataset, preprocessing=PREPROCESSING, runtime=Runtime(world=World(rank=rank, size=2)),
            batch_size=5, on_batch=lambda rows, logits: saved.index_copy_(0, torch.from_numpy(rows), logits),
        )  # fmt: skip
    torch.testing.assert_close(saved, expected, rtol=1e-4, atol=1e-4)


def test_merged_shards_of_a_sigmoid_model_stay_sigmoid():
    """Softmax would make the probabilities of independent labels share 1."""
    own = np.arange(2)
    parts = [Predictions(own, own, torch.full((2, 3), 2.0 * rank), activation="sigmoid") for rank in range(2)]
    whole = merge_shards(parts, 3)
    assert whole.activation == "sigmoid"
    expected = torch.tensor([0.0, 2.0, 0.0, 2.0]).sigmoid()[:, None].expand(4, 3)
    np.testing.assert_allclose(whole.probabilities, expected, rtol=1e-6)
