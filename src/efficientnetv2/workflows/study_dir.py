"""The folder of a study: what this machine knows of it."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.shards.index import is_pattern, is_url, split_location
from efficientnetv2.evaluation.html import is_page
from efficientnetv2.nas.storage import NoStudiesError, Storage, file_of, hidden, url_of
from efficientnetv2.nas.study import Plan
from efficientnetv2.utils import yaml_io
from efficientnetv2.utils.errors import InputError, shorten
from efficientnetv2.utils.io import write_atomically, write_text_atomically
from efficientnetv2.utils.shell import shell_join

#: Of what a study leaves there, what ``search show`` draws: the page first.
DRAWN = ("search.html", "fronts.png", "rewards.png", "importances.png")
#: What a study leaves there; anything else is somebody else's.
STUDY_FILES = {
    "study.yaml", "study.db", "study.db.lock", "study.db-journal", "pictures.csv", "step_times.json",
    "step_times.lock", "log.txt", "found.yaml", *DRAWN,
}  # fmt: skip
# A line of its log begins so; a list of pictures looks like anybody's.
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")


@dataclass(frozen=True)
class StudyFolder:
    """A study's folder.

    Args:
        path: of the folder, which need not be there; its last part is the name of a study begun there.
    """

    path: Path

    @property
    def name(self) -> str:
        """Of the study, which keeps that of the folder that it was begun in."""
        kept = self._read().get("name") if self.file.exists() else None
        return self.path.absolute().name if kept is None else str(kept)

    @property
    def file(self) -> Path:
        """What this machine needs to go on with it."""
        return self.path / "study.yaml"

    @property
    def pictures_file(self) -> Path:
        """Every picture, its label, and whether it trains, chooses or judges."""
        return self.path / "pictures.csv"

    @property
    def times_file(self) -> Path:
        """How long the parts of networks take here."""
        return self.path / "step_times.json"

    @property
    def own_storage(self) -> str:
        """The database in the folder."""
        return url_of(self.path / "study.db")

    def check(self) -> None:
        """Whether the folder is, or can become, a study's; nothing is made.

        Raises:
            InputError: it holds something else, such as a list of pictures where no study has been begun, or drawings
                without the page that they were drawn for.
        """
        if self.file.exists():
            return
        there = [file.name for file in self.path.iterdir()] if self.path.is_dir() else []
        ours = STUDY_FILES - {"pictures.csv"}
        if not _is_log(self.path / "log.txt"):  # what is left of a study whose backbone could not be trained
            ours -= {"log.txt"}
        page = self.path / DRAWN[0]
        if not (page.is_file() and is_page(page)):  # of a study looked at from afar
            ours -= set(DRAWN)
        others = [name for name in there if name not in ours and not name.endswith(".partial")]
        if others:
            raise InputError(
                f"{self.path} holds something that is no study ({shorten(others, 3)}). Give another folder."
            )

    def make(self) -> None:
        """Make the folder, unless it is there.

        Raises:
            InputError: it can't be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path}: {error.strerror or error}. Give another folder for the study."
            ) from error

    def begin(self, source: DataConfig, storage: str, dataset: ImageDataset, plan: Plan) -> None:
        """Write down what it takes to go on here; the plan for people to read, the database has it too.

        The plan first, for beside it the list of pictures is known for the study's.
        """
        where = None if storage == self.own_storage else hidden(storage)
        told = asdict(source) | {"data": from_anywhere(source.data)}
        said: dict[str, Any] = {"name": self.name, "storage": where, "data": told, "plan": plan.to_json()}
        before = self._read().get("plan") or {} if self.file.exists() else said["plan"]
        if before.get("reference") != said["plan"]["reference"]:
            self.forget_times()
        write_text_atomically(self.file, yaml.safe_dump(said, sort_keys=False, width=100))
        if not self.pictures_file.exists():  # who joins with the same pictures leaves what was changed there
            write_atomically(self.pictures_file, dataset.to_csv)

    def forget_times(self) -> None:
        """Those of another study were told at the pace of its own backbone."""
        self.times_file.unlink(missing_ok=True)

    def where(self, url: str) -> str:
        """Which study it is, and where, for messages."""
        return f"the study '{self.name}' in {hidden(url)}"

    def lost(self, url: str) -> str:
        """The message for a study that was begun here and is not in its database."""
        return (
            f"{self.where(url)} was begun, but is not there: the study's database is lost, or is another by now. Bring "
            f"it back, or remove {self.file} and {self.pictures_file} to begin anew."
        )

    def database(self, url: str, *, patience_s: float, create: bool = False) -> Storage:
        """The study's database, open.

        Args:
            url: of the database.
            patience_s: how long to try again while it can't be reached.
            create: make the file or the tables if they are not there.

        Raises:
            NoStudiesError: it is not there, or empty, and no study was begun here.
            InputError: one was; or it can't be opened.
        """
        try:
            return Storage(url, patience_s=patience_s, create=create)
        except NoStudiesError as error:
            if not self.file.exists():
                raise
            raise InputError(self.lost(url)) from error

    def storage(self, given: str | None) -> str:
        """Where the trials lie.

        Args:
            given: as the user says; None where nothing is said.

        Raises:
            InputError: there is no study here and nothing is said, or it lies elsewhere.
        """
        if not self.file.exists():
            if given is None:
                raise InputError(
                    f"{self.path} holds no study. Begin one: effnetv2 search run {shell_join([str(self.path)])} --data "
                    "DATA; or say where its trials lie (--storage)."
                )
            return _absolute(given)
        there = _absolute(self._read().get("storage") or self.own_storage)
        given = None if given is None else _absolute(given)
        if given is not None and hidden(given) != hidden(there):
            raise InputError(
                f"--storage {hidden(given)}: the study in {self.path} lies in {hidden(there)}. Leave --storage out, or "
                "give the study another folder."
            )
        return given or there

    def source(self, storage: str | None = None) -> DataConfig:
        """The pictures of the study.

        Args:
            storage: where its trials lie, as the user says.

        Raises:
            InputError: there is no study here, and so its pictures are not known.
        """
        if not self.file.exists():
            words = ["effnetv2", "search", "run", str(self.path), "--data", "DATA"]
            words += [] if storage is None else ["--storage", hidden(storage)]
            raise InputError(
                f"{self.path} holds no study, so its pictures are not known. Begin or join one with all "
                f"that is said of it: {shell_join(words)}"
            )
        return DataConfig(**self._read()["data"])

    def _read(self) -> dict[str, Any]:
        said = yaml_io.read(self.file)
        if not isinstance(said, dict) or "data" not in said:
            raise InputError(f"{self.file} says nothing of a study. Bring it back, or begin another study.")
        return said


def _is_log(file: Path) -> bool:
    """Whether a study has written it."""
    try:
        with file.open(encoding="utf-8") as lines:
            return _LOGGED.match(lines.readline(100)) is not None
    except (OSError, UnicodeDecodeError):
        return False


def from_anywhere(data: str) -> str:
    """DATA, wherever one stands: a path and a pattern of shards with their folder; URLs and names as they are."""
    place = Path(os.path.expanduser(data))
    if place.exists():
        return str(place.absolute())
    if is_url(data) or not is_pattern(data):
        return data
    return "/".join(split_location(data))


def _absolute(url: str) -> str:
    """The same database, wherever one stands: of a file there is one URL."""
    file = file_of(url)
    return url if file is None else url_of(file)
