"""The hardware of a run: the compute device, and how many processes read images for it."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import InputError, did_you_mean, error_summary, pluralize
from efficientnetv2.utils.memory import free_bytes
from efficientnetv2.utils.processes import cores

_logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]

_KINDS = ("auto", "cpu", "cuda", "mps")
# More processes than cores help while they wait for a disk or a network. This many keep a core busy that waits three
# quarters of the time. Ours.
_WORKERS_PER_CORE = 4
# Memory of a process that reads images: about 20 MB, measured on Linux after a fork, and an image of 12 megapixels
# while it is decoded. Ours.
_WORKER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Hardware:
    """What a run computes on."""

    device: torch.device
    memory_gib: float | None = None  # Memory limit of each process. None is all that is free.
    world: World = SINGLE_PROCESS  # Processes that share the groups of a step and, on a CPU, the memory
    workers: int = 0  # Processes of each that read images


def pick_device(word: str) -> torch.device:
    """The device by PyTorch's name; ``auto`` takes a GPU where there is one. Raises InputError."""
    if word == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = word.partition(":")
    try:
        if kind not in _KINDS:
            near = "; a GPU is cuda or mps." if kind == "gpu" else did_you_mean(kind, _KINDS)
            near = f"; GPU {word} is cuda:{word}." if word.isdecimal() else near
            raise InputError(f"there is no such device{near}")
        device = torch.device(word)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, InputError) as error:
        reason, count = error_summary(error).rstrip("."), torch.cuda.device_count() if kind == "cuda" else 1
        if kind == "mps":
            reason = "PyTorch finds no Apple GPU on this machine"
        elif kind == "cuda" and not _has_cuda():
            reason = f"PyTorch {torch.__version__} is built without CUDA"
        elif kind == "cuda" and not count:
            reason = "PyTorch finds no NVIDIA or AMD GPU that it can use; its driver may be too old"
        elif kind in ("cuda", "cpu") and number.isdecimal() and int(number) >= count:
            reason = f"there is no {kind} device of that number"
        known = ["auto", "cpu", *(f"cuda:{gpu}" for gpu in range(torch.cuda.device_count()))]
        known += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(f"`device={word}`: {reason}. This machine has {', '.join(known)}.") from error
    return device


def _has_cuda() -> bool:
    """Whether PyTorch was built for NVIDIA's or AMD's GPUs."""
    return torch.version.cuda is not None or torch.version.hip is not None


def device_note(word: str, device: torch.device, *, devices: Path = Path("/dev")) -> str | None:
    """A sentence on a device chosen by ``auto``: Apple's GPU, or the CPU though there is an NVIDIA GPU.

    The latter is so where this PyTorch was built without CUDA, or for a newer driver.
    """
    if word == "auto" and device.type == "mps":
        return "Device: Apple's GPU, which is untested. `device=cpu` is tested, and slower."
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1", "NoDevFiles")
    if word != "auto" or device.type != "cpu" or is_hidden or not any(devices.glob("nvidia[0-9]*")):
        return None
    if _has_cuda():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            return f"Device: cpu, as PyTorch {torch.__version__} can't use the NVIDIA GPU. {error_summary(error)}"
        return None
    return (
        f"Device: cpu, as PyTorch {torch.__version__} was built without CUDA. To use the NVIDIA GPU of this machine: "
        "pip install --force-reinstall torch torchvision"
    )


def pick_own_device(word: str, number: int, count: int) -> torch.device:
    """The device of process ``number`` of ``count`` on this machine: a GPU each, or the CPU for all.

    Each takes a part of PyTorch's threads, unless OMP_NUM_THREADS is set. Raises InputError.
    """
    own_is_there = 0 < number < torch.cuda.device_count()
    # Its own, as the check takes memory of the device that it checks.
    device = pick_device(f"cuda:{number}" if word == "cuda" and own_is_there else word)
    takes_own = device.type == "cuda" and word in ("auto", "cuda")
    if count == 1:
        # Some launchers set LOCAL_RANK without LOCAL_WORLD_SIZE, and some show each process only its own GPU.
        if takes_own and own_is_there:
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
        return device
    if device.type != "cpu" and not takes_own:
        raise InputError(
            f"`device={word}`: {count} processes can't share one device. Set `device=cuda` or `device=cpu`."
        )
    gpus = torch.cuda.device_count()
    if device.type != "cpu" and count > gpus:
        raise InputError(
            f"{count} processes were started, but this one sees {pluralize(gpus, 'GPU')}. Start at most {gpus}, or "
            "show each process all GPUs of its machine."
        )
    # A launcher sets it to 1 where the user has not.
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, cores() // count))
    if device.type == "cpu":
        return device
    own = torch.device("cuda", number)
    torch.cuda.set_device(own)
    return own


def device_title(device: torch.device) -> str:
    """All of a device that a timing depends on: its name, the threads on a CPU, PyTorch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    else:
        name = f"{device.type} of {_processor()}"
    return f"{name}, torch {torch.__version__}"


def _processor() -> str:
    """The name of the processor, or else what distinguishes it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    fields = {(parts := line.partition(":"))[0].strip(): parts[2].strip() for line in reversed(lines)}
    kind = platform.processor() or platform.machine()
    arm = [fields[name] for name in ("CPU implementer", "CPU part", "CPU variant") if name in fields]
    if "model name" in fields or arm:  # ARM has no model name on Linux
        return fields.get("model name") or " ".join([kind, *arm])
    if sys.platform == "darwin":
        command = ("sysctl", "-n", "machdep.cpu.brand_string")
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            return done.stdout.strip() or kind
    return kind


def pick_workers(device: torch.device, *, sharing: int = 1) -> int:
    """The default number of processes that read images: one per core up to eight, and none where the CPU trains.

    Ours. ``sharing`` processes train on this machine. On a CPU, the main process reads between steps instead; see
    ``data.loader.decode_threads``.
    """
    return min(8, max(1, cores() // sharing)) if device.type != "cpu" else 0


def workers_for(requested: int | None, device: torch.device, *, sharing: int = 1) -> int:
    """The number of processes that read images, lowered to what the cores and the memory allow. None is the default."""
    if requested is None:
        return pick_workers(device, sharing=sharing)
    by_cores = _WORKERS_PER_CORE * max(1, cores() // sharing)
    by_memory = max(0, free_bytes(torch.device("cpu"), sharing=sharing)) // _WORKER_BYTES
    most = min(by_cores, by_memory)
    if requested <= most:
        return requested
    limit = f"{_WORKERS_PER_CORE} a core" if by_cores <= by_memory else f"{_WORKER_BYTES >> 20} MiB of free memory each"
    _logger.info(f"Workers: {most} instead of {requested} ({limit})")
    return most


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device; channels-last memory is the fastest for convolutions."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def synchronizer(device: torch.device) -> Callable[[], object]:
    """A call that waits until a device has done all its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def lower_precision(device: torch.device) -> Precision | None:
    """The 16-bit format that a device multiplies in hardware, bf16 before fp16; None where there is none.

    GPUs have bf16 from compute capability 8.0, useful fp16 from 7.0; CPUs have bf16 with AVX-512 or AMX. Others
    (Apple's GPUs, ARM) were not measured.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else None
    if device.type == "cpu":
        # Not in older PyTorch.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
    return None


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which a model computes in a precision; its weights stay fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def to_device(
    tensor: Tensor,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """Move a tensor to a device, without waiting for an NVIDIA GPU.

    CUDA keeps the memory that it copies from until it is done. Apple's GPUs do not (pytorch/pytorch#139550), so this
    waits for them.
    """
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type == "cuda", memory_format=memory_format)
