"""Transfer in two steps: a run's folder is what the next run begins with."""

from __future__ import annotations

import torch
import yaml
from safetensors.torch import load_file
from tests.command_line import TINY, effnetv2
from tests.conftest import COLORS, paint
from tests.messages import mentions

from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing


def test_given_weights_then_pictures_of_the_kind_then_ones_own(tmp_path):
    """Photographs, then aerial images, then land cover: with other classes each time."""
    torch.manual_seed(0)
    network = create("efficientnetv2_b0", num_classes=0)
    how = Preprocessing(image_size=32, mean=(0.4, 0.4, 0.4))
    model_file.save(tmp_path / "photographs.safetensors", network, preprocessing=how, class_names=())
    for kind, count in (("aerial", 3), ("own", 2)):
        for name, color in list(COLORS.items())[:count]:
            for number in range(8):
                paint(tmp_path / kind / f"{kind}_{name}" / f"{number}.jpg", color, number)
    for data, weights, out in (
        ("aerial", "photographs.safetensors", "runs/aerial"),
        ("own", "runs/aerial", "runs/own"),
    ):
        done = effnetv2("train", data, *TINY[2:], "--weights", weights, "--output", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert mentions(done.stdout, weights, "classifier")
        assert mentions((tmp_path / out / "log.txt").read_text(), "linear probe")
    first, second = (model_file.load(tmp_path / "runs" / name) for name in ("aerial", "own"))
    assert second.class_names == ("own_green", "own_red")
    assert first.preprocessing.mean == second.preprocessing.mean == (0.4, 0.4, 0.4)
    assert yaml.safe_load((tmp_path / "runs/own/recipe.yaml").read_text())["weights"] == "runs/aerial"
    given, one, other = (
        load_file(tmp_path / file)["stem.conv.weight"]
        for file in ("photographs.safetensors", "runs/aerial/model.safetensors", "runs/own/model.safetensors")
    )
    assert 0 < (other - one).norm() < (other - given).norm() * 2  # it goes on from there, a step or two further
