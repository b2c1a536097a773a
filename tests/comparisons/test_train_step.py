"""The benchmark of a training step: sides that do the same work, in turn, and what is claimed of them."""

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


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["train_step", *words])
    train_step.main()


def test_the_ratio_is_that_of_the_seconds_and_every_side_is_there(monkeypatch, capsys):
    run(monkeypatch, "--model", "efficientnetv2_b0", *SMALL, "--json")
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["batch_size"] == 4
    assert {"timm", "timm channels-last fused", "efficientnetv2"} <= set(found["sides"])
    ours = found["sides"]["efficientnetv2"]["seconds"]
    for side in found["sides"].values():
        assert len(side["seconds"]) == 3
        rounds = [theirs / our for theirs, our in zip(side["seconds"], ours, strict=True)]
        assert side["ours_ahead"]["median"] == pytest.approx(statistics.median(rounds))
        speeds = [4 / one for one in side["seconds"]]
        assert side["images_per_s"]["median"] == pytest.approx(statistics.median(speeds))
    assert "Precision: " in found["choice"]
    assert "efficientnetv2 begins" in printed.err


@pytest.mark.parametrize(
    ("model", "error"), [("efficientnetv2_b9", "efficientnetv2_b"), ("torchvision:resnet18", "only networks of ours")]
)
def test_a_wrong_network_is_refused(model, error, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--model", model, *SMALL)
    assert end.value.code == 2
    assert error in capsys.readouterr().err


def test_both_sides_train_the_same_network_on_the_same_images():
    """Equal losses before and after a step (later ones amplify rounding), in fp32 and without what is drawn."""
    work = Workload("efficientnetv2_b0", 64, 8, rate=0.0, device=CPU)
    recipe, _ = our_recipe(work)
    recipe = recipe.model_copy(update={"precision": "fp32"})
    sides = [our_losses(work, recipe), Peer("timm", channels_last=True).losses(work)]
    ours, theirs = ([float(next(side)) for _ in range(2)] for side in sides)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-3)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[0] != ours[1]


def test_tuned_peers_are_those_that_people_know(monkeypatch):
    monkeypatch.setattr(train_step, "lower_precision", lambda device: "bf16")
    small = Workload("efficientnetv2_s", 32, 4, rate=0.1, device=CPU)
    plain = ["timm", "timm channels-last fused", "timm channels-last fused bf16"]
    assert [str(one) for one in peers(small, compiled=False)][:3] == plain
    assert "torchvision channels-last fused bf16 compiled" in [str(one) for one in peers(small, compiled=True)]
    b0 = Workload("efficientnetv2_b0", 32, 4, rate=0.1, device=CPU)
    assert [str(one) for one in peers(b0, compiled=False)] == plain


def test_what_is_settled_is_not_measured(monkeypatch):
    monkeypatch.setattr("efficientnetv2.training.precision._Bench.side", lambda *_, **__: pytest.fail("measured"))
    work = Workload("efficientnetv2_b0", 32, 2, rate=0.1, device=CPU)
    recipe, said = our_recipe(work, precision="fp32", compile=False)
    assert (recipe.precision, recipe.compile, said) == ("fp32", False, "")


@pytest.mark.parametrize("fused", [True, False])
def test_a_tuned_peers_optimizer_is_fused_as_ours_is(fused, monkeypatch):
    made = []
    adamw = torch.optim.AdamW

    def kept(*words, **more):
        made.append(adamw(*words, **more))
        return made[-1]

    monkeypatch.setattr(torch.optim, "AdamW", kept)
    next(Peer("timm", fused=fused).losses(Workload("efficientnetv2_b0", 32, 2, rate=0.1, device=CPU)))
    assert bool(made[0].defaults["fused"]) is fused


def test_without_the_other_libraries_ours_is_measured_alone(monkeypatch):
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda name: None)
    assert peers(Workload("efficientnetv2_s", 32, 4, rate=0.1, device=CPU), compiled=True) == []
