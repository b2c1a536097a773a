"""Arguments that several functions of the API share, checked and in the words of the commands.

Results may not go inside the dataset, over its table, or over a file that is no such result.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar, get_args

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import refuse_missing
from efficientnetv2.data.image_folder import lists_images
from efficientnetv2.data.shards.index import INDEX_NAME
from efficientnetv2.data.shards.records import is_shards
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import CropMode
from efficientnetv2.progressive.schedule import IMAGE_SIZE
from efficientnetv2.training import recipe_fields
from efficientnetv2.training.overrides import TrainOverrides, with_lr
from efficientnetv2.training.recipe import MAX_COUNT, Recipe
from efficientnetv2.training.run_dir import RUNS
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.utils.distributed import world_from_env
from efficientnetv2.utils.errors import (
    DivergedError,
    InputError,
    MemoryShortError,
    ReaderKilledError,
    did_you_mean,
    format_rule,
)
from efficientnetv2.utils.processes import rank_and_world_size
from efficientnetv2.utils.shell import CALL, shell_join

_logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

PathLike = str | os.PathLike[str]

# Names of timm, Ultralytics, Keras and Hugging Face whose nearest spelling here is another argument. Ours.
_OTHER_NAMES = {
    **dict.fromkeys(("imgsz", "img_size"), "image_size"),
    **dict.fromkeys(("batch", "per_device_train_batch_size"), "batch_size"),
    "num_train_epochs": "epochs",
    **dict.fromkeys(("lr0", "learning_rate"), "lr"),
    **dict.fromkeys(("out", "output_dir", "project", "name"), "output"),
    "arch": "model",
    "pretrained": "weights",
    "num_workers": "workers",
}
_TO_FILE = {
    "data": "Write a table to a file: table.to_csv('images.csv', index=False)",
    "model": "Write a model to a file: efficientnetv2.save('model.safetensors', model)",
}
_TO_PREDICT = "Your own module predicts with efficientnetv2.Predictor(efficientnetv2.create(module))"


class LabelArguments(TypedDict, total=False):
    """How the labels of a dataset are read."""

    path_column: str
    label_column: str
    group_column: str  # equal values stay on one side of a split, such as a patient
    labels: Literal["exact", "casefold"]  # casefold merges what differs by case, outer spaces or Unicode encoding
    label_separator: str  # text between the labels of an image that has several, such as ";"
    layout: Literal["auto", "classes", "splits"]  # meaning of sub-folders


class TableArguments(LabelArguments, total=False):
    """The same for datasets that may have rasters, and of which classes may be left out."""

    bands: Sequence[int] | str  # of rasters, from 1, such as (4, 3, 2), or "all"
    nodata: float | Sequence[float] | str  # of rasters: missing data besides the declared value, or "none"
    min_images_per_class: int  # classes with fewer training images are left out


class Overrides(TableArguments, total=False):
    """What `train`, `cross_validate` and `estimate` take besides their own arguments."""

    model: PathLike | Architecture  # a name, an architecture, or a file. Default: the model of the weights
    weights: PathLike  # "auto", "none", a name, a model file or a run
    epochs: float
    minutes: float  # train as long as fits into this time, report included
    image_size: int  # of the last stage; earlier stages scale with it
    batch_size: int  # the learning rate follows, unless `lr` is given
    lr: float
    crop_mode: CropMode
    seed: int
    cache: Literal["ram", "disk"]
    settings: Mapping[str, Any]  # other fields of the recipe, such as {"progressive.stages": 1}
    memory_gib: float
    strict: bool  # stop at the first unreadable image instead of skipping it


def api(function: Callable[P, R]) -> Callable[P, R]:
    """The function; its call is recorded in what it writes, and whatever a caller can fix is an InputError."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if function.__name__ != "train" and world_from_env().is_distributed:  # only the first would have a result
            name = f"{function.__name__}()"
            raise InputError(f"{name} runs in one process, unlike train(). Start the script without torchrun.")
        given = [*map(_shown, args), *(f"{name}={_shown(value)}" for name, value in kwargs.items())]
        token = CALL.set(f"efficientnetv2.{function.__name__}({', '.join(given)})")
        try:
            # Seeded by what is computed here, and the caller's again afterwards. CUDA is not started for that.
            gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
            # A default device is left as it is where it is the CPU: a mode takes time at each operation.
            on_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
            with torch.random.fork_rng(devices=gpus), torch.enable_grad(), on_cpu:
                return function(*args, **kwargs)
        except ValidationError as error:
            raise InputError("; ".join(map(format_rule, error.errors()))) from error
        except (KeyboardInterrupt, DivergedError, MemoryShortError, ReaderKilledError) as stop:
            _release(stop)
            raise
        finally:
            CALL.reset(token)

    return called


def _release(stop: BaseException) -> None:
    """Free the variables of the stopped calls: a notebook keeps the exception, and with it the model and workers."""
    cause: BaseException | None = stop
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def run_arguments(
    function: Callable[..., Any],
    data: PathLike,
    recipe: PathLike | Recipe | None,
    overrides: Mapping[str, Any],
    *,
    output: PathLike | None,
    device: str | torch.device,
    workers: int | None,
    resume: bool = False,
    baseline: PathLike | None = None,
) -> tuple[TrainOverrides, DataConfig, RunOptions]:
    """What decides a run, its dataset, and where it runs; arguments are those of ``function``.

    Raises:
        InputError: One is unknown, of a wrong type or out of range, or two of them contradict each other.
    """
    refuse_unknown(function, overrides, Overrides)
    if not isinstance(resume, bool):
        raise InputError(f"`resume` must be True or False, not {resume!r}. Name the run in `output`.")
    given = {name: value for name, value in overrides.items() if value is not None}
    lr = number("lr", given.get("lr"), 0, whole=False)
    settings = with_lr(settings_of(given.get("settings", {})), None if lr is None else float(lr))
    model = given.get("model")
    if isinstance(model, nn.Module):
        fix = "Save it (efficientnetv2.save), and give the file as `weights`."
        if _is_own(model):
            fix = "Your own module trains in your own loop, see docs/how-to/own-training-loop.md."
        raise InputError(f"`model` must be a path or a name, not {type(model).__name__}. {fix}")
    changes = TrainOverrides(
        model=model if model is None or isinstance(model, Architecture) else path_text("model", model),
        recipe=recipe if recipe is None or isinstance(recipe, Recipe) else path_text("recipe", recipe),
        weights=path_text("weights", given["weights"]) if "weights" in given else None,
        epochs=number("epochs", given.get("epochs"), 0, whole=False),
        minutes=number("minutes", given.get("minutes"), 0, whole=False),
        image_size=number("image_size", given.get("image_size"), *IMAGE_SIZE),
        batch_size=number("batch_size", given.get("batch_size"), 1, MAX_COUNT),
        crop_mode=choice("crop_mode", given.get("crop_mode"), get_args(CropMode)),
        seed=number("seed", given.get("seed"), -math.inf),
        cache=choice("cache", given.get("cache"), ("ram", "disk")),
        settings=settings,
    )
    options = RunOptions(
        path_of("output", output),
        resume,
        str(device),
        number("workers", workers, 0),
        memory_gib=number("memory_gib", given.get("memory_gib"), 0, whole=False),
        strict=bool(given.get("strict", False)),
        against=path_of("baseline", baseline),
    )
    return changes, source_of(data, given), options


def settings_of(settings: Mapping[str, Any], name: str = "settings") -> tuple[str, ...]:
    """Fields of a recipe as ``TrainOverrides`` takes them; InputError if a value is not plain."""
    if not isinstance(settings, Mapping):
        raise InputError(f"`{name}` must be a mapping such as {{'patience': 5}}, not {settings!r}.")
    try:
        plain = json.loads(json.dumps(dict(settings), default=lambda value: value.item()))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"`{name}` must be numbers, text, lists or mappings ({error}).") from None
    return tuple(f"{field}={recipe_fields.format_value(value)}" for field, value in plain.items())


def source_of(data: PathLike, table: Mapping[str, Any]) -> DataConfig:
    """A dataset, and how to read it."""
    given = {name: table[name] for name in TableArguments.__annotations__ if table.get(name) is not None}
    if "min_images_per_class" in given:
        given["min_images_per_class"] = number("min_images_per_class", given["min_images_per_class"], 0)
    for name in ("path_column", "label_column", "group_column", "label_separator"):
        if not isinstance(given.get(name, ""), str):
            fix = " Join several columns into one first." if isinstance(given[name], Sequence) else ""
            raise InputError(f"`{name}` must be text, not {given[name]!r}.{fix}")
    for name in ("bands", "nodata"):
        if name in given:
            given[name] = joined(given[name])
    return DataConfig(path_text("data", data), **given)


def joined(values: Any) -> str:
    """A value, or several with commas, as on the command line."""
    return (
        values if isinstance(values, str) else ",".join(map(str, values if isinstance(values, Sequence) else [values]))
    )


def refuse_unknown(function: Callable[..., Any], overrides: Mapping[str, Any], known: type) -> None:
    """Refuse names in ``overrides`` that are not of the TypedDict ``known``, and suggest the nearest argument."""
    names = [*list(signature(function).parameters)[:-1], *known.__annotations__]
    for name in (name for name in overrides if name not in known.__annotations__):
        meant = _OTHER_NAMES.get(name)
        if "settings" in names and meant not in names and (field := _recipe_field(name)) is not None:
            hint = f". It is a field of the recipe: pass settings={{{field!r}: ...}}"
        else:
            hint = f"; did you mean '{meant}'?" if meant in names else did_you_mean(name, names)
            hint += f" See help(efficientnetv2.{function.__name__})." if hint == "." else ""
        raise InputError(f"{function.__name__}() has no argument '{name}'{hint}")


def _recipe_field(name: str) -> str | None:
    known = [field.name for field in recipe_fields.all_fields()]
    return name if name in known else recipe_fields.canonical_field(name)


def number(
    name: str, value: Any, least: float, most: float = math.inf, *, whole: bool = True, default: float | None = None
) -> Any:
    """A number that was checked; None becomes ``default``."""
    if value is None:
        return default
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise InputError(f"`{name}` must be {'an integer' if whole else 'a number'}, not {value!r}.")
    if not least <= value <= most or abs(value) == math.inf:
        rule = f"at least {least:,}" if most == math.inf else f"between {least:,} and {most:,}"
        rule = f"at most {most:,}" if least == -math.inf else rule
        raise InputError(f"`{name}` must be {rule}, not {value:,}.")
    return value


def choice(name: str, value: str | None, choices: Sequence[str]) -> str | None:
    """A value that was checked; None stays None."""
    if value is not None and value not in choices:
        near = did_you_mean(str(value), choices)
        raise InputError(f"`{name}` must be one of {', '.join(choices)}, not {value!r}{near}")
    return value


def _is_own(model: object) -> bool:
    """Whether a module is neither ours nor of another library by name."""
    if isinstance(model, WrappedModel):
        return model.source is None
    return isinstance(model, nn.Module) and not isinstance(model, Network)


def path_text(name: str, value: Any) -> str:
    """A path, a URL or a name as text, "~" resolved."""
    if not isinstance(value, str | os.PathLike):
        kind, fix = type(value).__name__, "" if isinstance(value, int) else _TO_FILE.get(name, "")
        if fix and name == "data" and not hasattr(value, "to_csv"):  # not a table
            fix = "Write a list of files to a CSV. To predict images in memory: efficientnetv2.Predictor(MODEL)(images)"
        if name == "model" and _is_own(value):
            fix = _TO_PREDICT
        raise InputError(f"`{name}` must be a path or a name, not {kind}. {fix}".rstrip())
    return os.path.expanduser(os.fspath(value))


def path_of(name: str, value: Any) -> Path | None:
    """A path, "~" resolved; None stays None."""
    return None if value is None else Path(path_text(name, value))


def _plain(value: Any) -> Any:
    """A value without types of NumPy and paths, also within lists and mappings."""
    if isinstance(value, Mapping):
        return {_plain(name): _plain(one) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    value = value.item() if isinstance(value, np.generic) else value
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _shown(value: Any) -> str:
    """A value as Python text; "..." for objects that have none."""
    text = repr(_plain(value))
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return repr(str(value)) if isinstance(value, torch.device) else "..."
    return text


def is_inside_data(data: str, path: Path) -> bool:
    """Whether a path, which need not exist, is in the folder of a dataset."""
    source = Path(os.path.expanduser(data))
    return os.path.isdir(source) and path.resolve().is_relative_to(source.resolve())


def refuse_inside_data(data: str, out: Path, option: str, *, command: str | None = None) -> None:
    """Refuse results in a class folder of the dataset, where they would become a part of it.

    So would they in a folder of tars without an index, which is known by having nothing else. Next to ``train/`` and
    ``val/``, next to an index or a table, any file is valid. ``option`` gives ``out``; where the user gave none,
    ``command`` has chosen it in the working directory.
    """
    source = Path(os.path.expanduser(data))
    if not is_inside_data(data, out):
        return
    if shards := is_shards(data):
        if is_shards(str(source / INDEX_NAME)):
            return
    elif not lists_images(source, out):
        return
    why = "which must have only tars to be read as shards" if shards else "whose folders are its classes"
    subject, fix = f"{option} {out}", "Give a folder outside."
    if command is not None:
        subject = f"the folder of the results, {out},"
    if command is not None and Path.cwd().is_relative_to(source.resolve()):
        up = os.path.relpath(source.resolve().parent)
        name = shell_join([source.resolve().name])
        fix = f"Use: cd {up} && effnetv2 {command} {name}/. Or give {option}."
    raise InputError(f"{subject} is in DATA {data}, {why}. {fix}")


def validate_run_paths(data: str, out: Path | None, command: str) -> None:
    """Refuse missing data, and a run directory (None: in ``runs/``) in it, before anything is loaded or downloaded."""
    if rank_and_world_size() is None:  # else the first process reports it for all, later
        refuse_missing(data)
        refuse_inside_data(data, out or RUNS, "`output`", command=command if out is None else None)


def refuse_replacing_data(data: str, out: Path, names: Iterable[str], option: str) -> None:
    """Refuse a folder where a result, of one of these names, would replace the dataset itself."""
    source, folder = Path(os.path.expanduser(data)), out.resolve()
    if not os.path.exists(source) or not source.resolve().is_relative_to(folder):
        return
    parts = source.resolve().relative_to(folder).parts
    if parts and parts[0] in names:
        raise InputError(f"{option} {out} would replace {parts[0]}, DATA {data}. Give another folder.")


def note_replaced(file: Path) -> None:
    """Log that a file will be replaced, if it exists."""
    if file.exists():
        _logger.info(f"{file} exists and will be replaced.")


def refuse_foreign_file(
    file: Path, option: str, is_ours: Callable[[Path], bool], why: str, fix: str = "Give another name, or remove it"
) -> None:
    """Refuse to replace a file that, by its content, the same command has not written; ``why`` follows its name."""
    if file.exists() and not is_ours(file):
        raise InputError(f"{option} {file} exists, and {why}. {fix}.")
