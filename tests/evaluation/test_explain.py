"""Grad-CAM follows the formula of the paper and points at the deciding region; reports show its maps."""

from __future__ import annotations

import json
import os
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from tests.command_line import effnetv2
from tests.messages import mentioning, mentions
from tests.rasters import write_raster
from torch import nn
from torch.nn import functional

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation import evaluation_result, explain, report
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.explain import (
    explain_folds,
    explain_predictions,
    gallery_section,
    grad_cam,
    overlay_heatmap,
    select_galleries,
    supports_grad_cam,
)
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models import model_file
from efficientnetv2.models.blocks import init_weights
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.errors import InputError

PX, CUE_PX = 64, 14
TINY = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1),
        Stage(fused_mbconv(expand=2, kernel=3), 2, 16, 1),
        Stage(fused_mbconv(expand=2, kernel=3), 2, 24, 1),
    ),
    head_channels=32,
)


def with_cue(count, seed):
    """Noise with one red or green square; the color is the class."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 180, (count, PX, PX, 3)).astype(np.uint8)
    classes = np.arange(count) % 2
    corners = rng.integers(4, PX - CUE_PX - 4, (count, 2))
    for image, label, (top, left) in zip(images, classes, corners, strict=True):
        image[top : top + CUE_PX, left : left + CUE_PX] = (230, 20, 20) if label == 0 else (20, 230, 20)
    return images, classes.astype(np.int64), corners


def model_inputs(model, images):
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return normalize(batch, mean=model.preprocessing.mean, std=model.preprocessing.std)


@pytest.fixture(scope="module")
def trained():
    """A model trained to separate red from green squares."""
    torch.manual_seed(0)
    model = EfficientNet(TINY, num_classes=2)
    images, classes, _ = with_cue(64, seed=0)
    inputs, targets = model_inputs(model, images), torch.from_numpy(classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    for module in model.modules():  # batch statistics of the final weights
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model(inputs)
    return model.eval()


def hits(maps, corners):
    """Fraction of maps with the maximum on the square or within one cell of the map (8 px)."""
    found = 0
    for heat, corner in zip(maps, corners, strict=True):
        peak = np.array(np.unravel_index(heat.argmax(), heat.shape))
        found += bool(((peak >= corner - 8) & (peak < corner + CUE_PX + 8)).all())
    return found / len(maps)


def randomized(model, seed):
    torch.manual_seed(seed)
    copy = EfficientNet(TINY, num_classes=2)
    copy.load_state_dict(model.state_dict())
    init_weights(copy)
    return copy.eval()


def test_map_points_at_the_cue(trained):
    images, classes, corners = with_cue(40, seed=1)
    with torch.no_grad():
        assert (trained(model_inputs(trained, images)).argmax(dim=1).numpy() == classes).mean() > 0.95
    maps = grad_cam(trained, images, classes)
    assert maps.shape == (40, PX, PX)
    assert hits(maps, corners) >= 0.9


def test_random_weights_give_another_map(trained):
    """Adebayo et al. (2018): a map that random weights also give shows edges, not learned features."""
    images, classes, corners = with_cue(40, seed=1)
    maps_trained = grad_cam(trained, images, classes)
    random = [grad_cam(randomized(trained, seed), images, classes) for seed in range(12)]
    similarity = [
        abs(spearmanr(a.ravel(), b.ravel()).statistic)
        for maps in random
        for a, b in zip(maps_trained, maps, strict=True)
        if b.any()
    ]
    assert np.mean(similarity) < 0.5
    # One random model hits 0.2 to 0.9 of the cues by chance, so the mean over models is compared.
    assert np.mean([hits(maps, corners) for maps in random]) < 0.7 < hits(maps_trained, corners)


def test_grad_cam_is_the_formula_of_the_paper(trained):
    """Channels are weighted by the mean gradient of the class logit; negative values are set to 0."""
    images, classes, _ = with_cue(3, seed=2)
    features = []
    hook = trained.head.register_forward_hook(lambda _, __, out: features.append(out))
    logits = trained(model_inputs(trained, images))
    hook.remove()
    (gradients,) = torch.autograd.grad(logits[torch.arange(3), torch.from_numpy(classes)].sum(), features[0])
    raw = (gradients.mean(dim=(2, 3), keepdim=True) * features[0]).sum(dim=1, keepdim=True).relu()
    upsampled = functional.interpolate(raw, (PX, PX), mode="bilinear", align_corners=False)[:, 0]
    expected = (upsampled / upsampled.amax(dim=(1, 2), keepdim=True)).detach().numpy()
    assert grad_cam(trained, images, classes) == pytest.approx(expected, abs=1e-5)


def test_every_stage_has_a_map_and_the_model_is_unchanged(trained):
    images, classes, _ = with_cue(10, seed=3)
    trained.train()
    trained.blocks[0].eval()
    before = [module.training for module in trained.modules()]
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in trained.parameters()]
    assert any(gradient is not None for gradient in gradients), "of the last training step"
    maps = [grad_cam(trained, images, classes, stage=stage) for stage in (1, 2, 3)]
    assert [module.training for module in trained.modules()] == before
    trained.eval()
    assert all(((heat >= 0) & (heat <= 1)).all() for heat in maps)
    assert not np.allclose(maps[0], maps[2])
    for parameter, gradient in zip(trained.parameters(), gradients, strict=True):
        assert parameter.grad is None if gradient is None else torch.equal(parameter.grad, gradient)
    assert grad_cam(trained, images[:0], classes[:0]).shape == (0, PX, PX)
    with pytest.raises(InputError, match="must be 1 to 3"):
        grad_cam(trained, images, classes, stage=4)


def test_only_layers_after_the_stage_save_tensors_for_gradients(trained):
    """Maps are 8 px there. Saving the tensors of the full model would take many times the memory."""
    images, classes, _ = with_cue(3, seed=4)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    trained.stem.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        grad_cam(trained, images, classes)
    assert saved
    assert max(tensor.shape[-1] for tensor in saved if tensor.ndim == 4) == 8
    assert {
        name.partition(".")[0] for name, parameter in trained.named_parameters() if not parameter.requires_grad
    } == {"stem"}
    trained.stem.requires_grad_(True)


def test_out_of_memory_halves_the_batch(trained):
    images, classes, _ = with_cue(11, seed=5)
    expected, sizes = grad_cam(trained, images, classes), []

    def raise_above_3(module, inputs):
        sizes.append(len(inputs[0]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    hook = trained.register_forward_pre_hook(raise_above_3)
    try:
        assert grad_cam(trained, images, classes) == pytest.approx(expected, abs=1e-5)
    finally:
        hook.remove()
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]


def test_model_without_classifier_is_rejected():
    model = EfficientNet(TINY, num_classes=0)
    assert not supports_grad_cam(model)
    with pytest.raises(InputError, match="with a classifier"):
        grad_cam(model, np.zeros((1, PX, PX, 3), np.uint8), np.zeros(1, np.int64))


def test_overlay_is_gray_at_zero_and_colored_at_the_maximum():
    image = np.full((4, 4, 3), (10, 120, 60), np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    mixed = overlay_heatmap(image, heat)
    assert (mixed[1] == mixed[1, 0, 0]).all()
    assert np.ptp(mixed[0, 0].astype(int)) > 50


NAMES = ("forest", "pasture", "<maize>")
LABELS = np.array([0, 0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [
        [0.9, 0.1, 0.0],
        [0.2, 0.8, 0.0],  # forest predicted as pasture
        [0.3, 0.7, 0.0],  # the same
        [0.4, 0.3, 0.3],  # correct with the lowest probability
        [0.6, 0.4, 0.0],  # pasture predicted as forest
        [0.0, 1.0, 0.0],
        [0.99, 0.01, 0.0],  # maize predicted as forest: lowest probability of the label
    ]
)


def test_galleries_of_a_small_example():
    pairs, other, third, least_confident, least_probable = select_galleries(LABELS, PROBABILITIES, NAMES)
    assert (pairs[0], pairs[1].tolist()) == ("forest, predicted as pasture", [1, 2])
    assert {title for title, _ in (other, third)} == {"pasture, predicted as forest", "<maize>, predicted as forest"}
    assert least_confident[1][0] == 3
    assert least_probable[1].tolist()[:2] == [6, 1]


def test_model_without_errors_has_no_confusion_galleries():
    galleries = select_galleries(np.array([0, 1]), np.eye(2), NAMES[:2])
    assert [title.split(":")[0] for title, _ in galleries] == ["Least confident", "Least probable labels"]


def test_names_are_escaped_and_each_image_has_its_map():
    heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    part = gallery_section(
        select_galleries(LABELS, PROBABILITIES, NAMES), LABELS, PROBABILITIES, NAMES, [f"{n}.jpg" for n in range(7)],
        {place: (np.zeros((4, 4, 3), np.uint8), heat) for place in range(1, 7)},
    )  # fmt: skip
    page = render(part.template, part=part)
    assert "<maize>" not in page
    assert "&lt;maize&gt;, predicted as forest" in page
    images = sum(len(images) for _, images in part.galleries)
    unmapped = sum(image["path"] == "0.jpg" for _, images in part.galleries for image in images)
    assert page.count("data:image/jpeg") == 2 * (images - unmapped)
    assert part.data["galleries"][0]["paths"] == ["1.jpg", "2.jpg"]


def test_report_has_galleries_with_maps_and_is_small(class_folders):
    torch.manual_seed(0)
    path = class_folders.parent / "model.safetensors"
    model = create("efficientnetv2_b0", num_classes=3)
    model_file.save(path, model, class_names=("blue", "green", "red"))
    done = effnetv2(
        "evaluate", path, class_folders, "--image-size", "64", "--device", "cpu", "--output", "evaluation",
        cwd=class_folders.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = class_folders.parent / "evaluation" / "report.html"
    text = page.read_text()
    assert mentions(text, "Grad-CAM")
    assert text.count('alt="Grad-CAM"') >= 16
    assert page.stat().st_size < 5_000_000
    saved = json.loads((class_folders.parent / "evaluation" / "report.json").read_text())
    assert saved["galleries"][-1]["title"] == "Least probable labels"
    assert len(saved["galleries"][-1]["paths"]) == 8


@pytest.fixture
def mislabeled(tmp_path):
    """Two large images with swapped labels."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (3000, 1500), "red").save(tmp_path / name)
    pd.DataFrame({"path": ["a.png", "b.png"], "label": ["oak", "elm"]}).to_csv(tmp_path / "two.csv", index=False)
    dataset = load_dataset(str(tmp_path / "two.csv"))
    return dataset, Predictions(np.arange(2), dataset.labels, torch.tensor([[9.0, 0.0], [0.0, 9.0]]))


def test_thumbnails_of_errors_are_320_px_at_most(mislabeled, tmp_path, monkeypatch):
    dataset, predictions = mislabeled
    errors = []
    monkeypatch.setattr(report.Report, "write", lambda self, folder: errors.extend(self.errors))
    EvaluationResult(predictions, dataset, dataset.class_names, ReportMetadata("two", "val")).write(tmp_path)
    assert [error.thumbnail.size for error in errors] == [(320, 160)] * 2


def test_predictions_that_are_open_elsewhere_get_another_name(mislabeled, tmp_path, monkeypatch):
    """Excel on Windows lets nobody remove the file. The report is written all the same."""
    dataset, predictions = mislabeled
    result = EvaluationResult(predictions, dataset, dataset.class_names, ReportMetadata("two", "val"))
    result.write(tmp_path)
    (tmp_path / "report.html").write_text("before")
    unlink, os_replace = Path.unlink, os.replace

    def refuse(path):
        if Path(path).name == "predictions.csv":
            raise PermissionError(13, "Access is denied", str(path))

    monkeypatch.setattr(Path, "unlink", lambda path, **given: refuse(path) or unlink(path, **given))
    monkeypatch.setattr(os, "replace", lambda source, target: refuse(target) or os_replace(source, target))
    with pytest.raises(InputError, match=mentioning("predictions_2.csv", "Close it")):
        result.write(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") != "before"
    assert (tmp_path / "predictions_2.csv").read_bytes() == (tmp_path / "predictions.csv").read_bytes()


def test_report_of_a_long_list_of_shards_is_written(mislabeled, tmp_path):
    """Its folder of a dataset check would be longer than a path may be."""
    dataset, predictions = mislabeled
    data = f"shards/{{{','.join(f'train-{number:06d}' for number in range(30))}}}.tar"
    EvaluationResult(predictions, dataset, dataset.class_names, ReportMetadata(data, "val")).write(tmp_path)
    assert (tmp_path / "report.html").exists()


def test_report_without_images_if_the_store_is_unreachable(mislabeled, tmp_path, monkeypatch):
    """Each part of the report makes one request, because a request waits for all its retries."""
    dataset, predictions = mislabeled
    requests = []

    def unreachable(sample):
        requests.append(sample)
        raise InputError("https://far.example does not answer")

    for part, reader in ((evaluation_result, "display_reader"), (explain, "eval_reader")):
        monkeypatch.setattr(part, reader, lambda dataset: SimpleNamespace(source=unreachable))
    (tmp_path / "out").mkdir()
    EvaluationResult(predictions, dataset, dataset.class_names, ReportMetadata("two", "val")).write(tmp_path / "out")
    saved = json.loads((tmp_path / "out/report.json").read_text())
    assert sorted(top_error["path"] for top_error in saved["top_errors"]) == ["a.png", "b.png"]
    assert len(requests) == 1
    sections = explain_predictions(None, predictions, dataset, dataset.class_names, Preprocessing(image_size=16))
    assert [len(gallery["paths"]) for gallery in sections[0].data["galleries"]] == [1, 1, 2, 2]
    assert len(requests) == 2


def test_images_that_only_gdal_opens_are_shown(tmp_path, monkeypatch):
    """Three 8-bit bands without color interpretation, evaluated by an RGB model."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        pixels = np.full((3, 24, 24), 90, np.uint8)
        write_raster(tmp_path / "set" / name / "one.tif", pixels, photometric="MINISBLACK")
    dataset = load_dataset(tmp_path / "set")
    predictions = Predictions(np.arange(2), dataset.labels, torch.tensor([[0.0, 9.0], [9.0, 0.0]]))
    model = create("efficientnetv2_b0", num_classes=2)
    (part,) = explain_predictions(model, predictions, dataset, dataset.class_names, Preprocessing(image_size=32))
    shown = [image for _, images in part.values["galleries"] for image in images]
    assert shown
    assert all(image["address"] is not None for image in shown)
    errors = []
    monkeypatch.setattr(report.Report, "write", lambda self, folder: errors.extend(self.errors))
    EvaluationResult(predictions, dataset, dataset.class_names, ReportMetadata("two", "val")).write(tmp_path)
    assert [error.thumbnail.size for error in errors] == [(24, 24)] * 2


def test_each_fold_shows_rasters_in_its_own_scaling(tmp_path, monkeypatch):
    """All values are 100: 100/250 of the range of one fold and 100/500 of the other."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        write_raster(tmp_path / "set" / name / "one.tif", np.full((3, 12, 12), 100, np.uint16))
    rules = [Bands((1, 2, 3), (0,) * 3, (high,) * 3, kinds=("uint16",)) for high in (250, 500)]
    folds = [SimpleNamespace(preprocessing=Preprocessing(image_size=8, bands=rule)) for rule in rules]
    dataset = replace(load_dataset(tmp_path / "set"), bands=rules[0])
    monkeypatch.setattr(explain, "supports_grad_cam", lambda model: False)
    monkeypatch.setattr(
        explain, "gallery_section", lambda *args, **_: [args[-1][row][0][0, 0].tolist() for row in range(2)]
    )
    predictions = Predictions(np.arange(2), dataset.labels, torch.tensor([[9.0, 0.0], [0.0, 9.0]]))
    (values,) = explain_folds(folds.__getitem__, np.array([0, 1]), predictions, dataset)
    assert values == [[102] * 3, [51] * 3]


def test_one_fold_model_is_in_memory_at_a_time(class_folders, monkeypatch):
    """A fold without shown images is not loaded."""
    alive, loaded = weakref.WeakSet(), []

    class Loaded:
        preprocessing = Preprocessing(image_size=8)

    def load_model(number):
        assert not alive
        model = Loaded()
        alive.add(model)
        loaded.append(number)
        return model

    monkeypatch.setattr(explain, "supports_grad_cam", lambda model: False)
    dataset = load_dataset(class_folders)
    rows = np.array([0, 20, 40])
    predictions = Predictions(rows, dataset.labels[rows], torch.eye(3) * 9)
    explain_folds(load_model, np.array([0, 3, 1]), predictions, dataset)
    assert loaded == [0, 1, 3]


def test_images_are_shown_without_maps_if_memory_is_short(mislabeled):
    """The metrics exist already, so the report must be written."""
    dataset, predictions = mislabeled
    model = create("efficientnetv2_b0", num_classes=2)

    def raise_out_of_memory(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    model.register_forward_pre_hook(raise_out_of_memory)
    (part,) = explain_predictions(model, predictions, dataset, dataset.class_names, Preprocessing(image_size=32))
    shown = [image for _, images in part.values["galleries"] for image in images]
    assert shown
    assert all(image["address"] is not None and image["map"] is None for image in shown)


def test_probabilities_are_computed_for_shown_images_only(mislabeled, monkeypatch):
    """About thirty images of possibly a million."""
    dataset, predictions = mislabeled
    model = create("efficientnetv2_b0", num_classes=2)
    monkeypatch.setattr(Predictions, "probabilities", property(lambda self: pytest.fail("probabilities of all images")))
    examples = explain._examples(model, predictions, dataset, Preprocessing(image_size=32), [1])
    assert examples[1][1].shape == (32, 32)
