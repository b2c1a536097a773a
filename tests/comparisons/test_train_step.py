"""The benchmark of a training step: equal work on all sides, alternating rounds, and claims."""

from __future__ import annotations

import json
import statistics
import sys

import pytest
import torch
from benchmarks import train_step
from benchmarks.train_step import Peer, Workload, our_losses, our_recipe, peers

CPU = torch.device("cpu")
SMALL = ("--image-size", "32", "--batch-size", "4", "--rounds", "3", "--device", "cpu")


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["train_step", *args])
    train_step.main()


def test_ratio_is_computed_from_the_seconds_of_each_side(monkeypatch, capsys):
    run(monkeypatch, "--model", "efficientnetv2_b0", *SMALL, "--json")
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert found["batch_size"] == 4
    assert {"timm", "timm channels-last fused", "efficientnetv2"} <= set(found["sides"])
    ours = found["sides"]["efficientnetv2"]["seconds"]
    for side in found["sides"].values():
        assert len(side["seconds"]) == 3
        rounds = [other / own for other, own in zip(side["seconds"], ours, strict=True)]
        assert side["ours_ahead"]["median"] == pytest.approx(statistics.median(rounds))
        speeds = [4 / seconds for seconds in side["seconds"]]
        assert side["images_per_s"]["median"] == pytest.approx(statistics.median(speeds))
    assert "Precision: " in found["choice"]
    assert "efficientnetv2 begins" in output.err


@pytest.mark.parametrize(
    ("model", "error"), [("efficientnetv2_b9", "efficientnetv2_b"), ("torchvision:resnet18", "only networks of ours")]
)
def test_invalid_model_is_rejected(model, error, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, "--model", model, *SMALL)
    assert exit_.value.code == 2
    assert error in capsys.readouterr().err


def test_both_sides_train_the_same_model_on_the_same_images():
    """Equal losses before and after a step (later losses amplify rounding), in fp32 without random operations."""
    work = Workload("efficientnetv2_b0", 64, 8, rate=0.0, device=CPU)
    recipe, _ = our_recipe(work)
    recipe = recipe.model_copy(update={"precision": "fp32"})
    sides = [our_losses(work, recipe), Peer("timm", channels_last=True).losses(work)]
    ours, others = ([float(next(side)) for _ in range(2)] for side in sides)
    assert ours[1] == pytest.approx(others[1], rel=1e-3)
    assert ours[0] == pytest.approx(others[0], rel=1e-5)
    assert ours[0] != ours[1]


def test_tuned_peers_are_the_common_libraries(monkeypatch):
    monkeypatch.setattr(train_step, "lower_precision", lambda device: "bf16")
    small = Workload("efficientnetv2_s", 32, 4, rate=0.1, device=CPU)
    plain = ["timm", "timm channels-last fused", "timm channels-last fused bf16"]
    assert [str(peer) for peer in peers(small, compiled=False)][:3] == plain
    assert "torchvision channels-last fused bf16 compiled" in [str(peer) for peer in peers(small, compiled=True)]
    b0 = Workload("efficientnetv2_b0", 32, 4, rate=0.1, device=CPU)
    assert [str(peer) for peer in peers(b0, compiled=False)] == plain


def test_chosen_precision_is_not_measured(monkeypatch):
    monkeypatch.setattr("efficientnetv2.training.autotune._Bench.side", lambda *_, **__: pytest.fail("measured"))
    work = Workload("efficientnetv2_b0", 32, 2, rate=0.1, device=CPU)
    recipe, log = our_recipe(work, precision="fp32", compile=False)
    assert (recipe.precision, recipe.compile, log) == ("fp32", False, "")


@pytest.mark.parametrize("fused", [True, False])
def test_optimizer_of_a_peer_is_fused(fused, monkeypatch):
    optimizers = []
    adamw = torch.optim.AdamW

    def record(*args, **kwargs):
        optimizers.append(adamw(*args, **kwargs))
        return optimizers[-1]

    monkeypatch.setattr(torch.optim, "AdamW", record)
    next(Peer("timm", fused=fused).losses(Workload("efficientnetv2_b0", 32, 2, rate=0.1, device=CPU)))
    assert bool(optimizers[0].defaults["fused"]) is fused


def test_missing_libraries_are_skipped(monkeypatch):
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda name: None)
    assert peers(Workload("efficientnetv2_s", 32, 4, rate=0.1, device=CPU), compiled=True) == []
