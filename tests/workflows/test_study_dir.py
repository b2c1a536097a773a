"""The local folder of a study."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import yaml
from tests.nas.test_study import PLAN

from efficientnetv2.data.config import DataConfig
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.study_dir import StudyDir

PICTURES = SimpleNamespace(to_csv=lambda file: file.write_text("path,label,split\n"))


def begun(tmp_path, data: str = "pictures", plan=PLAN) -> StudyDir:
    folder = StudyDir(tmp_path / "study")
    folder.make()
    folder.write(DataConfig(data), folder.default_storage, PICTURES, plan)
    return folder


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        ("pictures", "HERE/pictures"),
        ("shards/train-{000..010}.tar", "HERE/shards/train-{000..010}.tar"),
        ("shards/*.tar", "HERE/shards/*.tar"),
        ("train-{000..010}.tar", "HERE/train-{000..010}.tar"),
        ("~/train-{000..010}.tar", "HOME/train-{000..010}.tar"),
        ("https://example.org/train-{000..010}.tar", "https://example.org/train-{000..010}.tar"),
        ("cifar10", "cifar10"),
    ],
)
def test_study_finds_its_images_from_any_folder(data, kept, tmp_path, monkeypatch):
    """``search resume`` may run in another folder than ``search run``."""
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = begun(tmp_path, data)
    home = os.path.expanduser("~").rstrip("/")
    assert folder.source().data == kept.replace("HERE", str(tmp_path)).replace("HOME", home)


def test_hint_for_a_missing_study_has_a_storage_only_if_one_is_given(tmp_path):
    folder = StudyDir(tmp_path / "nowhere")
    with pytest.raises(InputError, match="Pass the folder of a study, or start one: effnetv2 search run") as error:
        folder.storage_url(None)
    assert "--storage" not in str(error.value)
    with pytest.raises(InputError, match="--storage postgresql://me@host/studies"):
        folder.source("postgresql://me@host/studies")


@pytest.mark.parametrize(("kept", "name"), [(True, "study"), (False, "renamed")])
def test_moved_study_keeps_its_name(kept, name, tmp_path):
    """The database uses the name. A study without a saved name has the name of its folder."""
    folder = begun(tmp_path)
    if not kept:
        saved = yaml.safe_load(folder.file.read_text())
        del saved["name"]
        folder.file.write_text(yaml.safe_dump(saved))
    folder.path.rename(tmp_path / "renamed")
    assert StudyDir(tmp_path / "renamed").name == name


@pytest.mark.parametrize(("seconds", "there"), [(0.01, True), (0.02, False)])
def test_step_times_of_another_reference_are_deleted(seconds, there, tmp_path):
    """Step times are relative to the backbone, which is measured again if the study is created again."""
    folder = begun(tmp_path)
    folder.times_file.write_text("{}")
    reference = Measurement(1000, 1000, step_seconds=seconds, failure="not trained")
    begun(tmp_path, plan=PLAN.model_copy(update={"reference": reference}))
    assert folder.times_file.exists() is there
    assert yaml.safe_load(folder.file.read_text())["plan"]["reference"]["step_seconds"] == seconds
