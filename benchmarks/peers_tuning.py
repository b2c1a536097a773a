"""What is tried to find timm's best settings, and how rates go on: optimizer, rate, then part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.peers_training import Timm

Scores = Callable[[str, Mapping[str, Timm]], Mapping[str, float]]  # top-1 by label, of a stage of tuning
_OPTIMIZERS = {
    "adamw": ("--opt", "adamw", "--opt-kwargs", "fused=True", "--weight-decay", "0.05"),
    "rmsprop": ("--opt", "rmsproptf", "--opt-eps", "0.001", "--weight-decay", "1e-5"),
    "sgd": ("--opt", "sgd", "--weight-decay", "5e-5"),
}
_RATES = {"adamw": 3e-3, "rmsprop": 0.012, "sgd": 0.1}
# What is tried in turn, the first of each being what the trials before it had. Ours.
_SCHEDULES = {
    "cosine, warm-up 1": ("--sched", "cosine", "--warmup-epochs", "1"),
    "cosine, warm-up 2": ("--sched", "cosine", "--warmup-epochs", "2"),
    "linear, warm-up 1": ("--sched", "poly", "--decay-rate", "1", "--warmup-epochs", "1"),
}
_LIGHT = ("--scale", "0.35", "1.0", "--drop", "0.1", "--drop-path", "0.1")
_STRENGTHS = {
    "light": _LIGHT,
    "none": ("--scale", "0.35", "1.0"),
    # With a warm-up: after so few updates an average without one is still a quarter what it began with.
    "average": (*_LIGHT, "--model-ema", "--model-ema-decay", "0.998", "--model-ema-warmup"),
    "the paper's": ("--aa", "rand-m6-mstd0.5", "--drop", "0.2", "--drop-path", "0.2"),
}
_PARTS = {
    "schedule": _SCHEDULES,
    "strength": _STRENGTHS,
    "batch": {size: ("-b", size) for size in ("64", "32")},
}


def tuned_timm(timm: Timm, top1: Scores) -> tuple[float, Timm]:
    """The best that was tried, and its top-1: optimizer, rate, then part by part.

    Args:
        timm: without these.
        top1: of a stage and its sides by label.
    """
    for part, choices in _PARTS.items():
        timm = timm.with_part(part, next(iter(choices.values())))
    kinds = {kind: _optimizing(timm, kind, 1) for kind in _OPTIMIZERS}
    scores = top1("optimizer", kinds)
    kind = max(scores, key=lambda one: scores[one])
    best = _of_best_rate(timm, kind, scores[kind], top1)
    for part, choices in _PARTS.items():
        others = list(choices.items())[1:]
        best = _better(best, top1, part, {label: best[1].with_part(part, words) for label, words in others})
    return best


def _of_best_rate(timm: Timm, kind: str, own: float, top1: Scores) -> tuple[float, Timm]:
    """With half and twice the optimizer's own rate, and further rates as ``beyond_ends`` has them."""

    def scores(*factors: float) -> dict[float, float]:
        sides = {f"{_RATES[kind] * factor:g}": _optimizing(timm, kind, factor) for factor in factors}
        return dict(zip(factors, top1("rate", sides).values(), strict=True))

    found = beyond_ends({1.0: own} | scores(0.5, 2), lambda factor: scores(factor)[factor])
    best = max(found, key=lambda factor: found[factor])
    return found[best], _optimizing(timm, kind, best)


def beyond_ends(found: Mapping[float, float], score: Callable[[float], float]) -> dict[float, float]:
    """Scores by rate, with half of the least or twice the largest, until the best lies between others.

    Args:
        found: of some rates.
        score: of a further one.
    """
    known = dict(found)
    while True:
        best = max(known, key=lambda rate: known[rate])
        if best not in (min(known), max(known)):
            return known
        further = best / 2 if best == min(known) else best * 2
        known[further] = score(further)


def _better(
    best: tuple[float, Timm], top1: Scores, stage: str, sides: Mapping[str, Timm]
) -> tuple[float, Timm]:
    scores = top1(stage, sides)
    return max([best, *((scores[label], side) for label, side in sides.items())], key=lambda one: one[0])


def _optimizing(timm: Timm, kind: str, factor: float) -> Timm:
    return timm.with_part("optimizer", (*_OPTIMIZERS[kind], "--lr", f"{_RATES[kind] * factor:g}"))
