"""Counters of a server in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from efficientnetv2.serving.batcher import Batcher
from efficientnetv2.serving.served_model import ModelRegistry

# Upper bounds of the time of a request, in seconds. Source: the defaults of Prometheus' client libraries.
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RequestMetrics:
    """Numbers and times of requests, by route and status."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._buckets: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(_BOUNDS) + 1))
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self.num_open = 0

    def record(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._counts[route, status] += 1
        self._buckets[route][bisect_left(_BOUNDS, seconds)] += 1
        self._seconds[route] += seconds

    def text(self, models: ModelRegistry) -> str:
        """All metrics. Source of the format: Prometheus, exposition formats, version 0.0.4."""
        lines = [
            *_family("requests_total", "counter", "Requests.", self._request_counts()),
            *_family("request_seconds", "histogram", "Seconds per request.", self._times()),
            *_family("open_requests", "gauge", "Requests without a response yet.", [("", self.num_open)]),
            *_family("reloads_total", "counter", "Models loaded again.", [("", models.num_reloads)]),
        ]
        by_model: dict[str, tuple[str, str, Callable[[Batcher[Any, Any]], float]]] = {
            "images_total": ("counter", "Predicted images.", lambda batcher: batcher.num_items),
            "batches_total": ("counter", "Computed batches.", lambda batcher: batcher.num_batches),
            "compute_seconds_total": ("counter", "Seconds of computing.", lambda batcher: batcher.compute_s),
            "queue_images": ("gauge", "Images in the queue.", lambda batcher: batcher.reserved),
            "queue_limit_images": ("gauge", "Images that the queue holds.", lambda batcher: batcher.queue),
        }
        for name, (metric_type, help_text, value) in by_model.items():
            values = [(f'{{model="{model.name}"}}', value(model.batcher)) for model in models]
            lines += _family(name, metric_type, help_text, values)
        return "\n".join([*lines, ""])

    def _request_counts(self) -> Iterable[tuple[str, float]]:
        for (route, status), count in sorted(self._counts.items()):
            yield f'{{route="{route}",status="{status}"}}', count

    def _times(self) -> Iterable[tuple[str, float]]:
        for route, buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip((*_BOUNDS, "+Inf"), buckets, strict=True):
                total += count
                yield f'_bucket{{route="{route}",le="{bound}"}}', total
            yield f'_sum{{route="{route}"}}', self._seconds[route]
            yield f'_count{{route="{route}"}}', total


def _family(name: str, metric_type: str, help_text: str, samples: Iterable[tuple[str, float]]) -> Iterable[str]:
    yield f"# HELP effnetv2_{name} {help_text}"
    yield f"# TYPE effnetv2_{name} {metric_type}"
    for suffix, value in samples:
        yield f"effnetv2_{name}{suffix} {value}"
