"""The model file: one safetensors file that knows its network, its preprocessing and its classes.

Weights are plain tensors; all else is JSON in the file's metadata (``header``). Nothing in it is ever executed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from efficientnetv2.models import model_card as header
from efficientnetv2.models import pretrained, safetensors_io, temperature
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.empty_model import changes, empty_network, misfits, module_of
from efficientnetv2.models.ensemble import Ensemble, ensemble_members, require_single_model
from efficientnetv2.models.model_card import FORMAT_VERSION, Header, conversion_hint, reason
from efficientnetv2.models.provenance import KEY, TrainingFingerprint, parse
from efficientnetv2.models.safetensors_io import UNKNOWN_SHA256, TensorFile
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, count_of, some

SUFFIX = ".safetensors"
NAME = f"model{SUFFIX}"  # in a run folder


def save(
    path: str | Path,
    network: Network,
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    trained_on: TrainingFingerprint | None = None,
    half: bool = False,
) -> None:
    """Write a model file, whole or not at all. What is not given is as the network has it.

    The weights have the names that they have in the network; of a wrapped one, those in its module. One that stands
    under several names is written under each, and is one again when loaded.

    Args:
        path: of the file, ending in .safetensors; its folder exists.
        network: on any device, in any memory order. Layers that were replaced after ``create`` are refused, for
            ``load`` could not make them again: ``fit`` gives it other classes or channels.
        preprocessing: that it was trained with.
        class_names: of its outputs, in order, all different; none without a classifier.
        recipe: plain JSON values, numbers finite.
        metrics: plain JSON values, numbers finite.
        trained_on: a sample of the pictures that trained it; a network that knows of none writes none.
        half: keep kernels and matrices in float16: half the bytes, to share. The network itself stays as it is; one
            that is loaded from the file has float32 again, each weight within 1/2048 of what it
            was, or 3e-8 where that is more.

    Raises:
        InputError: a weight is NaN or infinite, or too large for ``half``; the names or channels do not fit the
            network; recipe or metrics are no JSON; path and network are no such things; these are several networks
            (``Ensemble``); a layer was replaced; or the file can't be written.
    """
    _check_kinds(path, network)
    if Path(path).suffix != SUFFIX:
        raise InputError(f"{path} was not written: a model file ends in {SUFFIX}. Name it so.")
    tensors = _apart(module_of(network).state_dict())
    _check_finite(
        tensors,
        f"{path} was not written",
        mend="The training diverged: train again with a lower learning rate.",
    )
    try:
        if half:
            tensors = safetensors_io.to_half(tensors)
        words = header_of(
            network,
            preprocessing=network.preprocessing if preprocessing is None else preprocessing,
            class_names=network.class_names if class_names is None else class_names,
            recipe=network.recipe if recipe is None else recipe,
            metrics=network.metrics if metrics is None else metrics,
        )
    except InputError as error:
        raise InputError(f"{path} was not written: {error}") from error
    _check_loads(Path(path), words, network, tensors)
    remembered = network.trained_on if trained_on is None else trained_on
    further = {} if remembered is None else {KEY: remembered.text()}
    if network.calibration is not None:
        further[temperature.KEY] = network.calibration.text()
    safetensors_io.write(Path(path), tensors, words.metadata() | further)


def header_of(
    network: Network,
    *,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Header:
    """What a file says of a network; arguments as of ``save``.

    Raises:
        InputError: the names or channels do not fit the network, recipe or metrics are no JSON, or these are several
            networks.
    """
    require_single_model(network, "a model file holds one")
    try:
        return Header(
            format_version=FORMAT_VERSION,
            package_version=version("efficientnetv2"),
            architecture=network.architecture if isinstance(network, EfficientNet) else None,
            foreign=network.source if isinstance(network, WrappedModel) else None,
            num_classes=network.num_classes,
            in_channels=network.in_channels,
            preprocessing=preprocessing,
            class_names=tuple(class_names),
            answer=network.answer,
            recipe=dict(recipe),
            metrics=dict(metrics),
            sha256=UNKNOWN_SHA256,
        )
    except ValidationError as error:
        raise InputError(reason(error)) from error


def load(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", *, network: nn.Module | None = None
) -> Network:
    """The network of a model file, in evaluation mode.

    Weights in half precision become float32.

    Args:
        path: of a model file, or of a run folder; or of a folder whose model files answer together (``ensemble``).
        device: where its weights go.
        network: a module as it was saved, if the file can't say how to make it again: one that was neither ours
            nor named of timm or torchvision. It is wrapped, and its weights are only changed if all is well.

    Raises:
        InputError: no such file, not one of ours, written by a newer version, or damaged; no such device; or one
            module for several files.
    """
    _check_device(device)
    if together := ensemble_members(Path(path)):
        if network is not None:
            raise InputError(
                f"{path} holds {count_of(len(together), 'network')} that answer together, and network is one module. "
                f"Leave it out, or load one of them: {together[0]}"
            )
        return Ensemble([load(one, device) for one in together], [_called(one) for one in together])
    path = _file(Path(path))
    file = safetensors_io.read_header(path)
    words, written = header.read(path, file.metadata)
    # Reading and hashing beside building: both take about as long, and most of it outside the interpreter.
    with ThreadPoolExecutor(1) as beside:
        summing = beside.submit(file.sha256) if written > 1 else None
        if network is not None and words.architecture is None and words.foreign is None:
            # Before it is wrapped, which makes its convolutions faster ones.
            _check_given(path, network, file)
        result = empty_network(path, words, file.entries, network)
        module = module_of(result)
        _check_names(path, module.state_dict(), file)
        tensors = file.tensors()
        _check_finite(
            tensors,
            str(path),
            mend="It was changed, or made by another program: take another file, or this one from where it came.",
        )
        found = summing.result() if summing else safetensors_io.sha256_by_name(tensors)
    if found != words.sha256:
        raise InputError(
            f"{path}: the weights are not those that were saved (their SHA-256 differs). The file was "
            "damaged or changed: copy it again from where it came."
        )
    module.load_state_dict(_weights(path, module, tensors, device), assign=True)
    if torch.device(device).type != "cpu":
        result.to(device)  # what a state dict does not hold
    result.preprocessing, result.class_names = words.preprocessing, words.class_names
    result.answer, result.recipe, result.metrics = words.answer, words.recipe, words.metrics
    if KEY in file.metadata:
        result.trained_on = parse(path, file.metadata[KEY])
        if words.metrics.get("selected_on") == "minival":
            result.trained_on = result.trained_on.with_minival()
    if temperature.KEY in file.metadata:
        result.calibration = temperature.parse(path, file.metadata[temperature.KEY])
    return result.eval()


@dataclass(frozen=True)
class ModelDescription:
    """What a model file says of its network.

    Args:
        header: all but the weights.
        calibration: its temperature; None without.
    """

    header: Header
    calibration: Calibration | None


def describe(path: str | Path) -> ModelDescription:
    """What a model file says of its network; no weight is read.

    Args:
        path: of a model file, or of a run folder.

    Raises:
        InputError: no such file, not one of ours, written by a newer version, or its header is damaged.
    """
    path = _file(Path(path))
    metadata = safetensors_io.read_header(path).metadata
    words, _ = header.read(path, metadata)
    text = metadata.get(temperature.KEY)
    return ModelDescription(words, None if text is None else temperature.parse(path, text))


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without it
        raise InputError(
            f"device is {str(device)!r}, but PyTorch cannot use it here ({reason(error)}). Give 'cpu', or a device "
            "that PyTorch finds."
        ) from error


def _called(member: Path) -> str:
    """A file of an ensemble: the model file of a run by its folder."""
    return member.parent.name if member.name == NAME else member.name


def _check_kinds(path: object, network: object) -> None:
    if isinstance(path, str | os.PathLike) and isinstance(network, Network):
        return
    given = f"{type(path).__name__} and {type(network).__name__}"
    if isinstance(path, nn.Module) and isinstance(network, str | os.PathLike):
        raise InputError(f"save takes the path first, then the network; given were {given}. Exchange them.")
    raise InputError(
        f"save takes a path and a network, but was given {given}. A module of your own becomes a network by "
        "efficientnetv2.create(module)."
    )


def _check_loads(path: Path, words: Header, network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what ``load`` would not give back. A module of one's own is made by its code: nothing is known of it."""
    if words.architecture is None and words.foreign is None:
        return
    if different := changes(path, words, network, tensors):
        raise InputError(
            f"{path} was not written: layers were changed after the network was created, and load could not make them "
            f"again ({different}). For other classes or channels: efficientnetv2.adapt(network, num_classes=N). To "
            "keep these weights: torch.save(network.state_dict(), FILE)."
        )


def _file(path: Path) -> Path:
    if path.is_dir() and ((path / "config.json").is_file() or (path / "checkpoint").is_file()):
        raise InputError(
            f"{path} is a folder of weights, but not a run folder of ours. {conversion_hint(path)}"
        )
    if not path.exists() and path.with_name(f"{path.name}.index").is_file():
        raise InputError(f"{path} is a TensorFlow checkpoint, not a model file. {conversion_hint(path)}")
    if path.is_dir():
        if not (path / NAME).is_file():
            inside = sorted(str(file.parent) for file in path.glob(f"*/{NAME}"))
            runs = f" Folders in it do: {some(inside, 3)}." if inside else ""
            raise InputError(
                f"{path} holds no {NAME}.{runs} Give a run folder whose training has ended, or a file."
            )
        return path / NAME
    if not path.is_file():
        if str(path) in pretrained.names():
            raise InputError(
                f"{path} is a name of pretrained weights, and no file is called so. To train from them: effnetv2 train "
                f"DATA --weights {path}. To have them as a model file, in Python: efficientnetv2.save("
                f"'{path}.safetensors', efficientnetv2.create('{path}'))."
            )
        raise InputError(f"{path} does not exist. Give a model file ({NAME}) or a run folder.")
    return path


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, in the ordinary order, none sharing memory with another."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weight in weights.items():
        tensor = weight.detach().cpu().contiguous()
        if (place := tensor.untyped_storage().data_ptr()) in seen:
            tensor = tensor.clone()
        seen.add(place)
        tensors[name] = tensor
    return tensors


def _weights(
    path: Path, module: nn.Module, tensors: Mapping[str, Tensor], device: str | torch.device
) -> dict[str, Tensor]:
    """What to put in the place of a module's weights; what stands under several names there, does so again."""
    first: dict[int, str] = {}
    weights: dict[str, Tensor] = {}
    for name, there in module.state_dict(keep_vars=True).items():
        known = first.setdefault(id(there), name)
        if known != name:
            if not torch.equal(tensors[known], tensors[name]):
                raise InputError(
                    f"{path}: '{known}' and '{name}' are one weight of the network, but differ in the file. Give the "
                    "module as it was when it was saved."
                )
            weights[name] = weights[known]
            continue
        value = tensors[name].to(device, there.dtype)
        is_parameter = isinstance(there, nn.Parameter)
        weights[name] = nn.Parameter(value, requires_grad=there.requires_grad) if is_parameter else value
    return weights


def _check_given(path: Path, given: nn.Module, file: TensorFile) -> None:
    module = module_of(given) if isinstance(given, Network) else given
    if different := misfits(module.state_dict(), file.entries):
        raise InputError(
            f"{path}: its weights are not those of the module that was given: {different}. Give the module as it was "
            "when it was saved."
        )


def _check_names(path: Path, wanted: Mapping[str, Tensor], file: TensorFile) -> None:
    if different := misfits(wanted, file.entries):
        raise InputError(
            f"{path}: the weights do not fit the architecture it names: {different}. "
            "The file was damaged or changed: copy it again from where it came."
        )


def _check_finite(tensors: Mapping[str, Tensor], what: str, *, mend: str) -> None:
    if broken := safetensors_io.nonfinite_tensors(tensors):
        raise InputError(
            f"{what}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity ({some(broken, 3)}). {mend}"
        )
    if negative := safetensors_io.negative_variances(tensors):
        raise InputError(
            f"{what}: {len(negative)} of its variances have values below 0 ({some(negative, 3)}), which no batch-norm "
            "comes to. Take the weights from before whatever changed them."
        )
