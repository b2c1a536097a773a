"""The message of a failed process is at the end of torchrun's report, as parsed by PyTorch."""

from __future__ import annotations

import pytest
from tests.command_line import effnetv2
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from efficientnetv2.utils.processes import report_to_torchrun


def failure(file, rank, exitcode):
    return ProcessFailure(local_rank=rank, pid=1, exitcode=exitcode, error_file=str(file))


def test_user_error_is_the_root_cause_in_torchrun(tmp_path):
    file = tmp_path / "error.json"
    args = ("train", tmp_path / "nowhere", "--device", "cpu")
    done = effnetv2(*args, cwd=tmp_path, environment={"TORCHELASTIC_ERROR_FILE": str(file)})
    assert done.returncode == 2
    message = done.stderr[done.stderr.index("error:") :].strip().replace("\nhint: ", " ")
    failed = ChildFailedError("train", {0: failure(file, 0, 2)})
    *_, last, border = failed.format_msg().splitlines()
    assert last == f"  traceback : {message}"
    assert set(border) == {"="}


@pytest.mark.parametrize("first", [0, 1])
def test_first_failure_is_the_cause_for_any_order(first, tmp_path, monkeypatch):
    for rank in (0, 1):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"{rank}.json"))
        report_to_torchrun(f"said by {rank}", cause=rank == first)
    failed = ChildFailedError("train", {rank: failure(tmp_path / f"{rank}.json", rank, 1) for rank in (0, 1)})
    assert failed.get_first_failure()[0] == first
    assert failed.format_msg().splitlines()[-2] == f"  traceback : said by {first}"


def test_report_without_torchrun_or_folder_does_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    report_to_torchrun("nobody hears it")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "no" / "folder"))
    report_to_torchrun("nobody hears it")
    assert list(tmp_path.iterdir()) == []
