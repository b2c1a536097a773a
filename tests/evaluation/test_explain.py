"""Grad-CAM points at what decides and is the paper's formula; reports show where the network looked."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from tests.command_line import effnetv2
from tests.messages import mentions
from tests.rasters import write_raster
from torch import nn
from torch.nn import functional

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation import evaluation_result, explain, report
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.explain import (
    Example,
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
    """Noise with one blot somewhere, red or green: its color is the class."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 180, (count, PX, PX, 3)).astype(np.uint8)
    classes = np.arange(count) % 2
    corners = rng.integers(4, PX - CUE_PX - 4, (count, 2))
    for image, kind, (top, left) in zip(images, classes, corners, strict=True):
        image[top : top + CUE_PX, left : left + CUE_PX] = (230, 20, 20) if kind == 0 else (20, 230, 20)
    return images, classes.astype(np.int64), corners


def inputs_of(network, images):
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return normalize(batch, mean=network.preprocessing.mean, std=network.preprocessing.std)


@pytest.fixture(scope="module")
def taught():
    """A network that tells red blots from green ones."""
    torch.manual_seed(0)
    network = EfficientNet(TINY, num_classes=2)
    images, classes, _ = with_cue(64, seed=0)
    inputs, targets = inputs_of(network, images), torch.from_numpy(classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    for module in network.modules():  # statistics of what the network is now
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        network(inputs)
    return network.eval()


def hits(maps, corners):
    """Share of maps whose highest place lies on the cue, or within one cell of the map (8 px) of it."""
    found = 0
    for heat, corner in zip(maps, corners, strict=True):
        place = np.array(np.unravel_index(heat.argmax(), heat.shape))
        found += bool(((place >= corner - 8) & (place < corner + CUE_PX + 8)).all())
    return found / len(maps)


def randomised(network, seed):
    torch.manual_seed(seed)
    other = EfficientNet(TINY, num_classes=2)
    other.load_state_dict(network.state_dict())
    init_weights(other)
    return other.eval()


def test_the_map_points_at_the_planted_cue(taught):
    images, classes, corners = with_cue(40, seed=1)
    with torch.no_grad():
        assert (taught(inputs_of(taught, images)).argmax(dim=1).numpy() == classes).mean() > 0.95
    maps = grad_cam(taught, images, classes)
    assert maps.shape == (40, PX, PX)
    assert hits(maps, corners) >= 0.9


def test_the_map_is_lost_with_the_weights(taught):
    """Adebayo et al.: a map that random weights give too would show edges, not what was learnt."""
    images, classes, corners = with_cue(40, seed=1)
    learnt = grad_cam(taught, images, classes)
    random = [grad_cam(randomised(taught, seed), images, classes) for seed in range(12)]
    alike = [
        abs(spearmanr(a.ravel(), b.ravel()).statistic)
        for maps in random
        for a, b in zip(learnt, maps, strict=True)
        if b.any()
    ]
    assert np.mean(alike) < 0.5
    # A single draw hits from 0.2 to 0.9 of the cues by chance, for they stand out; so the mean over draws counts.
    assert np.mean([hits(maps, corners) for maps in random]) < 0.7 < hits(learnt, corners)


def test_it_is_the_formula_of_the_paper(taught):
    """Channels weighted by the mean gradient of the class's logit; what is negative is left out."""
    images, classes, _ = with_cue(3, seed=2)
    kept = []
    hook = taught.head.register_forward_hook(lambda _, __, out: kept.append(out))
    logits = taught(inputs_of(taught, images))
    hook.remove()
    (gradients,) = torch.autograd.grad(logits[torch.arange(3), torch.from_numpy(classes)].sum(), kept[0])
    raw = (gradients.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1, keepdim=True).relu()
    large = functional.interpolate(raw, (PX, PX), mode="bilinear", align_corners=False)[:, 0]
    expected = (large / large.amax(dim=(1, 2), keepdim=True)).detach().numpy()
    assert grad_cam(taught, images, classes) == pytest.approx(expected, abs=1e-5)


def test_every_stage_has_its_map_and_the_network_is_left_as_it_was(taught):
    images, classes, _ = with_cue(10, seed=3)
    taught.train()
    taught.blocks[0].eval()
    before = [module.training for module in taught.modules()]
    gradients = [None if one.grad is None else one.grad.clone() for one in taught.parameters()]
    assert any(one is not None for one in gradients), "left by the last step of training"
    maps = [grad_cam(taught, images, classes, stage=stage) for stage in (1, 2, 3)]
    assert [module.training for module in taught.modules()] == before
    taught.eval()
    assert all(((one >= 0) & (one <= 1)).all() for one in maps)
    assert not np.allclose(maps[0], maps[2])
    for parameter, left in zip(taught.parameters(), gradients, strict=True):
        assert parameter.grad is None if left is None else torch.equal(parameter.grad, left)
    assert grad_cam(taught, images[:0], classes[:0]).shape == (0, PX, PX)
    with pytest.raises(InputError, match="must be 1 to 3"):
        grad_cam(taught, images, classes, stage=4)


def test_what_is_kept_for_gradients_begins_at_the_layer_looked_at(taught):
    """Maps of 8 px there. All of the network would be many times the memory of answering."""
    images, classes, _ = with_cue(3, seed=4)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    taught.stem.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        grad_cam(taught, images, classes)
    assert kept
    assert max(tensor.shape[-1] for tensor in kept if tensor.ndim == 4) == 8
    assert {name.partition(".")[0] for name, one in taught.named_parameters() if not one.requires_grad} == {"stem"}
    taught.stem.requires_grad_(True)


def test_where_memory_runs_out_fewer_are_looked_at_at_a_time(taught):
    images, classes, _ = with_cue(11, seed=5)
    whole, sizes = grad_cam(taught, images, classes), []

    def short(module, inputs):
        sizes.append(len(inputs[0]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    hook = taught.register_forward_pre_hook(short)
    try:
        assert grad_cam(taught, images, classes) == pytest.approx(whole, abs=1e-5)
    finally:
        hook.remove()
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]


def test_a_network_without_classes_is_refused():
    network = EfficientNet(TINY, num_classes=0)
    assert not supports_grad_cam(network)
    with pytest.raises(InputError, match="with a classifier"):
        grad_cam(network, np.zeros((1, PX, PX, 3), np.uint8), np.zeros(1, np.int64))


def test_an_overlay_is_gray_where_nothing_speaks_and_colored_where_most_does():
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
        [0.2, 0.8, 0.0],  # forest called pasture
        [0.3, 0.7, 0.0],  # again
        [0.4, 0.3, 0.3],  # right, but the least sure
        [0.6, 0.4, 0.0],  # pasture called forest
        [0.0, 1.0, 0.0],
        [0.99, 0.01, 0.0],  # maize called forest: the most surprising
    ]
)


def test_the_galleries_by_hand():
    pairs, other, last, unsure, surprising = select_galleries(LABELS, PROBABILITIES, NAMES)
    assert (pairs.title, pairs.places.tolist()) == ("forest, predicted as pasture", [1, 2])
    assert {one.title for one in (other, last)} == {"pasture, predicted as forest", "<maize>, predicted as forest"}
    assert unsure.places[0] == 3
    assert surprising.places.tolist()[:2] == [6, 1]


def test_a_network_that_is_always_right_has_no_pairs():
    galleries = select_galleries(np.array([0, 1]), np.eye(2), NAMES[:2])
    assert [one.title.split(":")[0] for one in galleries] == ["Least confident", "Least probable labels"]


def test_names_are_escaped_and_pictures_stand_beside_their_maps():
    heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    part = gallery_section(
        select_galleries(LABELS, PROBABILITIES, NAMES), LABELS, PROBABILITIES, NAMES, [f"{n}.jpg" for n in range(7)],
        {place: Example(np.zeros((4, 4, 3), np.uint8), heat) for place in range(1, 7)},
    )  # fmt: skip
    page = render(part.template, part=part)
    assert "<maize>" not in page
    assert "&lt;maize&gt;, predicted as forest" in page
    pictures = sum(len(pictures) for _, pictures in part.galleries)
    without = sum(one["path"] == "0.jpg" for _, pictures in part.galleries for one in pictures)
    assert page.count("data:image/jpeg") == 2 * (pictures - without)
    assert part.data["galleries"][0]["paths"] == ["1.jpg", "2.jpg"]


def test_the_report_has_galleries_with_maps_and_is_small(class_folders):
    torch.manual_seed(0)
    model = class_folders.parent / "model.safetensors"
    network = create("efficientnetv2_b0", num_classes=3)
    model_file.save(model, network, class_names=("blue", "green", "red"))
    done = effnetv2(
        "evaluate", model, class_folders, "--image-size", "64", "--device", "cpu", "--output", "seen",
        cwd=class_folders.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = class_folders.parent / "seen" / "report.html"
    text = page.read_text()
    assert mentions(text, "Grad-CAM")
    assert text.count('alt="Grad-CAM"') >= 16
    assert page.stat().st_size < 5_000_000
    told = json.loads((class_folders.parent / "seen" / "report.json").read_text())
    assert told["galleries"][-1]["title"] == "Least probable labels"
    assert len(told["galleries"][-1]["paths"]) == 8


@pytest.fixture
def wrong(tmp_path):
    """Two large images, each called what the other is."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (3000, 1500), "red").save(tmp_path / name)
    pd.DataFrame({"path": ["a.png", "b.png"], "label": ["oak", "elm"]}).to_csv(tmp_path / "two.csv", index=False)
    dataset = load_dataset(str(tmp_path / "two.csv"))
    return dataset, Predictions(np.arange(2), dataset.labels, torch.tensor([[9.0, 0.0], [0.0, 9.0]]))


def test_mistakes_are_kept_no_larger_than_the_page_needs(wrong, tmp_path, monkeypatch):
    dataset, answers = wrong
    kept = []
    monkeypatch.setattr(report.Report, "write", lambda self, folder: kept.extend(self.errors))
    EvaluationResult(answers, dataset, dataset.class_names, ReportMetadata("two", "val")).write(tmp_path)
    assert [one.thumbnail.size for one in kept] == [(320, 160)] * 2


def test_a_store_that_has_gone_leaves_a_report_without_pictures(wrong, tmp_path, monkeypatch):
    """It is asked once by each part of the report, for every request waits for all its tries."""
    dataset, answers = wrong
    asked = []

    def gone(sample):
        asked.append(sample)
        raise InputError("https://far.example does not answer")

    for part, reader in ((evaluation_result, "display_reader"), (explain, "eval_reader")):
        monkeypatch.setattr(part, reader, lambda dataset: SimpleNamespace(source=gone))
    (tmp_path / "out").mkdir()
    EvaluationResult(answers, dataset, dataset.class_names, ReportMetadata("two", "val")).write(tmp_path / "out")
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert sorted(one["path"] for one in told["top_errors"]) == ["a.png", "b.png"]
    assert len(asked) == 1
    seen = explain_predictions(None, answers, dataset, dataset.class_names, Preprocessing(image_size=16))
    assert [len(one["paths"]) for one in seen[0].data["galleries"]] == [1, 1, 2, 2]
    assert len(asked) == 2


def test_pictures_that_only_gdal_opens_are_shown_as_they_were_answered(tmp_path, monkeypatch):
    """Three bands of 8 bits that are not called red, green and blue, to a network of ordinary images."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        pixels = np.full((3, 24, 24), 90, np.uint8)
        write_raster(tmp_path / "set" / name / "one.tif", pixels, photometric="MINISBLACK")
    dataset = load_dataset(tmp_path / "set")
    answers = Predictions(np.arange(2), dataset.labels, torch.tensor([[0.0, 9.0], [9.0, 0.0]]))
    network = create("efficientnetv2_b0", num_classes=2)
    (part,) = explain_predictions(network, answers, dataset, dataset.class_names, Preprocessing(image_size=32))
    shown = [each for _, pictures in part.values["galleries"] for each in pictures]
    assert shown
    assert all(each["address"] is not None for each in shown)
    kept = []
    monkeypatch.setattr(report.Report, "write", lambda self, folder: kept.extend(self.errors))
    EvaluationResult(answers, dataset, dataset.class_names, ReportMetadata("two", "val")).write(tmp_path)
    assert [one.thumbnail.size for one in kept] == [(24, 24)] * 2


def test_each_fold_is_shown_rasters_as_it_saw_them(tmp_path, monkeypatch):
    """All values are 100: two fifths of what becomes 255 by the rule of one fold, a fifth by that of the other."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        write_raster(tmp_path / "set" / name / "one.tif", np.full((3, 12, 12), 100, np.uint16))
    rules = [Bands((1, 2, 3), (0,) * 3, (high,) * 3, kinds=("uint16",)) for high in (250, 500)]
    folds = [SimpleNamespace(preprocessing=Preprocessing(image_size=8, bands=rule)) for rule in rules]
    dataset = replace(load_dataset(tmp_path / "set"), bands=rules[0])
    monkeypatch.setattr(explain, "supports_grad_cam", lambda network: False)
    monkeypatch.setattr(
        explain, "gallery_section", lambda *words, **_: [words[-1][place].image[0, 0].tolist() for place in range(2)]
    )
    answers = Predictions(np.arange(2), dataset.labels, torch.tensor([[9.0, 0.0], [0.0, 9.0]]))
    (found,) = explain_folds(folds.__getitem__, np.array([0, 1]), answers, dataset)
    assert found == [[102] * 3, [51] * 3]


def test_of_the_folds_networks_one_is_in_memory_at_a_time(class_folders, monkeypatch):
    """And of a fold that has answered none of the images shown, none at all."""
    alive, loaded = weakref.WeakSet(), []

    class Loaded:
        preprocessing = Preprocessing(image_size=8)

    def network_of(number):
        assert not alive
        network = Loaded()
        alive.add(network)
        loaded.append(number)
        return network

    monkeypatch.setattr(explain, "supports_grad_cam", lambda network: False)
    dataset = load_dataset(class_folders)
    rows = np.array([0, 20, 40])
    answers = Predictions(rows, dataset.labels[rows], torch.eye(3) * 9)
    explain_folds(network_of, np.array([0, 3, 1]), answers, dataset)
    assert loaded == [0, 1, 3]


def test_where_not_even_one_map_fits_into_memory_pictures_are_shown_without(wrong):
    """All figures are there by then: a run would never come to its report."""
    dataset, answers = wrong
    network = create("efficientnetv2_b0", num_classes=2)

    def short(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    network.register_forward_pre_hook(short)
    (part,) = explain_predictions(network, answers, dataset, dataset.class_names, Preprocessing(image_size=32))
    shown = [each for _, pictures in part.values["galleries"] for each in pictures]
    assert shown
    assert all(each["address"] is not None and each["map"] is None for each in shown)


def test_only_what_is_shown_is_turned_into_probabilities(wrong, monkeypatch):
    """Some thirty images of maybe a million."""
    dataset, answers = wrong
    network = create("efficientnetv2_b0", num_classes=2)
    monkeypatch.setattr(Predictions, "probabilities", property(lambda self: pytest.fail("those of all")))
    seen = explain._examples(network, answers, dataset, Preprocessing(image_size=32), [1])
    assert seen[1].heat.shape == (32, 32)
