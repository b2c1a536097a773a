"""Properties of a device before a model runs on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions

from efficientnetv2.utils import device as accelerate
from efficientnetv2.utils.device import (
    autocast,
    device_note,
    device_title,
    lower_precision,
    pick_own_device,
    pick_workers,
    to_device,
    workers_for,
)
from efficientnetv2.utils.errors import InputError


@pytest.mark.parametrize(
    ("capability", "precision"),  # Pascal, Volta, Turing, Ampere, Hopper: CUDA's list of compute capabilities
    [((6, 1), None), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_16_bit_precision_of_a_gpu_follows_its_generation(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert lower_precision(torch.device("cuda")) == precision


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, None), ({}, None)],
)
def test_cpu_uses_bf16_only_with_hardware_support(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert lower_precision(torch.device("cpu")) == precision


@pytest.mark.parametrize(
    ("word", "built", "there", "said"),
    [
        ("auto", None, "nvidia0", True),
        ("auto", "13.0", "nvidia0", False),
        ("cpu", None, "nvidia0", False),
        ("auto", None, "nvidiactl", False),
    ],
    ids=["left out", "built for it", "asked for", "no GPU"],
)
def test_unused_gpu_without_cuda_build_gives_a_note(monkeypatch, tmp_path, word, built, there, said):
    """Otherwise the run would be slow for no visible reason."""
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / there).touch()
    note = device_note(word, torch.device("cpu"), devices=tmp_path)
    assert (note is not None and mentions(note, "CUDA")) == said


@pytest.mark.parametrize(("visible", "said"), [(None, True), ("", False), ("-1", False)])
def test_driver_that_is_too_old_gives_a_note(monkeypatch, tmp_path, visible, said):
    """Warnings of PyTorch are not on the screen. Without a visible GPU, the CPU was chosen."""

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12080). Please update it.")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (tmp_path / "nvidia0").touch()
    note = device_note("auto", torch.device("cpu"), devices=tmp_path)
    assert (note is not None and mentions(note, "cpu", "driver", "too old")) == said


@pytest.mark.parametrize(
    ("word", "built", "why"),
    [
        ("mps", None, "no Apple GPU"),
        ("cuda", None, "built without CUDA"),
        ("cuda:1", None, "built without CUDA"),
        ("cuda", "13.0", "NVIDIA"),
        ("cpu:7", None, "no cpu device of that number"),
    ],
)
def test_missing_device_is_a_short_error(monkeypatch, word, built, why):
    """PyTorch's own error for mps has a paragraph on operators."""

    def empty(*_, **__):
        raise RuntimeError("Could not run 'aten::empty.memory_format' " + "with arguments from the backend " * 9)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=f"`device={word}`: .*{why}") as note:
        accelerate.pick_device(word)
    assert "aten" not in str(note.value)
    assert len(str(note.value)) < 200


def test_full_device_is_reported_with_the_first_line_of_pytorch(monkeypatch):
    def empty(*_, **__):
        raise RuntimeError("CUDA error: out of memory.\nCUDA kernel errors might be asynchronously reported.")

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=mentioning("device=cuda", "CUDA", "out of memory")) as note:
        accelerate.pick_device("cuda")
    assert "asynchronously" not in str(note.value)


@pytest.mark.parametrize(("word", "said"), [("auto", True), ("mps", False)])
def test_automatically_selected_untested_gpu_gives_a_note(word, said):
    note = device_note(word, torch.device("mps"))
    assert (note is not None and "device=cpu" in note) == said


def test_other_devices_have_no_lower_precision():
    assert lower_precision(torch.device("mps")) is None


def test_equal_gpus_have_equal_titles(monkeypatch):
    """A study accepts workers on one hardware only, which may be several equal GPUs."""
    names = ["an A100", "an A100", "an H100"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    first, second, other = (device_title(torch.device(f"cuda:{index}")) for index in range(3))
    assert first == second != other


@pytest.mark.parametrize(
    ("cpuinfo", "title"),
    [
        ("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nprocessor\t: 1\nmodel name\t: Another", "A CPU @ 2 GHz"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x3\nCPU part\t: 0xd0c", "arm 0x41 0xd0c 0x3"),
        ("", "arm"),
    ],
)
def test_cpu_title_uses_proc_cpuinfo(monkeypatch, cpuinfo, title):
    """ARM processors have no model name there, but Graviton 2 and 3 have different part numbers."""
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path, **_: cpuinfo)
    monkeypatch.setattr(accelerate.platform, "processor", lambda: "arm")
    assert device_title(torch.device("cpu")).startswith(f"{title}, {torch.get_num_threads()} threads")


def test_apple_cpu_title_uses_sysctl(monkeypatch):
    commands = []

    def answer(words, **_):
        commands.append(words)
        return SimpleNamespace(stdout="Apple M3 Pro\n")

    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(accelerate.platform, "processor", lambda: "arm")
    monkeypatch.setattr(accelerate.sys, "platform", "darwin")
    monkeypatch.setattr(accelerate.subprocess, "run", answer)
    assert device_title(torch.device("cpu")).startswith("Apple M3 Pro, ")
    assert device_title(torch.device("mps")).startswith("mps of Apple M3 Pro, ")
    assert commands[0] == ("sysctl", "-n", "machdep.cpu.brand_string")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_uses_the_given_precision(precision, dtype):
    one = torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert (one @ one).dtype == dtype


@pytest.mark.parametrize(
    ("workers", "cores", "free_gib", "sharing", "given"),
    [
        (8, 2, 16, 1, 8),  # four per core
        (9, 2, 16, 1, 8),
        (1000, 2, 16, 1, 8),
        (1000, 16, 16, 1, 64),
        (1000, 16, 1, 1, 16),  # 64 MiB each
        (1000, 16, 16, 4, 16),  # four processes with four cores each
        (1000, 2, 16, 4, 4),  # four processes on two cores
        (4, 16, 0.15, 1, 2),
        (4, 16, -1, 1, 0),
        (0, 1, 0, 1, 0),
    ],
)
def test_workers_are_limited_by_cores_and_memory(monkeypatch, workers, cores, free_gib, sharing, given):
    monkeypatch.setattr(accelerate, "cores", lambda: cores)
    monkeypatch.setattr(accelerate, "free_bytes", lambda device, *, sharing: int(free_gib * 2**30) // sharing)
    messages = logged_lines()
    assert workers_for(workers, torch.device("cpu"), sharing=sharing) == given
    assert len(messages) == (given < workers)
    if messages:
        assert mentions(messages[0].lower(), "workers", workers, given)
        assert ("memory" in messages[0]) == (free_gib < 16)


class Recorded(torch.Tensor):
    """A tensor that records its transfer and stays on its device."""

    def to(self, device, dtype, **how):
        self.sent = (device.type, dtype, how["non_blocking"])
        return self


@pytest.mark.parametrize(("kind", "waits"), [("cuda", False), ("mps", True), ("cpu", True)])
def test_transfers_block_except_to_cuda(kind, waits):
    """On mps, a non-blocking transfer may read freed memory (pytorch/pytorch#139550)."""
    tensor = torch.ones(2).as_subclass(Recorded)
    assert to_device(tensor, torch.device(kind)).sent == (kind, torch.float32, not waits)


def test_dtype_and_memory_format_are_applied():
    tensor = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    sent = to_device(tensor, torch.device("cpu"), dtype=torch.float32, memory_format=torch.channels_last)
    assert sent.dtype == torch.float32
    assert sent.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(sent.byte(), tensor)


@pytest.fixture
def two_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(accelerate, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return chosen


def test_each_process_gets_its_own_gpu(two_gpus):
    assert [pick_own_device("cuda", number, 2) for number in range(2)] == [
        torch.device("cuda:0"),
        torch.device("cuda:1"),
    ]
    assert two_gpus == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_more_processes_than_gpus_are_rejected(two_gpus):
    with pytest.raises(InputError, match=mentioning("3", "2", "GPU")):
        pick_own_device("cuda", 0, 3)


@pytest.mark.parametrize("word", ["cuda:1", "mps"])
def test_one_device_for_several_processes_is_rejected(word, two_gpus):
    with pytest.raises(InputError, match=mentioning(f"device={word}", "2")):
        pick_own_device(word, 0, 2)
    assert pick_own_device(word, 0, 1) == torch.device(word)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("variable", "count", "expected"), [("1", 4, 3), ("1", 30, 1), ("5", 4, None)])
def test_processes_share_cores_unless_the_user_set_threads(variable, count, expected, device, two_gpus, monkeypatch):
    """12 cores. Launchers set OMP_NUM_THREADS to 1 if it is not set."""
    threads = []
    monkeypatch.setattr(accelerate, "cores", lambda: 12)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 30)
    assert pick_own_device(device, 0, count).type == device
    assert threads == ([] if expected is None else [expected])


def test_loader_workers_of_processes_share_cores(monkeypatch):
    monkeypatch.setattr(accelerate, "cores", lambda: 12)
    gpu = torch.device("cuda")
    assert [pick_workers(gpu, sharing=n) for n in (1, 3, 100)] == [8, 4, 1]
    assert pick_workers(torch.device("cpu"), sharing=3) == 0


def test_local_rank_alone_chooses_the_gpu(monkeypatch):
    """Some launchers set no LOCAL_WORLD_SIZE; others show each process only its own GPU."""
    chosen = []
    monkeypatch.setattr(accelerate, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_own_device("cuda", 3, 1) == torch.device("cuda:3")
    assert chosen == [torch.device("cuda:3")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_own_device("cuda", 3, 1) == torch.device("cuda")
