"""How much bf16 rounds in our training step, next to timm's: gradients of one step, and losses over twenty.

Run: python -m benchmarks.step_rounding [--model efficientnetv2_s] [--image-size 128] [--batch 8] [--seeds 6] [--record]

For each seed both networks have the same weights and images, in channels-last memory, without regularization, on
the CPU. First the gradients of one step: how far those in bf16 lie from those in fp32, relative to their length; of
all weights together, and of the median tensor. The ratio of ours to timm's is recorded. Then 20 steps as in
``train_step``: how far the losses lie from timm's in fp32. Within a few steps the networks learn the images by heart
at a high learning rate, which makes much of little; so even in fp32 ours and timm's part, and a single run in bf16
says little about who rounds more.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import torch
from benchmarks.record import record
from benchmarks.train_step import Peer, Workload, our_losses, our_recipe, timm_network
from torch import Tensor, nn

from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.device import Precision, autocast, place

STEPS = 20


@dataclass(frozen=True)
class Rounded:
    """How far gradients in bf16 lie from those in fp32, over the length of these.

    Args:
        whole: of all weights together.
        median: of the median tensor.
    """

    whole: float
    median: float

    def __str__(self) -> str:
        return f"{self.whole:.4f} (median tensor {self.median:.4f})"


def gradients(network: nn.Module, work: Workload, precision: Precision) -> dict[str, Tensor]:
    """Of one step, by the network's own names; its weights stay as they are."""
    raw, labels = work.images()
    means = Preprocessing(image_size=work.image_size)
    images = normalize(raw, mean=means.mean, std=means.std).contiguous(memory_format=torch.channels_last)
    with autocast(work.device, precision):
        logits = network(images)
    nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    found = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    network.zero_grad(set_to_none=True)
    return found


def rounded(network: nn.Module, work: Workload, exact: dict[str, Tensor]) -> Rounded:
    """The network's gradients in bf16 against given ones, which have the same names."""
    rough = gradients(network, work, "bf16")
    lengths = {name: float(torch.linalg.vector_norm(grad)) for name, grad in exact.items()}
    off = {name: float(torch.linalg.vector_norm(rough[name] - exact[name])) for name in exact}
    whole = sum(one**2 for one in off.values()) ** 0.5 / sum(one**2 for one in lengths.values()) ** 0.5
    return Rounded(whole, statistics.median(off[name] / lengths[name] for name in exact if lengths[name]))


def both(work: Workload) -> tuple[Rounded, Rounded]:
    """Ours and timm's, each against itself in fp32."""
    ours = place(work.network(), work.device).train()
    apply_regularization(ours, dropout=0.0, drop_path=0.0)
    theirs = timm_network(work).to(memory_format=torch.channels_last)
    exact, their_exact = (gradients(network, work, "fp32") for network in (ours, theirs))
    names = tensor_names("timm", work.network().architecture)
    for name, grad in exact.items():  # both are the same network, or nothing here means anything
        torch.testing.assert_close(their_exact[names[name]], grad, rtol=1e-2, atol=1e-3)
    return rounded(ours, work, exact), rounded(theirs, work, their_exact)


def strays(work: Workload) -> dict[str, list[float]]:
    """How far the losses of each side lie from timm's in fp32, at every step."""
    recipe, _ = our_recipe(work)
    sides = {
        "ours fp32": our_losses(work, recipe.model_copy(update={"precision": "fp32"})),
        "timm bf16": Peer("timm", channels_last=True, precision="bf16").losses(work),
        "ours bf16": our_losses(work, recipe.model_copy(update={"precision": "bf16"})),
    }
    plain = Peer("timm", channels_last=True).losses(work)
    exact = [float(next(plain)) for _ in range(STEPS)]
    return {side: [abs(float(next(losses)) - one) for one in exact] for side, losses in sides.items()}


def main() -> None:
    """All seeds, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnetv2_s")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    names = ("model", "image_size", "batch")
    if options.record and any(getattr(options, name) != parser.get_default(name) for name in names):
        parser.error("--record is for V2-S at 128 px in batches of 8: so the page says.")
    ratios, means = [], []
    for seed in range(options.seeds):
        device = torch.device("cpu")
        work = Workload(options.model, options.image_size, options.batch, rate=0.0, device=device, seed=seed)
        ours, theirs = both(work)
        ratios.append(ours.whole / theirs.whole)
        print(f"seed {seed}: gradients in bf16 are off by {ours}, timm's by {theirs}", flush=True)
        found = {side: (max(off), sum(off) / STEPS) for side, off in strays(work).items()}
        told = (f"{side} at most {most:.3f}, on average {mean:.4f}" for side, (most, mean) in found.items())
        print(f"  losses from timm's in fp32: {'; '.join(told)}", flush=True)
        means.append({side: mean for side, (_, mean) in found.items()})
    for side in means[0]:
        each = [one[side] for one in means]
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
        print(f"{side}: losses off by {statistics.mean(each):.4f} on average, standard error {error:.4f}")
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"step_rounding_vs_timm: {middle:.3f} ({low:.3f} to {high:.3f})")
    if options.record:
        record(
            "step_rounding_vs_timm", middle, unit="ratio", low=low, high=high, n=len(ratios),
            command=f"python -m benchmarks.step_rounding --seeds {options.seeds} --record",
        )  # fmt: skip


if __name__ == "__main__":
    main()
