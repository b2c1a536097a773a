"""A study in its database: its configuration is written once, and every worker must have the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientnetv2.nas.objective import Measurement, Reward
from efficientnetv2.nas.proxy_task import StepTimeBy
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.step_time import ReferenceTiming
from efficientnetv2.nas.storage import Storage, import_optuna, optuna_warnings_only, redact_password
from efficientnetv2.nas.trial_queue import TrialQueue
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import diff_recipes
from efficientnetv2.utils.errors import InputError, first_error

if TYPE_CHECKING:
    from optuna import Study

# Attributes of Optuna's study: the configuration, and the number of trials that it is to have.
CONFIG, TARGET = "plan", "trials"


class StudyConfig(BaseModel):
    """All that determines what a study finds.

    ``recipe`` is resolved except for what depends on the architecture; ``requested_recipe`` is as requested.
    ``seeds`` are of the runs of a trial, ``seed`` of the sampler. ``dataset_digest`` is of paths, labels and splits;
    ``bands`` and ``nodata`` are empty for ordinary images. ``reference`` has the backbone's costs, which the reward
    divides by; its step was timed in groups of ``reference_group``, ``reference_at_a_time`` in a pass, by ``version``
    of this package.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    space: Space
    reward: Reward
    recipe: Recipe
    requested_recipe: Recipe
    seeds: tuple[int, ...] = Field(min_length=1)
    step_time: StepTimeBy
    sampler: str
    seed: int
    prune: bool
    dataset_digest: str
    bands: tuple[int, ...]
    nodata: tuple[float, ...]
    class_names: tuple[str, ...]
    hardware: str
    reference: Measurement
    reference_group: int | None
    reference_at_a_time: int
    version: str

    @property
    def reference_timing(self) -> ReferenceTiming:
        """What all workers normalize their times by."""
        assert self.reference.step_seconds is not None, "it was measured when the study began"
        return ReferenceTiming(
            self.space.backbone,
            self.recipe.model_copy(update={"ghost_batch_size": self.reference_group}),
            self.reference.step_seconds,
            self.reference.inference_seconds,
            self.reference_at_a_time,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, plain: Any, *, where: str) -> StudyConfig:
        """Validate plain values. Raises InputError."""
        try:
            return cls.model_validate(plain)
        except ValidationError as error:
            raise InputError(
                f"{where} cannot be read ({first_error(error.errors())}). Use the version of the program that made it."
            ) from error


@dataclass(frozen=True)
class RequestedConfig:
    """The part of a `StudyConfig` that a worker requests; None takes the study's. ``recipe`` is as requested."""

    space: Space | None = None
    reward: Reward | None = None
    recipe: Recipe | None = None
    seeds: tuple[int, ...] | None = None
    step_time: StepTimeBy | None = None
    sampler: str | None = None
    seed: int | None = None
    prune: bool | None = None
    dataset_digest: str | None = None
    bands: tuple[int, ...] | None = None
    nodata: tuple[float, ...] | None = None
    hardware: str | None = None


def require_same_config(
    config: StudyConfig, requested: RequestedConfig, where: str, *, resumed: bool = False, joined: bool = True
) -> None:
    """Refuse to work for a study with another configuration; the message names all differences.

    ``resumed``: the worker takes all options from the study, so that only data and hardware can differ. ``joined``:
    this machine has worked for the study, so that it can resume it.
    """
    differences = []
    if requested.space not in (None, config.space):
        differences.append("space: other architectures")
    if requested.recipe is not None:
        changes = diff_recipes(config.requested_recipe, requested.recipe)
        differences += [f"recipe: {change}" for change in changes]
    for name in ("reward", "seeds", "step_time", "sampler", "seed", "prune"):
        there, here = getattr(config, name), getattr(requested, name)
        if here is not None and here != there:
            differences.append(f"{name.replace('_', ' ')}: {there} there, {here} here")
    if requested.dataset_digest not in (None, config.dataset_digest):
        differences.append("data: other images, labels or splits")
    for name in ("bands", "nodata"):
        there, here = getattr(config, name), getattr(requested, name)
        if here not in (None, there):
            texts = [",".join(f"{value:g}" for value in values) or "none" for values in (there, here)]
            differences.append(f"`{name}` of the rasters: {texts[0]} there, {texts[1]} here")
    fix = "Use hardware, threads and PyTorch as it was started with"
    if differences:
        fix = "Continue it (effnetv2 search resume)" if joined else "Use the options and data it was started with"
        if resumed:
            fix = "Restore the images of its dataset.csv"
    if requested.hardware not in (None, config.hardware):
        differences.append(f"hardware, and so step times: {config.hardware} there, {requested.hardware} here")
    if differences:
        raise InputError(
            f"{where} is another study: {'; '.join(differences)}. {fix}, or start another under another name."
        )


def version_warning(began: str, here: str) -> str | None:
    """A warning where a study continues with another version of the package; None if it is the same."""
    if began == here:
        return None
    return (
        f"The study was started with efficientnetv2 {began} and continues with {here}: if "
        "some blocks became faster or slower since, rewards do not compare."
    )


@dataclass(frozen=True)
class OpenStudy:
    """A study whose database is open. ``optuna_study`` has the sampler and the pruner of the configuration."""

    name: str
    storage: Storage
    config: StudyConfig
    optuna_study: Study

    @cached_property
    def queue(self) -> TrialQueue:
        """Its trials, to lease."""
        return TrialQueue(self.storage, self.name)

    def trials(self) -> list[Any]:
        """All trials, as Optuna has them."""
        return self.storage.retry(lambda: self.queue.trials())

    @property
    def target(self) -> int:
        """The number of trials that it is to have."""
        rdb = self.storage.rdb
        return int(self.storage.retry(lambda: rdb.get_study_user_attrs(self.queue.study_id)[TARGET]))

    def extend(self, trials: int) -> None:
        """Set the number of trials. Raises InputError if it already has more."""

        def change() -> None:
            with self.storage.exclusive():
                count = len(self.queue.trials())
                if trials < count:
                    raise InputError(f"`trials={trials}`: the study has {count} already. Use at least {count}.")
                self.storage.rdb.set_study_user_attr(self.queue.study_id, TARGET, trials)

        self.storage.retry(change)


def load_config(storage: Storage, name: str) -> StudyConfig | None:
    """The configuration of a study; None if the database has no such study. Raises InputError."""
    rdb = storage.rdb

    def load() -> Any:
        names = {study.study_name for study in rdb.get_all_studies()}
        if name not in names:
            return None
        plain = rdb.get_study_user_attrs(rdb.get_study_id_from_name(name)).get(CONFIG)
        if plain is None and _marker(name) not in names:
            raise InputError(
                f"{redact_password(storage.url)} has a study '{name}' that effnetv2 search did not make. Use another "
                "folder name, or another `storage`."
            )
        return plain

    plain = storage.retry(load)
    return None if plain is None else StudyConfig.from_json(plain, where=f"the study '{name}'")


def _marker(name: str) -> str:
    """A study that is in the database while the named one is being created."""
    return f"{name} (being made)"


def create_study(storage: Storage, name: str, config: StudyConfig, *, trials: int) -> StudyConfig:
    """Write a new study, unless another worker has just done so. Returns the study's configuration."""
    rdb = storage.rdb

    def write() -> None:
        with storage.exclusive(), optuna_warnings_only():
            names = {study.study_name for study in rdb.get_all_studies()}
            # The marker comes first and goes last: only next to it a study without configuration is ours to complete.
            marker = _marker(name)
            if load_config(storage, name) is None:
                directions = [import_optuna().study.StudyDirection.MAXIMIZE]
                for missing in (study for study in (marker, name) if study not in names):
                    rdb.create_new_study(directions, missing)
                study_id = rdb.get_study_id_from_name(name)
                rdb.set_study_user_attr(study_id, TARGET, trials)
                rdb.set_study_user_attr(study_id, CONFIG, config.to_json())
                names.add(marker)
            if marker in names:
                rdb.delete_study(rdb.get_study_id_from_name(marker))

    storage.retry(write)
    written = load_config(storage, name)
    assert written is not None, "it has just been written"
    return written


def open_study(storage: Storage, name: str) -> OpenStudy:
    """A study of a database. Raises InputError, with the names of those there are."""
    config = load_config(storage, name)
    if config is None:
        names = sorted(one.study_name for one in storage.retry(storage.rdb.get_all_studies))
        known = f"it has {', '.join(names)}" if names else "it is empty"
        raise InputError(f"the database has no study '{name}'; {known}.")
    optuna = import_optuna()
    from efficientnetv2.nas.samplers import BottomQuartilePruner, create_sampler  # With Optuna, an extra.

    pruner = BottomQuartilePruner() if config.prune else optuna.pruners.NopPruner()
    sampler = create_sampler(config.sampler, config.space, seed=config.seed)
    study = storage.retry(
        lambda: optuna.load_study(study_name=name, storage=storage.rdb, sampler=sampler, pruner=pruner)
    )
    return OpenStudy(name, storage, config, study)
