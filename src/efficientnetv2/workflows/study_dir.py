"""The folder of a study on this machine."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.shards.index import is_pattern, is_url, split_location
from efficientnetv2.evaluation.html import is_page
from efficientnetv2.nas.storage import EmptyDatabaseError, Storage, redact_password, sqlite_file, sqlite_url
from efficientnetv2.nas.study import StudyConfig
from efficientnetv2.utils.errors import InputError, shorten
from efficientnetv2.utils.io import entry_names, read_yaml, write_atomically, write_text_atomically
from efficientnetv2.utils.shell import shell_join

#: The files of ``search show``, the page first.
REPORT_FILES = ("search.html", "fronts.png", "rewards.png", "importances.png")
#: All files of a study; any other file belongs to the user.
STUDY_FILES = {
    "study.yaml", "study.db", "study.db.lock", "study.db-journal", "dataset.csv", "step_times.json",
    "step_times.lock", "log.txt", "found.yaml", *REPORT_FILES,
}  # fmt: skip
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")


class StudyDir:
    """The folder of a study, which may not exist. Its last part is the name of a study started there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "study.yaml"  # What this machine needs to continue the study
        self.split_file = path / "dataset.csv"  # Every image, its label and its split
        # The step times of parts on this machine, normalized by the backbone of the study
        self.times_file = path / "step_times.json"

    @property
    def name(self) -> str:
        """The study's name, also after its folder was renamed."""
        name = self._read().get("name") if self.file.exists() else None
        return self.path.absolute().name if name is None else str(name)

    @property
    def default_storage(self) -> str:
        """The URL of the database in the folder."""
        return sqlite_url(self.path / "study.db")

    def check(self) -> None:
        """Refuse a folder that holds files of anything but a study."""
        if self.file.exists() or not self.path.is_dir():
            return
        known = STUDY_FILES - {"dataset.csv"}  # Where no study was started, it may be the user's.
        if not _is_log(self.path / "log.txt"):  # Of a study whose backbone could not be trained.
            known -= {"log.txt"}
        page = self.path / REPORT_FILES[0]
        if not (page.is_file() and is_page(page)):  # Of a study that another machine works for.
            known -= set(REPORT_FILES)
        others = [name for name in entry_names(self.path) if name not in known and not name.endswith(".partial")]
        if others:
            raise InputError(
                f"{self.path} is not the folder of a study: it holds {shorten(others, 3)}. Pass another folder."
            )

    def make(self) -> None:
        """Create the folder where it is missing. Raises InputError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.path}: {reason}. Pass another folder for the study.") from error

    def write(self, source: DataConfig, storage: str, dataset: ImageDataset, config: StudyConfig) -> None:
        """Write what it takes to continue here. The configuration is for people to read: the database has it too."""
        content: dict[str, Any] = {
            "name": self.name,
            "storage": None if storage == self.default_storage else redact_password(storage),
            "data": asdict(source) | {"data": absolute_source(source.data)},
            "plan": config.to_json(),
        }
        before = self._read().get("plan") or {} if self.file.exists() else content["plan"]
        if before.get("reference") != content["plan"]["reference"]:
            self.times_file.unlink(missing_ok=True)
        # study.yaml first: only with it, the split file is known to be the study's.
        write_text_atomically(self.file, yaml.safe_dump(content, sort_keys=False, width=100))
        if not self.split_file.exists():
            write_atomically(self.split_file, dataset.to_csv)

    def describe(self, url: str) -> str:
        """The study and its database, for messages."""
        return f"the study '{self.name}' in {redact_password(url)}"

    def lost_error(self, url: str) -> InputError:
        """The error for a study that was started here and is not in its database."""
        return InputError(
            f"{self.describe(url)} was started, and is missing: the database is lost, or another one. Restore "
            f"it, or remove {self.file} and {self.split_file} to start again."
        )

    def open_storage(self, url: str, *, wait: float, create: bool = False) -> Storage:
        """Open the study's database, see `Storage`; ``wait`` is in minutes. A lost database is an InputError."""
        try:
            return Storage(url, timeout_s=60 * wait, create=create)
        except EmptyDatabaseError as error:
            if not self.file.exists():
                raise
            raise self.lost_error(url) from error

    def storage_url(self, given: str | None) -> str:
        """The URL of the study's database; ``given`` is the user's. Raises InputError if they differ."""
        if not self.file.exists():
            if given is None:
                raise self._no_study_error(None)
            return _absolute_url(given)
        url = _absolute_url(self._read().get("storage") or self.default_storage)
        if given is None:
            return url
        given = _absolute_url(given)
        if redact_password(given) != redact_password(url):
            raise InputError(
                f"`storage` {redact_password(given)}: the study in {self.path} is in {redact_password(url)}. Leave "
                "`storage` out, or use another folder."
            )
        return given

    def source(self, storage: str | None = None) -> DataConfig:
        """The dataset of the study. ``storage`` is the user's, for the message where there is no study here."""
        if not self.file.exists():
            raise self._no_study_error(storage)
        return DataConfig(**self._read()["data"])

    def _no_study_error(self, storage: str | None) -> InputError:
        args = ["effnetv2", "search", "run", str(self.path), "--data", "DATA"]
        if storage is None:  # A study in a folder has its database there.
            return InputError(
                f"{self.path} holds no study. Pass the folder of a study, or start one: {shell_join(args)}"
            )
        args += ["--storage", redact_password(storage)]
        return InputError(f"{self.path} holds no study. Start or join one with its options: {shell_join(args)}")

    def _read(self) -> dict[str, Any]:
        content = read_yaml(self.file)
        if not isinstance(content, dict) or "data" not in content:
            raise InputError(f"{self.file} does not describe a study. Restore it, or start another study.")
        return content


def _is_log(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as lines:
            return _LOG_LINE.match(lines.readline(100)) is not None
    except (OSError, UnicodeDecodeError):
        return False


def absolute_source(data: str) -> str:
    """A dataset independent of the working directory: paths and patterns become absolute, URLs and names stay."""
    path = Path(os.path.expanduser(data))
    if os.path.exists(path):
        return str(path.absolute())
    if is_url(data) or not is_pattern(data):
        return data
    return "/".join(split_location(data))


def _absolute_url(url: str) -> str:
    file = sqlite_file(url)
    return url if file is None else sqlite_url(file)
