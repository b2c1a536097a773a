"""``--tta``: what was fitted to other views or sizes is left out, and that is said."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from tests.command_line import effnetv2
from tests.conftest import COLORS, paint
from tests.log_lines import logged_lines
from tests.messages import mentions

from efficientnetv2 import create
from efficientnetv2.models import model_file
from efficientnetv2.models.ensemble import Ensemble, member_calibrations
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.workflows.batch_predict import remove_unfit_calibration


def network(temperature=4.0):
    torch.manual_seed(0)
    made = create("efficientnetv2_b0", num_classes=3).eval()
    made.class_names = tuple(sorted(COLORS))
    made.preprocessing = replace(made.preprocessing, image_size=32)
    made.calibration = None if temperature is None else Calibration(temperature, 60, "minival")
    return made


@pytest.mark.parametrize("changed", [{"tta": "d4"}, {"image_size": 48}])
def test_a_temperature_of_other_answers_is_left_out_and_that_is_said(changed):
    one, said = network(), logged_lines()
    remove_unfit_calibration(one, one.preprocessing)
    assert one.calibration is not None
    remove_unfit_calibration(one, replace(one.preprocessing, **changed))
    assert one.calibration is None
    [line] = said
    assert mentions(line, "32", "one")
    remove_unfit_calibration(one, replace(one.preprocessing, **changed))
    assert len(said) == 1, "there is none to leave out"


def test_of_networks_that_answer_together_each_leaves_its_own_out():
    together, said = Ensemble([network(), network(None)]), logged_lines()
    remove_unfit_calibration(together, replace(together.preprocessing, tta="d4"))
    assert member_calibrations(together) == (None, None)
    assert len(said) == 1


def test_predict_and_evaluate_with_other_views_answer_without_it(tmp_path):
    rows = []
    for number in range(9):
        name = sorted(COLORS)[number % 3]
        paint(tmp_path / f"{number}.jpg", COLORS[name], number, px=32)
        rows.append((f"{number}.jpg", name))
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(tmp_path / "all.csv", index=False)
    model_file.save(tmp_path / "warm.safetensors", network())
    model_file.save(tmp_path / "plain.safetensors", network(None))
    words = ("all.csv", "--workers", "0", "--device", "cpu")
    tables = []
    for model in ("warm", "plain"):
        asked = ("predict", f"{model}.safetensors", *words, "--tta", "d4", "--output", f"{model}.csv")
        done = effnetv2(*asked, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("Temperature: removed" in " ".join(done.stdout.split())) is (model == "warm")
        tables.append(pd.read_csv(tmp_path / f"{model}.csv"))
    pd.testing.assert_frame_equal(*tables)
    done = effnetv2("evaluate", "warm.safetensors", *words, "--image-size", "48", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(" ".join(done.stdout.split()), "48", "one")
