"""The configuration of an architecture search, resolved from its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import ValidationError

from efficientnetv2.architectures.registry import NAMES, get_architecture, is_architecture_file
from efficientnetv2.data.config import DataConfig
from efficientnetv2.nas.objective import Reward
from efficientnetv2.nas.space import Space, paper_space, require_image_size, small_space, space_around
from efficientnetv2.nas.storage import import_optuna, sqlite_file
from efficientnetv2.nas.study import RequestedConfig
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes.nas_proxy import CHOOSING
from efficientnetv2.training.resolve_image_sizes import requested_px
from efficientnetv2.utils.errors import InputError, did_you_mean, format_rule
from efficientnetv2.utils.io import read_yaml
from efficientnetv2.utils.shell import option_args, shell_join
from efficientnetv2.workflows.arguments import choice


class Preset(NamedTuple):
    """Defaults of a search: the names of its space and recipe, and the number of trials."""

    space: str
    recipe: str
    trials: int


# The paper's: at most 1,000 samples of about 10 epochs (arXiv:2104.00298, section 3.3). The small one: ours.
PRESETS = {"small": Preset("small", "proxy_small", 100), "paper": Preset("paper", "proxy_paper", 1000)}

# The exponents of a reward, and their options.
_EXPONENTS = {
    "step_seconds": "w",
    "parameters": "v",
    "inference_seconds": "inference_exponent",
    "peak_memory_bytes": "memory_exponent",
}

# Recipe fields that trials do not support, from any source, and why.
_UNSUPPORTED = {
    "patience": "a trial trains to its end, unless it is pruned",
    "eval_image_size_candidates": "a trial is evaluated at one size (`eval_image_size`)",
    "stage_time": "the stages of a trial are not timed (`progressive.stage_fractions` sets them)",
    "monitor": "a trial keeps the last weights, and a search rewards top-1",
    "checkpoint_stages": "the step that is timed keeps its activations",
    "global_pool": "the step that is timed has average pooling",
    "eval_split": "a trial is evaluated on images of the search, never on val or test",
    "cache_resolution": "a trial reads the image files",
    "compile": "the step that is timed is not compiled",
}
# Fields that `settings` cannot set. Those of a recipe do not matter, or are refused for another reason.
_NOT_SETTABLE = {
    "model": "the space determines the architectures (`space`)",
    "multilabel": "the images of a search have one label each",
    "patience": _UNSUPPORTED["patience"],
    "eval_image_size_candidates": _UNSUPPORTED["eval_image_size_candidates"],
}


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and how a trial trains. None takes the value of the preset or the recipe."""

    preset: Literal["small", "paper"] = "small"
    space: str | None = None
    sampler: str | None = None
    w: float | None = None
    v: float | None = None
    inference_exponent: float | None = None
    memory_exponent: float | None = None
    prune: bool = True
    step_time: Literal["measured", "cached"] = "measured"
    recipe: str | None = None
    epochs: float | None = None
    image_size: int | None = None
    batch_size: int | None = None
    seeds: str = "0"
    seed: int = 0
    settings: Sequence[str] | None = None


@dataclass(frozen=True)
class WorkerOptions:
    """The share of the machine that a worker uses. ``wait`` is in minutes."""

    device: str = "auto"
    workers: int | None = None
    threads: int | None = None
    memory_gib: float | None = None
    strict: bool = False
    wait: float = 10.0

    def resume_command(self, study: Path) -> str:
        """The command that resumes a study with the same options."""
        options = vars(self) | {"device": None if self.device == "auto" else self.device, "wait": None}
        return shell_join(["effnetv2", "search", "resume", str(study), *option_args(**options)])


@dataclass(frozen=True, eq=False)
class SearchConfig:
    """A search, with the database at ``storage`` (None: in the folder), by this worker for so many ``minutes``."""

    study: Path
    source: DataConfig
    options: SearchOptions
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    storage: str | None = None
    requested_trials: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        choice("preset", self.options.preset, tuple(PRESETS))
        choice("step_time", self.options.step_time, ("measured", "cached"))
        if self.source.label_separator is not None:
            raise InputError(
                f"`label_separator` {self.source.label_separator!r}: search takes images of one label each. Remove it, "
                f"or train a published model: effnetv2 train {shell_join(self.source.words)}"
            )
        if self.storage is not None:
            sqlite_file(self.storage)
        import_optuna()  # An extra; the error has the command that installs it.
        from efficientnetv2.nas.samplers import create_sampler

        create_sampler(self.options.sampler or "policy", self.space, seed=self.options.seed)
        first_size = round(requested_px(self.recipe)[0])
        require_image_size(self.space, min(first_size, self.recipe.eval_image_size or first_size))
        _ = self.reward, self.seeds

    @property
    def trials(self) -> int:
        """Number of trials."""
        return self.requested_trials or PRESETS[self.options.preset].trials

    @cached_property
    def space(self) -> Space:
        """The architectures to choose from."""
        return load_space(self.options.space or PRESETS[self.options.preset].space)

    @cached_property
    def reward(self) -> Reward:
        """What is maximized."""
        exponents = {name: getattr(self.options, option) for name, option in _EXPONENTS.items()}
        given = {name: value for name, value in exponents.items() if value is not None}
        try:
            return Reward(**given)
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0])
            raise InputError(
                f"`{_EXPONENTS[name]}` {given[name]:g}: the exponent of {name} {format_rule(problem)}, or a higher "
                "cost would be rewarded."
            ) from error

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs of a trial."""
        try:
            seeds = tuple(map(int, self.options.seeds.split(",")))
        except ValueError:
            raise InputError(
                f"`seeds` {self.options.seeds} must be whole numbers with commas between them, such as 0,1,2."
            ) from None
        if len(set(seeds)) < len(seeds):
            raise InputError(f"`seeds` {self.options.seeds} has a seed twice. Give each seed once.")
        return seeds

    @cached_property
    def recipe(self) -> Recipe:
        """The requested recipe of a trial."""
        options = self.options
        overrides = TrainOverrides(
            recipe=options.recipe or PRESETS[options.preset].recipe,
            epochs=options.epochs,
            image_size=options.image_size,
            batch_size=options.batch_size,
            settings=tuple(options.settings or ()),
        )
        pairs = [setting.partition("=") for setting in options.settings or ()]
        assigned = {name.strip(): value.strip() for name, _, value in pairs}
        for name, value in assigned.items():
            if value != "null" and name in _NOT_SETTABLE:
                raise InputError(f"`{name}={value}`: {_NOT_SETTABLE[name]}. Leave it out.")
        if assigned.get("cuda_graphs", "false").lower() != "false":
            value = assigned["cuda_graphs"]
            raise InputError(f"`cuda_graphs={value}`: the steps of a search are timed without them. Leave it out.")
        recipe, _ = requested_recipe(overrides, torch.device("cpu"))
        if recipe.minival in (None, "auto") and "minival" in assigned:
            value = assigned["minival"]
            raise InputError(
                f"`minival={value}`: a search selects architectures on minival, which needs a number or a fraction. "
                f"Leave it out, or use `minival={CHOOSING}`."
            )
        if recipe.weights not in ("none", "auto"):
            raise InputError(
                f"the recipe {recipe.name} sets weights={recipe.weights}, but a search trains "
                "from scratch. Use `weights=none`."
            )
        _require_supported(recipe)
        minival = CHOOSING if recipe.minival in (None, "auto") else recipe.minival
        model = recipe.model if options.recipe is None else "auto"
        fixed = {"weights": "none", "compile": False, "global_pool": None}
        return recipe.model_copy(update={"model": model, "minival": minival, **fixed})

    @property
    def requested(self) -> RequestedConfig:
        """What a study is compared with."""
        return RequestedConfig(
            space=self.space,
            reward=self.reward,
            recipe=self.recipe,
            seeds=self.seeds,
            step_time=self.options.step_time,
            sampler=self.options.sampler or "policy",
            seed=self.options.seed,
            prune=self.options.prune,
        )


def _require_supported(recipe: Recipe) -> None:
    """Refuse a recipe with a field that trials would ignore."""
    for name, reason in _UNSUPPORTED.items():
        value, default = getattr(recipe, name), Recipe.model_fields[name].default
        # Of a run that has measured stage_time, progressive.stage_fractions is read.
        is_measured = name == "stage_time" and recipe.progressive.stage_fractions is not None
        # A run from pretrained weights stores their pooling, avg.
        is_usual = (name == "compile" and value is False) or (name == "global_pool" and value == "avg")
        if value != default and not is_measured and not is_usual:
            usual = "null" if default is None else default
            raise InputError(
                f"the recipe {recipe.name} sets {name}={value}, but {reason}. Use `{name}={usual}`, or leave it out."
            )


def load_space(name: str) -> Space:
    """A space by its name: ``small``, ``paper``, a published model, or a file of `Space.to_json`. Raises InputError."""
    if name in ("small", "paper"):
        return small_space() if name == "small" else paper_space()
    if is_architecture_file(name):
        return Space.from_json(read_yaml(Path(name), "`space`"))
    if name in NAMES:
        return space_around(get_architecture(name))
    raise InputError(
        f"`space` {name}: there is no such space{did_you_mean(name, ['small', 'paper', *NAMES])} Pass small, paper, a "
        "published model (effnetv2 models), or a file."
    )
