"""Rounding errors of bf16 in our training step and timm's: gradients of one step, and losses of twenty steps.

Run: python -m benchmarks.step_rounding [--model efficientnetv2_s] [--image-size 128] [--batch 8] [--seeds 6] [--record]

For each seed both models have the same weights and images, channels-last memory and no regularization, on the CPU.

First, the gradients of one step: the norm of the difference between bf16 and fp32 / the norm in fp32, of all weights
together and of the median tensor. ``step_rounding_vs_timm`` is our error of all weights / timm's error, the median over
seeds.

Then, 20 steps as in ``train_step``: the distance of the losses from timm's in fp32. At a high learning rate, the models
memorize the images within a few steps, which amplifies small differences. So even in fp32 the two sides diverge, and a
single run in bf16 does not show which side rounds more.
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
    """Relative errors of gradients in bf16: norm of the difference from fp32 / norm in fp32.

    Args:
        whole: Error of all weights together.
        median: Error of the median tensor.
    """

    whole: float
    median: float

    def __str__(self) -> str:
        return f"{self.whole:.4f} (median tensor {self.median:.4f})"


def gradients(model: nn.Module, work: Workload, precision: Precision) -> dict[str, Tensor]:
    """Return the gradients of one step by name. The weights do not change."""
    raw, labels = work.images()
    means = Preprocessing(image_size=work.image_size)
    images = normalize(raw, mean=means.mean, std=means.std).contiguous(memory_format=torch.channels_last)
    with autocast(work.device, precision):
        logits = model(images)
    nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def rounded(model: nn.Module, work: Workload, exact: dict[str, Tensor]) -> Rounded:
    """Compare the gradients in bf16 with exact gradients of the same names."""
    inexact = gradients(model, work, "bf16")
    lengths = {name: float(torch.linalg.vector_norm(grad)) for name, grad in exact.items()}
    errors = {name: float(torch.linalg.vector_norm(inexact[name] - exact[name])) for name in exact}
    whole = sum(one**2 for one in errors.values()) ** 0.5 / sum(one**2 for one in lengths.values()) ** 0.5
    return Rounded(whole, statistics.median(errors[name] / lengths[name] for name in exact if lengths[name]))


def both(work: Workload) -> tuple[Rounded, Rounded]:
    """Return the errors of ours and of timm, each against its gradients in fp32."""
    ours = place(work.network(), work.device).train()
    apply_regularization(ours, dropout=0.0, drop_path=0.0)
    theirs = timm_network(work).to(memory_format=torch.channels_last)
    exact, their_exact = (gradients(model, work, "fp32") for model in (ours, theirs))
    names = tensor_names("timm", work.network().architecture)
    for name, grad in exact.items():  # the comparison needs equal models
        torch.testing.assert_close(their_exact[names[name]], grad, rtol=1e-2, atol=1e-3)
    return rounded(ours, work, exact), rounded(theirs, work, their_exact)


def loss_distances(work: Workload) -> dict[str, list[float]]:
    """Return the distance of the losses from timm's in fp32, by side and step."""
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
        found = {side: (max(off), sum(off) / STEPS) for side, off in loss_distances(work).items()}
        distances = (f"{side} at most {largest:.3f}, on average {mean:.4f}" for side, (largest, mean) in found.items())
        print(f"  losses from timm's in fp32: {'; '.join(distances)}", flush=True)
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
