"""Share a model on the Hugging Face Hub, in timm's layout: `efficientnetv2.push`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, get_token
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from markupsafe import Markup

from efficientnetv2.evaluation.evaluation_result import file_hashes
from efficientnetv2.evaluation.html import render
from efficientnetv2.models import model_file
from efficientnetv2.models.adapt import classifier_layers
from efficientnetv2.models.conversion import convert
from efficientnetv2.models.conversion.timm_config import CONFIG, WEIGHTS
from efficientnetv2.models.conversion.weight_reader import is_model_file
from efficientnetv2.models.conversion.weight_writer import in_timm
from efficientnetv2.models.efficientnet import EfficientNet, require_classes
from efficientnetv2.models.ensemble import ensemble_members
from efficientnetv2.models.library_models import is_library_model
from efficientnetv2.models.pretrained import get_weights, weight_names
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.initial_weights import is_bundled
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.io import entry_names, output_dir, read_object, write_text_atomically
from efficientnetv2.utils.processes import call_with_timeout
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.arguments import PathLike, api, path_of, path_text

_FILES = (CONFIG, WEIGHTS, "README.md")
# What the card reads of a report, besides the metrics.
_REPORT_KEYS = (
    "num_images", "data", "evaluated_on", "optimistic", "intervals", "bootstrap_unit", "per_class", "sha256"
)  # fmt: skip
_BUNDLED = "bundled with efficientnetv2"
_PATIENCE_S = 30.0  # for a reply of the hub about a repository. Ours
TimmModel = EfficientNet | WrappedModel
# Largest difference of logits as a fraction of the largest logit; wrong padding gives more than 0.01. Ours.
_TOLERANCE = 1e-3
_METRICS = {
    "top1": "Top-1 accuracy", "top5": "Top-5 accuracy", "macro_f1": "Macro-F1", "f1_macro": "Macro-F1",
    "balanced_accuracy": "Balanced accuracy", "mean_average_precision": "Mean average precision",
    "f1_micro": "Micro-F1", "ece": "Expected calibration error",
    "majority_top1": "Baseline: top-1 of the most frequent class",
    "linear_probe_top1": "Baseline: top-1 of a linear probe on the initial weights",
}  # fmt: skip


@dataclass(frozen=True)
class Push:
    """A model in timm's layout.

    Example::

        import efficientnetv2 as ev2

        pushed = ev2.push("runs/mine", output="for_the_hub")
        pushed.folder, pushed.notes

    Attributes:
        url: Page of the repository on the hub. None if nothing was uploaded.
        folder: Folder of the files. None if none was given.
        notes: What timm does not read from the files, a sentence each.
        opens_in_transformers: Whether the pipeline of transformers, which reads RGB images, opens the files.
    """

    url: str | None
    folder: Path | None
    notes: tuple[str, ...]
    opens_in_transformers: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "folder": self.folder and str(self.folder)}


@api
def push(
    model: PathLike,
    repo: str | None = None,
    *,
    output: PathLike | None = None,
    evaluation: PathLike | None = None,
    license: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> Push:
    """Share a model on the Hugging Face Hub, so that timm and transformers open it by name.

    The files are config.json, model.safetensors and a model card, README.md. If timm is installed, its logits are
    compared with those of the model first. A temperature is multiplied into the classifier, so the probabilities are
    those of `predict`. Of a model with test-time augmentation, it is left out.

    Example::

        import efficientnetv2 as ev2

        ev2.push("runs/mine", output="for_the_hub")  # ev2.push("runs/mine", "owner/name") uploads

    Args:
        model: A run or a model file.
        repo: Repository, "owner/name", which is created if it does not exist. None uploads nothing.
        output: Folder for the files. None keeps no files here.
        evaluation: Folder that `evaluate` wrote, for the metrics of the card. Default: the report of the run.
        license: License of the model by its name on the hub, such as "apache-2.0". None states no license.
        private: Make a new repository private. An existing public one is refused.
        overwrite: Replace the files in the repository, by a new commit, and in ``output``.

    Raises:
        InputError: timm has no such model, the hub refuses the upload, or an argument that the caller can fix.
    """
    path, target = Path(path_text("model", model)), path_of("output", output)
    if repo is None and target is None:
        raise InputError("`repo` and `output` are both missing. Give at least one of them.")
    if target is not None and target.exists():
        if not target.is_dir() or is_model_file(target / WEIGHTS):
            raise InputError(f"`output` {target} is a file or a run. Give another folder.")
        present = {name for name in entry_names(target) if not name.startswith(".hub.")}  # of a killed process
        if present and not present.issuperset(_FILES):
            raise InputError(f"`output` {target} exists and is not a folder of `push`. Give another folder.")
        if present and not overwrite:
            raise InputError(f"`output` {target} exists. Give another folder, or replace its files: `overwrite=True`.")
    hub = HfApi(library_name="efficientnetv2")
    parent = None if repo is None else _last_commit(hub, repo, private=private, overwrite=overwrite)
    network = _load(path)
    report = _report(path, network, path_of("evaluation", evaluation))
    # An existing folder may be on another disk than its parent.
    place = target if target is None or target.is_dir() else target.parent
    with (
        signals_as_ctrl_c(),
        output_dir(place, "`output`") if place else nullcontext(),
        TemporaryDirectory(dir=place, prefix=".hub.", suffix=".partial") as scratch,
    ):
        folder = Path(scratch) / "files"
        notes = convert.write(folder, network, "timm")
        if (tta := network.preprocessing.tta) != "none":
            notes += (f"the metrics are of means over several views of an image (tta '{tta}')",) if report else ()
            notes += ("the temperature, which was fitted to these means, is left out",) if network.calibration else ()
        _compare(folder, network)
        title = repo or (target or folder).resolve().name
        write_text_atomically(folder / "README.md", _card(network, report, title, notes, license))
        if target is not None:
            target.mkdir(exist_ok=True)
            for file in _FILES:
                (folder / file).replace(target / file)
            folder = target
        if repo is not None:
            if parent is None:
                with _explained(hub, repo):
                    call_with_timeout(_PATIENCE_S, lambda: hub.create_repo(repo, private=private))
                parent = _last_commit(hub, repo, private=private, overwrite=overwrite)
                if parent is None:  # without a parent, the hub would not refuse a second push
                    raise InputError(f"`repo` {repo} was created, but {hub.endpoint} does not find it yet. Push again.")
            files = [CommitOperationAdd(file, folder / file) for file in _FILES]
            with _explained(hub, repo):  # of two pushes at once, the hub refuses the later one
                hub.create_commit(repo, files, commit_message="Upload an image classifier", parent_commit=parent)
    return Push(repo and f"{hub.endpoint}/{repo}", target, notes, network.in_channels == RGB)


def _load(path: Path) -> TimmModel:
    """A model that timm has, with its temperature in the classifier and no path of this machine in its recipe."""
    if members := ensemble_members(path):
        raise InputError(f"`model` {path} is an ensemble of {len(members)} models. Give one of them: {members[0]}.")
    network = model_file.load(path)
    require_classes(network, path)
    assert isinstance(network, EfficientNet | WrappedModel)
    try:
        in_timm(network)
    except InputError as error:
        export = shell_join(["effnetv2", "export", str(path)])
        raise InputError(f"`model` {path}: {error}. For other programs, use: {export}") from error
    if network.calibration is not None and network.preprocessing.tta == "none":
        with torch.no_grad():
            for weight in (weight for layer in classifier_layers(network) for weight in layer.parameters()):
                weight.div_(network.calibration.temperature)
    word = str(network.recipe.get("weights", "none"))
    if word not in weight_names() and is_bundled(word):
        network.recipe = {**network.recipe, "weights": _BUNDLED}
    network.recipe = {
        name: PureWindowsPath(value).name if isinstance(value, str) and not is_library_model(value) else value
        for name, value in network.recipe.items()
    }
    return network


def _report(path: Path, network: TimmModel, evaluation: Path | None) -> dict[str, Any] | None:
    """The given evaluation of this very model file as it predicts, or else the report next to it; None for none."""
    file = path / model_file.NAME if path.is_dir() else path
    found = (evaluation or file.parent) / "report.json"
    try:
        report = read_object(found, *_REPORT_KEYS, fix="Evaluate again, or leave `evaluation` out.")
    except InputError:
        if evaluation is None:  # no report, or one of another program
            return None
        raise
    other = "" if file_hashes(file)[file.name] in report["sha256"].values() else "another model file"
    for name in ("image_size", "tta"):
        if name in report and report[name] != (own := getattr(network.preprocessing, name)):
            other = other or f"{name} {report[name]}, but the model has {own}"
    if other and evaluation is not None:
        again = shell_join(["effnetv2", "evaluate", str(path), "DATA", "--output", "FOLDER"])
        raise InputError(f"`evaluation` is of {other}. Use: {again}")
    return None if other else report


def _compare(folder: Path, network: TimmModel) -> None:
    """Refuse files that timm, if it is installed, opens with other logits."""
    if find_spec("timm") is None:
        return
    import timm

    shape = (2, network.in_channels, network.preprocessing.image_size, network.preprocessing.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = network(images), timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    if difference > _TOLERANCE:
        raise InputError(f"timm opens the files with other logits (difference {difference:.1g}). Use effnetv2 export.")


def _card(
    network: TimmModel, report: dict[str, Any] | None, title: str, notes: tuple[str, ...], license: str | None
) -> str:
    """The model card; ``title`` is the repository or the name of a folder."""
    word = str(network.recipe.get("weights", ""))
    name = word.removesuffix(".safetensors").removesuffix(".pth")  # of a file of `effnetv2 models --fetch`
    terms, base_model = "unknown", None
    if name in weight_names():
        entry = get_weights(name)
        terms, base_model = entry.license, entry.repository if entry.source == "timm" else None
    elif word == _BUNDLED:
        terms = "Apache-2.0"
    elif word.startswith("timm:"):
        import timm  # which the model needs

        if (config := timm.get_pretrained_cfg(word.removeprefix("timm:"))) is not None:
            terms, base_model = config.license or terms, config.hf_hub_id
    programs = ["timm", "transformers"] if network.in_channels == RGB else ["timm"]
    header = ModelCardData(
        library_name="timm", pipeline_tag="image-classification", license=license, base_model=base_model,
        tags=[*programs, "efficientnetv2"],
    )  # fmt: skip
    weights = f"Training started from the weights {word}, whose license is: {terms}."
    if word in ("", "none"):
        weights = "Training started from random weights." if word else "The initial weights are not recorded."
    metrics = _METRICS
    if report and report.get("activation") == "softmax":  # the labels of an image share its probability
        metrics = {key: label for key, label in metrics.items() if key != "ece"}
    return render(
        "model_card.md.j2", header=Markup(header.to_yaml()), title=title, architecture=in_timm(network)[0],
        network=network, multilabel=network.activation == "sigmoid", metrics=metrics, report=report,
        data=PureWindowsPath(report["data"]).name if report else "", notes=notes, license=license, weights=weights,
    )  # fmt: skip


def _last_commit(hub: HfApi, repo: str, *, private: bool, overwrite: bool) -> str | None:
    """The last commit of a repository, None if it does not exist. Raises InputError for an upload that would fail."""
    try:
        validate_repo_id(repo if "/" in repo else "")
    except HFValidationError as error:
        raise InputError(f"`repo` must be owner/name, such as owner/trees, not '{repo}'. Correct the name.") from error
    if get_token() is None:
        raise InputError("this machine has no token of the Hugging Face Hub. Log in with: hf auth login")
    with _explained(hub, repo):
        try:
            found = call_with_timeout(_PATIENCE_S, lambda: hub.model_info(repo, timeout=_PATIENCE_S))
        except RepositoryNotFoundError:
            return None
    if private and found.private is False:
        raise InputError(f"`repo` {repo} exists and is public. Give another name, or leave `private` out to publish.")
    replaced = [file.rfilename for file in found.siblings or () if file.rfilename in _FILES]
    if replaced and not overwrite:
        fix = "Give another name, or `overwrite=True` for a new commit."
        raise InputError(f"`repo` {repo} exists and has {', '.join(replaced)}. {fix}")
    return found.sha


@contextmanager
def _explained(hub: HfApi, repo: str) -> Iterator[None]:
    """Turn what the hub or the network refuses into an InputError."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = (error.server_message or error_summary(error)).rstrip(".")
        fix = {
            401: "Log in again with: hf auth login",
            403: "Give a repository of yours, and a token that may write.",
            409: "The name is taken by another push, or by a repository that you cannot read. Give another name.",
            412: "The repository changed during this push. Look at it, then push again with `overwrite=True`.",
        }
        raise InputError(
            f"`repo` {repo}: {hub.endpoint} responds with {status}: {reason}. {fix.get(status, 'Try again later.')}"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ImportError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and isinstance(error.__cause__, BadRequestError):  # of the check of the card
            faults = " ".join(str(error).split())
            raise InputError(f"`repo` {repo}: {hub.endpoint} rejects the card: {faults}. Correct `license`.") from error
        reason = error_summary(error.__cause__ or error)
        fix_network = "Try again, or give `output` alone to write the files."
        raise InputError(f"`repo` {repo}: the transfer to {hub.endpoint} failed ({reason}). {fix_network}") from error
