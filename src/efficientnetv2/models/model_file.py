"""Model files: one safetensors file with the weights, the architecture, the preprocessing and the class names.

Weights are plain tensors; everything else is JSON in the file's metadata (``model_header``). Nothing in it is executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficientnetv2.models import model_header, pretrained, provenance, safetensors_io, unknown
from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.blocks import SameConv2d
from efficientnetv2.models.efficientnet import EfficientNet, Network, how_to_get_network
from efficientnetv2.models.ensemble import Ensemble, ensemble_members
from efficientnetv2.models.library_models import build_library_model, is_library_model
from efficientnetv2.models.model_header import Header, conversion_hint
from efficientnetv2.models.provenance import Calibration, TrainingFingerprint
from efficientnetv2.models.regularization import has_rate
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, did_you_mean, error_summary, shorten

SUFFIX = ".safetensors"
NAME = f"model{SUFFIX}"  # in a run directory
_COPY_AGAIN = "The file was damaged or changed: copy it again from its source."


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
    """Write a model file, whole or not at all. Arguments that are None are taken from the model.

    Weights keep their names; those of a wrapped model have the names of its module. A weight that has several names is
    written under each, and is one weight again when loaded.

    Args:
        path: Ends in .safetensors.
        network: On any device. Layers that were replaced after ``create`` are refused, since ``load`` could not build
            them: use ``adapt`` for other classes or channels, and wrap a variant of your own:
            ``create(torch.nn.Sequential(network))``.
        preprocessing: Of the images. What depends on it (metrics, temperature, detector) is saved unchanged; to change
            the image size of a trained model, use `convert`, which leaves it out.
        class_names: Of the outputs, in order, all different.
        recipe: Plain JSON values.
        metrics: Plain JSON values.
        trained_on: A sample of the training images.
        half: Store kernels and matrices in float16, half the bytes. ``load`` gives float32 again, each weight within
            1/2048 of its value, or 3e-8 where that is more. The model itself does not change.

    Raises:
        InputError: A weight is NaN, infinite or too large for ``half``; names or channels do not fit the model; recipe
            or metrics are not JSON; it is an ensemble; it has one output, whose softmax is always 1; a layer was
            replaced; or the file cannot be written.

    Example::

        import efficientnetv2 as ev2

        network = ev2.create("efficientnetv2_b0", num_classes=2)
        ev2.save("model.safetensors", network, class_names=("cat", "dog"))
    """
    if not (isinstance(path, str | os.PathLike) and isinstance(network, Network)):
        raise InputError(
            f"save takes a path and a model, not {type(path).__name__} and {type(network).__name__}. "
            f"{how_to_get_network(network)}"
        )
    path = Path(os.path.expanduser(path))
    try:
        if path.suffix != SUFFIX:
            raise InputError(f"a model file ends in {SUFFIX}. Name it so.")
        if network.num_classes == 1 and network.activation == "softmax":
            raise InputError(
                "the model has one output, and its softmax is always 1. If it was trained with a sigmoid, set "
                "network.activation = 'sigmoid' for one label. Or put a row of zeros before those of the classifier's "
                "weight and bias, and name both classes."
            )
        tensors = safetensors_io.independent(_module_of(network).state_dict())
        safetensors_io.check_values(tensors, "the weights are damaged", fix="Train again with a lower learning rate.")
        if half:
            tensors = safetensors_io.to_half(tensors)
        header = Header.of(
            network, preprocessing=preprocessing, class_names=class_names, recipe=recipe, metrics=metrics
        )
        if header.can_be_built and (different := _changes(path, header, network, tensors)):
            raise InputError(
                f"layers were changed after the model was created, and load could not build them again ({different}). "
                "For other classes or channels: efficientnetv2.adapt(network, num_classes=N)."
            )
    except InputError as error:
        raise InputError(f"{path} was not written: {error}") from error
    metadata = {"format": "pt", model_header.KEY: header.text()}
    if (fingerprint := trained_on or network.trained_on) is not None:
        metadata[provenance.KEY] = fingerprint.to_json()
    if network.calibration is not None:
        metadata[provenance.CALIBRATION_KEY] = network.calibration.to_json()
    if network.unknown is not None:
        metadata[unknown.KEY] = network.unknown.to_json()
    safetensors_io.write(path, tensors, metadata)


def load(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", *, network: nn.Module | None = None
) -> Network:
    """The model of a model file, in evaluation mode. Weights in half precision become float32.

    Its logits are not calibrated: for the probabilities of `Predictor`, divide them by ``calibration.temperature``
    where ``calibration`` is not None. What the file records of its training (``metrics``, ``calibration``, ``unknown``,
    ``trained_on``) does not hold after further training.

    Args:
        path: A model file, a run directory, or a directory of model files that form an ensemble.
        device: Where the weights go.
        network: The module as it was saved, if it is neither ours nor a timm or torchvision model by name. It is
            wrapped, and its weights change in place, only if the file is valid.

    Raises:
        InputError: No such file, not a model file, written by a newer version, or damaged; no such device; or
            ``network`` is given for an ensemble.

    Example::

        import efficientnetv2 as ev2

        network = ev2.load("runs/mine")
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter if PyTorch was built without it
        raise InputError(
            f"device is {str(device)!r}, but PyTorch cannot use it here ({error_summary(error)}). Give 'cpu'."
        ) from error
    path = Path(os.path.expanduser(path))
    if members := ensemble_members(path):
        if network is not None:
            raise InputError(
                f"{path} is an ensemble of {len(members)} models, and network is one module. Leave network out."
            )
        # The model file of a run is called by its directory.
        names = [member.parent.name if member.name == NAME else member.name for member in members]
        return Ensemble([load(member, device) for member in members], names)
    path = _file(path)
    file = safetensors_io.read_header(path)
    header, written = model_header.read(path, file.metadata)
    # Hash while building: both take about as long, mostly outside the interpreter.
    with ThreadPoolExecutor(1) as executor:
        hashing = executor.submit(file.sha256) if written > 1 else None
        if network is not None and not header.can_be_built:
            # Before it is wrapped, which changes its convolutions.
            given = _module_of(network) if isinstance(network, Network) else network
            if different := _differences(given.state_dict(), file.entries):
                raise InputError(
                    f"{path}: its weights are not those of the given module: {different}. Give the module as it was "
                    "saved."
                )
        result = _empty_model(path, header, file.entries, network)
        module = _module_of(result)
        if different := _differences(module.state_dict(), file.entries):
            raise InputError(f"{path}: the weights do not fit its architecture: {different}. {_COPY_AGAIN}")
        tensors = file.tensors()
        safetensors_io.check_values(tensors, str(path), fix="Copy the file again, or take another.")
        found = hashing.result() if hashing else safetensors_io.sha256_by_name(tensors)
    if found != header.sha256:
        raise InputError(f"{path}: the weights are not those that were saved (their SHA-256 differs). {_COPY_AGAIN}")
    # A given module keeps its parameters, which an optimizer may hold.
    keeps = network is not None and not any(weight.is_meta for weight in module.parameters())
    weights = _state_dict(path, module, tensors, device)
    if keeps:
        result.to(device)
    module.load_state_dict(weights, assign=not keeps)
    if torch.device(device).type != "cpu":
        result.to(device)  # tensors that a state dict does not hold
    result.preprocessing, result.class_names = header.preprocessing, header.class_names
    result.activation, result.recipe, result.metrics = header.activation, header.recipe, header.metrics
    if (text := file.metadata.get(provenance.KEY)) is not None:
        fingerprint = model_header.parse_entry(path, text, provenance.KEY, TrainingFingerprint.from_json)
        selected = header.metrics.get("selected_on") == "minival"
        result.trained_on = fingerprint.with_minival() if selected else fingerprint
    result.calibration = _calibration(path, file.metadata)
    if (text := file.metadata.get(unknown.KEY)) is not None:
        result.unknown = model_header.parse_entry(
            path, text, unknown.KEY, lambda text: unknown.UnknownDetector.from_json(text, result.embed_dim)
        )
    return result.eval()


def read_header(path: Path) -> Header:
    """The header of a model file or run directory, without reading weights. Raises InputError as ``load``."""
    path = _file(path)
    return model_header.read(path, safetensors_io.read_header(path).metadata)[0]


def read_calibration(path: Path) -> Calibration | None:
    """The temperature of a model file or run directory, without reading weights. Raises InputError as ``load``."""
    path = _file(path)
    return _calibration(path, safetensors_io.read_header(path).metadata)


def _calibration(path: Path, metadata: Mapping[str, str]) -> Calibration | None:
    key = provenance.CALIBRATION_KEY
    text = metadata.get(key)
    return None if text is None else model_header.parse_entry(path, text, key, Calibration.from_json)


def _file(path: Path) -> Path:
    """The model file at a path or in a run directory."""
    if path.is_file():
        return path
    of_timm_or_tensorflow = [path / "config.json", path / "checkpoint"]
    if not path.is_dir():
        of_timm_or_tensorflow = [path.with_name(f"{path.name}.index")]
    if any(file.is_file() for file in of_timm_or_tensorflow):
        raise InputError(f"{path} has weights of another library. {conversion_hint(path)}")
    if path.is_dir():
        if (path / NAME).is_file():
            return path / NAME
        inside = sorted(str(file.parent) for file in path.glob(f"*/{NAME}"))
        runs = f" Folders in it do: {shorten(inside, 3)}." if inside else ""
        raise InputError(f"{path} holds no {NAME}.{runs} Give a run folder whose training has ended, or a file.")
    if str(path) in pretrained.weight_names():
        raise InputError(
            f"{path} is a name of pretrained weights, not a file. To train from them: effnetv2 train DATA --weights "
            f"{path}. In Python: efficientnetv2.create('{path}')."
        )
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    if not path.parent.name:
        names += pretrained.weight_names()
    near = did_you_mean(path.name, names, str(path.parent) if path.parent.name else "")
    raise InputError(f"{path} does not exist{near} Give a model file ({NAME}) or a run folder.")


def _module_of(network: Network) -> nn.Module:
    """The module that holds the weights under their own names."""
    return network.module if isinstance(network, WrappedModel) else network


def _state_dict(
    path: Path, module: nn.Module, tensors: Mapping[str, Tensor], device: str | torch.device
) -> dict[str, Tensor]:
    """The file's tensors as parameters and buffers of a module; a weight of several names stays one weight."""
    first: dict[int, str] = {}
    weights: dict[str, Tensor] = {}
    for name, old in module.state_dict(keep_vars=True).items():
        same = first.setdefault(id(old), name)
        if same != name:
            if not torch.equal(tensors[same], tensors[name]):
                raise InputError(
                    f"{path}: '{same}' and '{name}' are one weight of the module, but differ in the file. Give the "
                    "module as it was saved."
                )
            weights[name] = weights[same]
            continue
        value = tensors[name].to(device, old.dtype)
        is_parameter = isinstance(old, nn.Parameter)
        weights[name] = nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value
    return weights


def _empty_model(path: Path, header: Header, found: Mapping[str, Tensor], given: nn.Module | None) -> Network:
    """The model of a file with the tensors ``found``, on the meta device if possible, otherwise with random weights."""
    if given is not None and header.can_be_built:
        raise InputError(f"{path} names its model, so the given module would not change. Leave network out.")
    if header.architecture is not None:
        layers = sum(stage.layers for stage in header.architecture.stages)
        try:
            if layers > len(found):  # a hostile file could make us build blocks without end
                raise ValueError(f"{layers} layers, but only {len(found)} tensors")
            with torch.device("meta"):
                return EfficientNet(header.architecture, num_classes=header.num_classes, in_channels=header.in_channels)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: its architecture cannot be built ({error_summary(error)}).") from error
    if header.foreign is None:
        if given is None:
            raise InputError(
                f"{path} holds the weights of another module, which only Python can create. Predict with "
                "efficientnetv2.Predictor(efficientnetv2.load(path, network=module))."
            )
        return given if isinstance(given, WrappedModel) else WrappedModel(given)
    # A hostile file could make us download other weights.
    if not is_library_model(header.foreign) or "." in header.foreign.partition(":")[2]:
        raise InputError(
            f"{path}: its model is '{header.foreign}', which is not in timm or torchvision. Copy the file again, "
            "or upgrade efficientnetv2."
        )
    # As the library builds it for the file's classes; or by default and adapted, if only that fits. They differ in
    # auxiliary heads, which have the library's classes when pretrained weights were adapted.
    built = _build(header, num_classes=header.num_classes, in_channels=header.in_channels)
    if not _differences(built.module.state_dict(), found):
        return built
    try:
        adapted = _build(header)
    except InputError:  # the library builds it without a classifier
        return built
    return built if _differences(adapted.module.state_dict(), found) else adapted


def _build(header: Header, **options: int) -> WrappedModel:
    """A library's model on the meta device if the library can build it there, otherwise with random weights."""

    def build() -> WrappedModel:
        network = build_library_model(str(header.foreign), **options)
        return adapt(network, num_classes=header.num_classes, in_channels=header.in_channels)

    try:
        with torch.device("meta"):
            network = build()
        if not _has_hidden_tensors(network):
            return network
    except RuntimeError:  # it needs values while it is built
        pass
    with torch.random.fork_rng(devices=[]):
        return build()


def _has_hidden_tensors(network: nn.Module) -> bool:
    """Whether meta tensors would remain after a state dict is loaded."""
    loaded = network.state_dict().keys()
    return any(name not in loaded for name, _ in network.named_buffers()) or any(
        isinstance(value, Tensor) and value.is_meta for module in network.modules() for value in vars(module).values()
    )


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Tensors of a model that a file lacks, has too many, or has in another shape or kind; "" if there are none."""

    def kind(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    wrong = [
        f"'{name}' is {kind(found[name])}, not {kind(tensor)}"
        for name, tensor in wanted.items()
        if name in found
        and (tensor.shape, tensor.is_floating_point()) != (found[name].shape, found[name].is_floating_point())
    ]
    names = [f"missing {shorten(missing)}"] * bool(missing) + [f"unknown {shorten(extra)}"] * bool(extra)
    return "; ".join(names + wrong[:3])


def _changes(path: Path, header: Header, network: Network, tensors: Mapping[str, Tensor]) -> str:
    """How a model differs from what ``load`` would build from its file; "" if not."""
    again = _module_of(_empty_model(path, header, tensors, None))
    if different := _differences(again.state_dict(), tensors):
        return different
    built, now = dict(_computations(again)), dict(_computations(_module_of(network)))
    return "; ".join(
        f"'{name}' is {now.get(name, 'nothing')} instead of {built.get(name, 'nothing')}"
        for name in built | now
        if built.get(name) != now.get(name)
    )


def _computations(model: nn.Module) -> Iterator[tuple[str, str]]:
    """What each layer computes besides its tensors: two models that differ here predict differently."""
    if hasattr(model, "transform_input"):  # GoogLeNet and Inception v3 of torchvision
        yield "transform_input", str(model.transform_input)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            padded = " padded as same" * isinstance(module, SameConv2d)
            yield name, f"Conv2d({str(module).partition('(')[2]}{padded}"
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield name, f"batch-norm with epsilon {module.eps:g}"
        elif not (any(module.children()) or module.state_dict() or isinstance(module, nn.Identity) or has_rate(module)):
            yield name, re.sub(r"(, )?inplace=(True|False)", "", str(module))
