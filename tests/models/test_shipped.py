"""Weights in the repository: the model card is correct, and training uses them offline."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.messages import mentions

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.models import model_file, safetensors_io
from efficientnetv2.training.initial_weights import better_weights, weights_candidates
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples/weights/efficientnetv2_b0.safetensors"
CARD = (FILE.parent / "README.md").read_text(encoding="utf-8")
SUMMARY = json.loads((ROOT / "benchmarks/results/summary.json").read_text())


def test_shipped_model_is_small_and_has_its_metadata():
    assert FILE.stat().st_size <= 12 * 2**20
    network = model_file.load(FILE)
    assert network.architecture == get_architecture("efficientnetv2_b0")
    sources = Counter(name.partition("/")[0] for name in network.class_names)
    assert sources == {"ucmerced": 21, "clothing": 10, "trashnet": 6, "eurosat": 5, "flowers": 5}
    assert not {f"eurosat/{folder.name}" for folder in (ROOT / "examples/satellite").iterdir()} & set(
        network.class_names
    )
    assert network.trained_on is not None
    assert network.trained_on.num_images > 15_000
    assert network.recipe["weights"] == "none", "trained from scratch"
    kinds = {tensor.ndim > 1: tensor.dtype for tensor in load_file(FILE).values() if tensor.is_floating_point()}
    assert kinds == {True: torch.float16, False: torch.float32}
    words = " ".join(safetensors_io.read_header(FILE).metadata.values())
    assert not re.search(r'"/\w+/', words), "a path of somebody's machine"


def test_model_card_has_the_hash_and_the_metrics_of_the_file():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in CARD
    report = json.loads((ROOT / "benchmarks/results/starter/report.json").read_text())
    claim = SUMMARY["starter_top1"]
    assert (claim["value"], [claim["low"], claim["high"]]) == (report["top1"], report["intervals"]["top1"])
    assert report["num_train_images"] == model_file.load(FILE).trained_on.num_images
    for name, shown in (
        ("starter_top1", lambda value: f"{100 * value:.1f} %"),
        ("starter_land_cover_probe_macro_f1", lambda value: f"{value:.3f}"),
        ("untrained_land_cover_probe_macro_f1", lambda value: f"{value:.3f}"),
        ("starter_satellite_probe_macro_f1", lambda value: f"{value:.3f}"),
        ("untrained_satellite_probe_macro_f1", lambda value: f"{value:.3f}"),
    ):
        (row,) = (line for line in CARD.splitlines() if f"`{name}`" in line)
        for part in ("value", "low", "high"):
            assert shown(SUMMARY[name][part]) in row
    assert claim["command"] in " ".join(CARD.replace("\\\n", " ").split())


def test_auto_uses_the_shipped_weights_offline():
    """``training.initial_weights_selection`` compares them with training from scratch."""
    first, *others = weights_candidates("efficientnetv2_b0")
    assert Path(first.word).samefile(FILE)
    assert mentions(first.note, "efficientnetv2_b0.in1k", "cache")
    assert [one.word for one in others] == ["none"]
    assert [one.word for one in weights_candidates("efficientnetv2_b1")] == ["none"]


def test_imagenet_weights_rank_above_shipped_and_random_weights(tmp_path):
    assert better_weights("efficientnetv2_b0", str(FILE)) == "efficientnetv2_b0.in1k"
    assert better_weights("efficientnetv2_b0", "none") == "efficientnetv2_b0.in1k"
    assert better_weights("efficientnetv2_b0", str(tmp_path / "efficientnetv2_b0.safetensors")) is None
    assert better_weights("efficientnetv2_b0", "efficientnetv2_b0.in1k") is None
    assert better_weights("timm:resnet50", "none") is None


def test_training_from_shipped_weights_uses_the_quick_recipe(tmp_path):
    """The weights are from few images: with the recipe for pretrained weights, training from scratch is better."""
    cpu = torch.device("cpu")
    other = tmp_path / FILE.name
    other.write_bytes(FILE.read_bytes())
    relative, clone = f"examples/weights/{FILE.name}", f"/srv/clone/examples/weights/{FILE.name}"
    recipes = {
        weights: requested_recipe(TrainOverrides(weights=str(weights)), cpu)[0]
        for weights in (FILE, relative, clone, other, "none")
    }
    assert [recipe.name for recipe in recipes.values()] == ["quick", "quick", "quick", "finetune", "quick"]
    assert recipes[FILE].progressive == recipes["none"].progressive
    assert (recipes[FILE].head_init, recipes[FILE].minival) == ("auto", "auto")
