"""Speed of one training step against timm and torchvision: same architecture, images, optimizer and regularization.

Run: python -m benchmarks.train_step [--only b0_224] [--compiled] [--avx2] [--rounds 9] [--record]
     python -m benchmarks.train_step --model efficientnetv2_s --image-size 128 [--device cuda] [--json]

The sides alternate within one process, one step each per round:

- each library in its common form: fp32, contiguous memory, a plain loop with AdamW;
- tuned: with channels-last memory and fused AdamW, as in ours; this with 16 bits; with ``--compiled`` both compiled,
  which takes one to three minutes each and does not count;
- our training loop with the "auto" choices on this machine. It also normalizes the images and seeds its draws.

Claims are medians and quartiles over rounds:

- ``train_step_NAME_vs_timm_default``: time of timm in its common form / our time.
- ``train_step_NAME_vs_timm_best``: time of the fastest tuned side of timm / our time.
- ``train_step_NAME_vs_torchvision_best``: time of the fastest tuned side of torchvision / our time, where it is timed.
- ``train_step_NAME_without_avx512_...``: the same on an x86 processor without AVX-512.
- ``train_step_NAME_avx2_...``: the same with ``--avx2``. It limits PyTorch, oneDNN and the compiler to AVX2 on all
  sides.

Then 20 steps without regularization from the same weights: the distance of our losses from timm's in fp32, and of
timm's losses in bf16.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from benchmarks.record import RESULTS, hardware, installed, record_spread, without_avx512
from torch import Tensor, nn

from efficientnetv2.data.loader import Batch
from efficientnetv2.data.records import Ints
from efficientnetv2.data.sampler import BatchRequest, TrainSampler
from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training.autotune import choose_precision
from efficientnetv2.training.loop import StepContext, StepOutput, train_steps
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.training.train_state import init_state
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.benchmark import TimingStats, interleave, speed_ratio
from efficientnetv2.utils.device import Precision, autocast, lower_precision, pick_device, place, synchronizer
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_torchvision
from efficientnetv2.utils.processes import keep_freed_memory
from efficientnetv2.utils.random_key import Key

OURS = "efficientnetv2"
# AdamW's usual values; speeds do not depend on them.
_LR, _WEIGHT_DECAY = 1e-3, 0.05
# Steps of the run for which our side chooses: some minutes on a CPU, ImageNet on a GPU. Ours.
_CPU_STEPS, _GPU_STEPS = 1_000, 300_000
_ROUNDS = 9


@dataclass(frozen=True)
class Workload:
    """Workload of all sides: an architecture on noise, with dropout and stochastic depth of ``rate``."""

    model: str
    image_size: int
    batch_size: int
    rate: float
    device: torch.device
    num_classes: int = 1000
    seed: int = 0

    def network(self) -> EfficientNet:
        """Build the model, with the same weights each time.

        Raises:
            InputError: There is no such architecture, or it is from another library.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = create(self.model, num_classes=self.num_classes)
        if not isinstance(model, EfficientNet):
            raise InputError(f"--model {self.model}: only networks of ours are compared (effnetv2 models).")
        return model

    def images(self) -> tuple[Tensor, Tensor]:
        """Return (N, 3, px, px) uint8 in channels-last memory and (N,) labels, on the CPU; equal each time."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch_size, self.image_size, self.image_size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return images.permute(0, 3, 1, 2), torch.arange(self.batch_size) % self.num_classes


workload = partial(Workload, device=torch.device("cpu"))
CASES = {
    "b0_224": partial(workload, "efficientnetv2_b0", 224, 32),
    "s_128": partial(workload, "efficientnetv2_s", 128, 32),
    "s_224": partial(workload, "efficientnetv2_s", 224, 16),
}
# Libraries by case. torchvision has no V2-B0.
LIBRARIES = {"b0_224": ("timm",), "s_128": ("timm", "torchvision"), "s_224": ("timm",)}
# Our name -> torchvision's name of nearly the same architecture: its padding is symmetric.
_TORCHVISION = {f"efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in "sml"}


@dataclass(frozen=True)
class Peer:
    """A plain loop with the model of "timm" or "torchvision"."""

    library: str
    channels_last: bool = False
    precision: Precision = "fp32"
    compiled: bool = False
    fused: bool = False
    cuda_graphs: bool = False

    def __str__(self) -> str:
        variants = {
            "channels-last": self.channels_last,
            "fused": self.fused,
            self.precision: self.precision != "fp32",
            "compiled": self.compiled,
            "CUDA graphs": self.cuda_graphs,
        }
        return " ".join([self.library, *(word for word, on in variants.items() if on)])

    def losses(self, work: Workload) -> Iterator[Tensor]:
        """Yield the loss of each training step, from our weights where the library has the same architecture."""
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        raw, labels = (tensor.to(work.device) for tensor in work.images())
        means = Preprocessing(image_size=work.image_size)
        images = normalize(raw, mean=means.mean, std=means.std).contiguous(memory_format=memory)
        model = (timm_network if self.library == "timm" else _torchvision_network)(work).to(work.device)
        model = model.to(memory_format=memory)
        fused = True if self.fused else None  # None leaves it to PyTorch
        optimizer = torch.optim.AdamW(model.parameters(), _LR, weight_decay=_WEIGHT_DECAY, fused=fused)
        scaler = torch.amp.GradScaler(work.device.type, enabled=self.precision == "fp16")
        call: Callable[[Tensor], Tensor] = model
        if self.compiled:
            call = torch.compile(model, mode="reduce-overhead" if self.cuda_graphs else None)
        while True:
            with autocast(work.device, self.precision):
                loss = nn.functional.cross_entropy(call(images), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            yield loss.detach()


def peers(work: Workload, *, compiled: bool, libraries: Sequence[str] = ("timm", "torchvision")) -> list[Peer]:
    """Return the sides of each installed library with this architecture: the common form, then tuned sides.

    On a GPU, only 16 bits are compiled, with and without CUDA graphs.
    """
    lower = lower_precision(work.device)
    found = []
    for library in libraries:
        if not _has(library, work.model):
            continue
        tuned = [Peer(library, channels_last=True, fused=True)]
        tuned += [replace(tuned[0], precision=lower)] if lower else []
        found += [Peer(library), *tuned]
        if compiled and work.device.type == "cuda":
            found += [replace(tuned[-1], compiled=True, cuda_graphs=graphs) for graphs in (False, True)]
        elif compiled:
            found += [replace(peer, compiled=True) for peer in tuned]
    return found


def _has(library: str, model: str) -> bool:
    if importlib.util.find_spec(library) is None:
        return False
    if library == "timm":
        import timm

        return bool(timm.is_model(f"tf_{model}"))
    return model in _TORCHVISION


def timm_network(work: Workload) -> nn.Module:
    """Build the model of timm with the weights of ``work.network()``, in training mode."""
    import timm

    model: nn.Module = timm.create_model(
        f"tf_{work.model}", num_classes=work.num_classes, drop_rate=work.rate, drop_path_rate=work.rate
    )
    ours = work.network()
    state = ours.state_dict()
    names = tensor_names("timm", ours.architecture)
    model.load_state_dict({theirs: state[name] for name, theirs in names.items()})
    return model.train()


def _torchvision_network(work: Workload) -> nn.Module:
    models = import_torchvision("models")
    model: nn.Module = models.get_model(_TORCHVISION[work.model], num_classes=work.num_classes)
    apply_regularization(model, dropout=work.rate, drop_path=work.rate)
    return model.train()


def our_recipe(work: Workload, **settled: Any) -> tuple[Recipe, str]:
    """Return a recipe with the optimizer of the peers, and with speed choices for this machine; and a note about these.

    ``settled`` are fields of the recipe. ``precision`` and ``compile`` are not chosen if they are in it.
    """
    optimizer = {"name": "adamw", "lr": _LR, "weight_decay": _WEIGHT_DECAY, "momentum": 0.9, "beta2": 0.999}
    steps = _CPU_STEPS if work.device.type == "cpu" else _GPU_STEPS
    plan = ProgressiveSchedule(image_size=work.image_size, dropout=work.rate, drop_path=work.rate)
    changes: dict[str, Any] = {
        "model": work.model,
        "epochs": steps,
        "batch_size": work.batch_size,
        "ghost_batch_size": work.batch_size,
        "progressive": plan.to_json(),
        "optimizer": optimizer,
        "schedule": {"name": "constant"},
        "ema_decay": None,
        "augment": {"flip": "none"},
        "cuda_graphs": True,
        **settled,
    }
    recipe = validate_recipe(get_recipe("quick").to_json() | changes, where="train_step")
    speed = choose_precision(recipe, work.network(), steps=steps, device=work.device)
    return recipe.model_copy(update={"precision": speed.precision, "compile": speed.compile}), speed.note


Reader = Callable[[Iterable[BatchRequest]], Iterable[Batch]]


def our_losses(work: Workload, recipe: Recipe) -> Iterator[Tensor]:
    """Yield the loss of each step of our training loop, always on the images of ``work``."""
    images, labels = work.images()
    if work.device.type == "cuda":  # as the loader's images
        images, labels = images.pin_memory(), labels.pin_memory()

    def read(requests: Iterable[BatchRequest]) -> Iterable[Batch]:
        return (Batch(request, images, labels, ()) for request in requests)

    return (step.loss for step in our_steps(work, recipe, read, labels.numpy()))


def our_steps(work: Workload, recipe: Recipe, read: Reader, labels: Ints) -> Iterator[StepOutput]:
    """Yield endless steps of our training loop. ``read`` makes batches of the requested images with (N,) labels."""
    size, steps = work.batch_size, 1_000_000  # more than any caller takes
    requests = TrainSampler(labels, recipe.progressive, steps, size, size, None, Key.of(0))
    return train_steps(
        init_state(place(work.network(), work.device), recipe),
        read(requests),
        StepContext(
            recipe,
            Preprocessing(image_size=work.image_size),
            num_classes=work.num_classes,
            key=Key.of(0),
            device=work.device,
        ),
        length=RunLength(steps, steps_per_epoch=1.0),
    )


@dataclass(frozen=True)
class Speeds:
    """Seconds per round by side.

    Args:
        seconds: Side -> seconds per round.
        images: Images per round.
    """

    seconds: dict[str, list[float]]
    images: int

    def images_per_s(self, side: str) -> TimingStats:
        """Compute the median and quartiles over the rounds."""
        return TimingStats.of([self.images / one for one in self.seconds[side]])

    def ahead_of(self, side: str, *, ours: str = OURS) -> TimingStats:
        """Compute time of a side / our time, round by round."""
        return speed_ratio(self.seconds, of=ours, to=side)

    def fastest(self, prefix: str) -> str:
        """Return the fastest side with this prefix."""
        sides = [side for side in self.seconds if side.startswith(prefix)]
        return max(sides, key=lambda side: self.images_per_s(side).median)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values with the raw seconds."""
        return {
            "sides": {
                side: {
                    "images_per_s": asdict(self.images_per_s(side)),
                    "ours_ahead": asdict(self.ahead_of(side)),
                    "seconds": seconds,
                }
                for side, seconds in self.seconds.items()
            }
        }

    def lines(self) -> list[str]:
        """Return a line per side for the screen."""
        return [
            f"  {side:34} {self.images_per_s(side)} images/s, ours is {self.ahead_of(side).median:.2f} times as fast"
            for side in self.seconds
        ]


@dataclass(frozen=True)
class StepSpeeds(Speeds):
    """Speeds of steps, with our speed choices, and the seconds of the first step, which compiles."""

    choice: str
    first_s: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """See ``Speeds``."""
        plain = super().to_json()
        for side, values in plain["sides"].items():
            values["first_step_s"] = self.first_s[side]
        return {"choice": self.choice} | plain


def time_steps(
    work: Workload,
    *,
    rounds: int,
    compiled: bool,
    say: Callable[[str], object],
    libraries: Sequence[str] = ("timm", "torchvision"),
) -> StepSpeeds:
    """Time a training step of each side in turn. Peers are compiled too if requested, or if ours is."""
    torch._dynamo.reset()  # otherwise it compiles for any shape after a second shape: many minutes, slow code
    recipe, note = our_recipe(work)
    say(note)
    compiled = compiled or recipe.compile is True
    loops = {str(peer): peer.losses(work) for peer in peers(work, compiled=compiled, libraries=libraries)}
    loops[OURS] = our_losses(work, recipe)
    first_s, wait = {}, synchronizer(work.device)
    for side, loop in loops.items():
        began = time.perf_counter()
        next(loop)
        wait()
        first_s[side] = time.perf_counter() - began
        say(f"{side} begins ({first_s[side]:.1f} s)")
    calls = {side: loop.__next__ for side, loop in loops.items()}
    warmup = 1 if work.device.type == "cpu" else 4  # our CUDA graphs are captured after three steps
    return StepSpeeds(interleave(calls, rounds=rounds, warmup=warmup, wait=wait), work.batch_size, note, first_s)


def claims(name: str, found: Speeds, suffix: str = "") -> tuple[dict[str, TimingStats], str]:
    """Return the ratios, and the fastest tuned side of timm."""
    ratios = {f"train_step_{name}{suffix}_vs_timm_default": found.ahead_of("timm")}
    ratios |= {
        f"train_step_{name}{suffix}_vs_{library}_best": found.ahead_of(found.fastest(f"{library} "))
        for library in LIBRARIES[name]
    }
    return ratios, found.fastest("timm ")


def losses(work: Workload, number: int = 20) -> dict[str, list[float]]:
    """Compute losses from the same weights on the same images, and print their distance from timm's in fp32."""
    recipe, _ = our_recipe(work)
    plain = recipe.model_copy(update={"precision": "fp32", "compile": False})
    sides = {
        "timm": Peer("timm", channels_last=True).losses(work),
        "timm bf16": Peer("timm", channels_last=True, precision="bf16").losses(work),
        f"ours {recipe.precision}": our_losses(work, recipe),
        "ours fp32": our_losses(work, plain),
    }
    found = {side: [float(loss) for loss in itertools.islice(loop, number)] for side, loop in sides.items()}
    for side, values in found.items():
        distances = [abs(one - exact) for one, exact in zip(values, found["timm"], strict=True)]
        print(
            f"  {side:10} loss {values[0]:.4f} to {values[-1]:.4f}; from timm's in fp32 at most {max(distances):.4f}, "
            f"on average {sum(distances) / number:.4f}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", choices=list(CASES), action="append")
    add("--compiled", action="store_true", help="time compiled sides of the peers too")
    add("--avx2", action="store_true", help="no instructions beyond AVX2")
    add("--rounds", type=int, default=_ROUNDS)
    add("--record", action="store_true", help="write results/summary.json and train_step.json")
    other = parser.add_argument_group("another architecture, which is not recorded")
    other.add_argument("--model", help="name of a published architecture")
    other.add_argument("--image-size", type=int, default=224)
    other.add_argument("--batch-size", type=int, default=32)
    other.add_argument("--device", default="auto")
    other.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.model:
        if options.record or options.only:
            parser.error("--model is for another network: leave out --record and --only.")
        _time_other(options, parser)
        return
    if options.record and not options.compiled:
        parser.error("--record is for all of timm's sides, its compiled ones too: add --compiled.")
    if options.avx2:
        _limit_to_avx2()
    for name in options.only or CASES:
        case = CASES[name]
        print(f"\n{name}", flush=True)
        found = time_steps(
            case(rate=0.1), rounds=options.rounds, compiled=options.compiled, say=print, libraries=LIBRARIES[name]
        )
        print(*found.lines(), sep="\n", flush=True)
        suffix = "_avx2" if options.avx2 else without_avx512()
        ratios, best = claims(name, found, suffix)
        for claim, spread in ratios.items():
            print(f"  {claim}: {spread}{f' ({best})' if claim.endswith('timm_best') else ''}", flush=True)
        compared = losses(case(rate=0.0))
        if options.record:
            results = {"best": best, "losses": compared} | found.to_json()
            keep(name + suffix, results, ratios, options.rounds, limited=options.avx2)


def _limit_to_avx2() -> None:
    """Restart with environment variables that libraries read when they are loaded."""
    if os.environ.get("ATEN_CPU_CAPABILITY") != "avx2":
        env = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:]], env)
    torch._inductor.config.cpp.simdlen = 256


def _time_other(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Time any architecture on any device; print JSON or lines."""
    device = pick_device(options.device)
    work = Workload(options.model, options.image_size, options.batch_size, rate=0.1, device=device)
    try:
        found = time_steps(
            work,
            rounds=options.rounds,
            compiled=options.compiled,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except InputError as error:
        parser.error(str(error))
    facts = {"model": work.model, "image_size": work.image_size, "batch_size": work.batch_size}
    facts |= {"device": str(device), "rounds": options.rounds, "versions": library_versions()}
    print(json.dumps(facts | found.to_json()) if options.json else "\n".join(found.lines()))


def keep(
    name: str, found: dict[str, Any], ratios: dict[str, TimingStats], rounds: int, *, limited: bool = False
) -> None:
    """Write claims to the summary, and raw seconds and losses to train_step.json."""
    command = f"python -m benchmarks.train_step --compiled{' --avx2' * limited}"
    command += "" if rounds == _ROUNDS else f" --rounds {rounds}"
    machine = hardware() + ", limited to AVX2" * limited
    for claim, spread in ratios.items():
        record_spread(claim, spread, unit="ratio", command=command, on=machine, versions=installed("timm"))
    path = RESULTS / "train_step.json"
    recorded = json.loads(path.read_text()) if path.exists() else {}
    recorded[name] = found | {"hardware": machine, "versions": installed("timm")}
    path.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    main()
