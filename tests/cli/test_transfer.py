"""Transfer in two steps: the folder of a run gives the initial weights of the next run."""

from __future__ import annotations

import torch
import yaml
from safetensors.torch import load_file
from tests.command_line import TINY, run_ok
from tests.conftest import COLORS, paint
from tests.messages import mentions

from efficientnetv2.models import model_file
from efficientnetv2.models.factory import create
from efficientnetv2.preprocessing import Preprocessing


def test_run_initializes_the_next_run(tmp_path):
    """Photographs, then aerial images, then land cover: each time with other classes."""
    torch.manual_seed(0)
    model = create("efficientnetv2_b0", num_classes=0)
    preprocessing = Preprocessing(image_size=32, mean=(0.4, 0.4, 0.4))
    model_file.save(tmp_path / "photographs.safetensors", model, preprocessing=preprocessing, class_names=())
    for dataset, count in (("aerial", 3), ("land_cover", 2)):
        for name, color in list(COLORS.items())[:count]:
            for number in range(8):
                paint(tmp_path / dataset / f"{dataset}_{name}" / f"{number}.jpg", color, number)
    for data, weights, out in (
        ("aerial", "photographs.safetensors", "runs/aerial"),
        ("land_cover", "runs/aerial", "runs/land_cover"),
    ):
        done = run_ok("train", data, *TINY[2:], "--weights", weights, "--output", out, cwd=tmp_path)
        assert mentions(done.stdout, weights, "classifier")
        assert mentions((tmp_path / out / "log.txt").read_text(), "linear probe")
    first, second = (model_file.load(tmp_path / "runs" / name) for name in ("aerial", "land_cover"))
    assert second.class_names == ("land_cover_green", "land_cover_red")
    assert first.preprocessing.mean == second.preprocessing.mean == (0.4, 0.4, 0.4)
    assert yaml.safe_load((tmp_path / "runs/land_cover/recipe.yaml").read_text())["weights"] == "runs/aerial"
    initial, after_first, after_second = (
        load_file(tmp_path / file)["stem.conv.weight"]
        for file in ("photographs.safetensors", "runs/aerial/model.safetensors", "runs/land_cover/model.safetensors")
    )
    assert (
        0 < (after_second - after_first).norm() < (after_second - initial).norm() * 2
    )  # a few steps of training change the weights little
