"""A study: what decides it, written down where all its workers find it, and opened only by those who mean the same.

A study's folder holds what this machine knows of it: ``study.yaml`` (the plan), ``pictures.csv`` (which pictures train,
choose and judge), ``study.db`` (the trials, unless they lie on a server), ``step_times.json``, ``log.txt``, and what
``search show`` and ``search export`` write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efficientnetv2.nas.latency import Pace
from efficientnetv2.nas.objective import Measurement, Reward
from efficientnetv2.nas.proxy_task import StepTimeBy
from efficientnetv2.nas.space import Space, difference
from efficientnetv2.nas.storage import Storage, hidden, optuna
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import diff_recipes
from efficientnetv2.utils.errors import InputError, first_error

if TYPE_CHECKING:
    from optuna import Study

PLAN = "plan"  # the study's attribute that holds it
TRIALS = "trials"  # how many it is to have


class Plan(BaseModel):
    """All that decides what a study finds.

    Args:
        space: the networks to choose from.
        reward: what they are worth.
        recipe: of a trial, settled but for what depends on the network.
        asked: the recipe as it was asked for.
        seeds: of a trial's runs.
        step_time: how its step time is had.
        sampler: who says what is tried next.
        seed: of the sampler.
        prune: whether hopeless trials are stopped.
        pictures: digest of paths, labels and splits.
        bands: numbers of the rasters' bands that are the channels; empty where all are read as ordinary pictures; None
            of studies begun before they were kept.
        class_names: of them.
        hardware: that the step times are of.
        reference: the backbone's costs, over which the reward takes those of the others.
        reference_group: the pictures of a group with which the backbone's step was timed, and is timed again beside the
            others'; None of studies begun before it was kept, where memory decides each time.
        reference_at_a_time: how many of these groups ran in a pass; None of studies begun before it was kept, which
            timed one after another.
        version: of this package, that measured the reference; None of studies begun before it was kept.
        format: of this plan; another one is of another version of the program.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    space: Space
    reward: Reward
    recipe: Recipe
    asked: Recipe
    seeds: tuple[int, ...] = Field(min_length=1)
    step_time: StepTimeBy
    sampler: str
    seed: int
    prune: bool
    pictures: str
    bands: tuple[int, ...] | None = None
    class_names: tuple[str, ...]
    hardware: str
    reference: Measurement
    reference_group: int | None = None
    reference_at_a_time: int | None = None
    version: str | None = None

    @property
    def pace(self) -> Pace:
        """At which seconds are told, by every worker and at any time: the backbone takes what the reference says."""
        reference = self.reference
        assert reference.step_seconds is not None, "it was measured when the study began"
        grouped = self.recipe.model_copy(
            update={"group_images": self.reference_group or self.recipe.group_images}
        )
        return Pace(
            self.space.backbone,
            grouped,
            reference.step_seconds,
            reference.inference_seconds,
            self.reference_at_a_time or 1,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` gives an equal ``Plan``."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, plain: Any, *, where: str) -> Plan:
        """Checked as if it had been made by hand.

        Raises:
            InputError: it is none, or of another version of this program.
        """
        try:
            return cls.model_validate(plain)
        except ValidationError as error:
            raise InputError(
                f"{where} holds a study that can't be read ({first_error(error.errors())}); it was made by another "
                "version of this program, or changed by hand."
            ) from error


@dataclass(frozen=True)
class Wanted:
    """What is asked of a study: a part of its plan.

    Args:
        space, reward, seeds, step_time, sampler, seed, prune, pictures, bands, hardware: see ``Plan``; None where
            nothing is said, and the study's own holds.
        recipe: as it is asked for.
    """

    space: Space | None = None
    reward: Reward | None = None
    recipe: Recipe | None = None
    seeds: tuple[int, ...] | None = None
    step_time: StepTimeBy | None = None
    sampler: str | None = None
    seed: int | None = None
    prune: bool | None = None
    pictures: str | None = None
    bands: tuple[int, ...] | None = None
    hardware: str | None = None


def refuse_other(plan: Plan, wanted: Wanted, where: str, *, resumed: bool = False) -> None:
    """A study is gone on with as it was begun, or not at all.

    Args:
        plan: of the study.
        wanted: what is asked of it.
        where: it lies.
        resumed: it is gone on with already as it was begun, and what differs is what was found.

    Raises:
        InputError: naming all that differs.
    """
    differing = []
    if wanted.space is not None and (space := difference(wanted.space, plan.space)) is not None:
        differing.append(f"space: {space}")
    if wanted.recipe is not None:
        differing += [f"recipe: {one}" for one in diff_recipes(plan.asked, wanted.recipe, leave_open=set())]
    for name in ("reward", "seeds", "step_time", "sampler", "seed", "prune"):
        there, here = getattr(plan, name), getattr(wanted, name)
        if here is not None and here != there:
            differing.append(f"{name.replace('_', ' ')}: {there} there, {here} here")
    if wanted.pictures not in (None, plan.pictures):
        differing.append("data: other pictures, labels or splits")
    if None not in (plan.bands, wanted.bands) and wanted.bands != plan.bands:
        there, here = (",".join(map(str, one or ())) or "none" for one in (plan.bands, wanted.bands))
        differing.append(f"bands of the rasters (--bands): {there} there, {here} here")
    as_begun = "Go on with it as it was begun (effnetv2 search resume)"
    as_it_was = "Bring back the pictures that it was begun with, which its pictures.csv lists"
    ways = [as_it_was if resumed else as_begun] if differing else []
    if wanted.hardware not in (None, plan.hardware):
        ways.append(
            "Work for it on hardware such as it was begun on, with as many threads and the same PyTorch"
        )
        differing.append(f"hardware, and so step times: {plan.hardware} there, {wanted.hardware} here")
    if differing:
        raise InputError(
            f"{where} holds another study: {'; '.join(differing)}. {'. '.join(ways)}, or begin another under another "
            "name."
        )


@dataclass(frozen=True)
class Opened:
    """A study whose database is open.

    Args:
        name: of the study.
        storage: its database.
        plan: what decides it.
        study: Optuna's, with the plan's sampler and pruner.
    """

    name: str
    storage: Storage
    plan: Plan
    study: Study

    @property
    def target(self) -> int:
        """How many trials it is to have."""
        rdb = self.storage.rdb
        return int(
            self.storage.patiently(
                lambda: rdb.get_study_user_attrs(rdb.get_study_id_from_name(self.name))[TRIALS]
            )
        )

    def extend(self, trials: int) -> None:
        """Let it have so many trials; those that it has had stay.

        Raises:
            InputError: it has had more.
        """
        rdb = self.storage.rdb

        def change() -> None:
            with self.storage.turn():
                study_id = rdb.get_study_id_from_name(self.name)
                begun = len(rdb.get_all_trials(study_id, deepcopy=False))
                if trials < begun:
                    raise InputError(
                        f"--trials {trials}: the study has {begun} already. Give at least as many."
                    )
                rdb.set_study_user_attr(study_id, TRIALS, trials)

        self.storage.patiently(change)


def plan_of(storage: Storage, name: str) -> Plan | None:
    """What decides a study of a database; None if it has none of that name.

    Raises:
        InputError: it has one that no search of this program made, or one that can't be read.
    """
    rdb = storage.rdb

    def look() -> Any:
        names = {one.study_name for one in rdb.get_all_studies()}
        if name not in names:
            return None
        plain = rdb.get_study_user_attrs(rdb.get_study_id_from_name(name)).get(PLAN)
        if plain is None and _half_made(name) not in names:
            raise InputError(
                f"{hidden(storage.url)} holds a study '{name}' that effnetv2 search did not make: it has no plan. "
                "Nothing was written into it. Give the study another name (the last part of its folder) or another "
                "database (--storage)."
            )
        return plain

    plain = storage.patiently(look)
    return None if plain is None else Plan.from_json(plain, where=f"the study '{name}'")


def _half_made(name: str) -> str:
    """The study that stands in a database while the one of that name is being made."""
    return f"{name} (being made)"


def create(storage: Storage, name: str, plan: Plan, *, trials: int) -> Plan:
    """Write a new study down; if another worker has done so a moment ago, its plan holds.

    Args:
        storage: open.
        name: of the study.
        plan: what decides it.
        trials: how many it is to have.

    Returns:
        The plan that the study has.
    """
    rdb, package = storage.rdb, optuna()

    def write() -> None:
        with storage.turn():
            names = {one.study_name for one in rdb.get_all_studies()}
            # A mark comes first and goes last: a study without a plan is ours to make whole only beside it.
            mark = _half_made(name)
            if plan_of(storage, name) is None:
                for one in [one for one in (mark, name) if one not in names]:
                    rdb.create_new_study([package.study.StudyDirection.MAXIMIZE], one)
                study_id = rdb.get_study_id_from_name(name)
                rdb.set_study_user_attr(study_id, TRIALS, trials)
                rdb.set_study_user_attr(study_id, PLAN, plan.to_json())
                names.add(mark)
            if mark in names:
                rdb.delete_study(rdb.get_study_id_from_name(mark))

    storage.patiently(write)
    there = plan_of(storage, name)
    assert there is not None, "it has just been written"
    return there


def opened(storage: Storage, name: str) -> Opened:
    """A study of a database.

    Raises:
        InputError: there is none of that name; names those that there are.
    """
    plan = plan_of(storage, name)
    if plan is None:
        there = [one.study_name for one in storage.patiently(storage.rdb.get_all_studies)]
        known = f"it has {', '.join(sorted(there))}" if there else "it is empty"
        raise InputError(f"the database has no study '{name}'; {known}.")
    package = optuna()
    from efficientnetv2.nas.samplers import (
        WorstQuarter,  # with Optuna, which is an extra
        sampler,
    )

    pruner = WorstQuarter() if plan.prune else package.pruners.NopPruner()
    drawn = sampler(plan.sampler, plan.space, seed=plan.seed)
    study = storage.patiently(
        lambda: package.load_study(study_name=name, storage=storage.rdb, sampler=drawn, pruner=pruner)
    )
    return Opened(name, storage, plan, study)
