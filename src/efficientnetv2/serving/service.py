"""From a request to predictions, within the limits of the server; and the counters of requests."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from efficientnetv2.inference.predictor import Prediction
from efficientnetv2.serving import request_images
from efficientnetv2.serving.batcher import Batcher
from efficientnetv2.serving.intake import Intake, LimitedRequest, RequestError
from efficientnetv2.serving.options import Models, ServerOptions, name_models
from efficientnetv2.serving.schemas import InferRequest, PredictRequest
from efficientnetv2.serving.served_model import ModelRegistry, SentImage, ServedModel
from efficientnetv2.utils.errors import short_repr
from efficientnetv2.utils.processes import cores

Value = TypeVar("Value")

# Threads that decode images, at most. Ours.
_MAX_DECODERS = 8
# Upper bounds of the time of a request, in seconds. Source: the defaults of Prometheus' client libraries.
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Service:
    """The models of a server, its limits and its counters."""

    def __init__(self, models: Models, options: ServerOptions) -> None:
        self.options = options
        self.pool = ThreadPoolExecutor(min(_MAX_DECODERS, cores()), thread_name_prefix="decode")
        self.models = ModelRegistry(name_models(models), options, self.pool)
        # One thread: while JSON is parsed, its values take many times the bytes of the body.
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="json")
        self.intake = Intake(options.max_bytes)
        self.metrics = RequestMetrics()

    def close(self) -> None:
        """End all threads."""
        self.models.close()
        for threads in (self.pool, self._parser):
            threads.shutdown(wait=False, cancel_futures=True)

    async def predict(
        self,
        request: Request,
        name: str | None,
        read: Callable[[LimitedRequest], Awaitable[Sequence[SentImage]]],
        *,
        explain: bool = False,
    ) -> tuple[ServedModel, list[tuple[Prediction, str | None]]]:
        """A model's predictions for a request, with heat maps if wanted. Raises RequestError or ClientDisconnect."""
        deadline = asyncio.get_running_loop().time() + self.options.timeout
        with self._model(name, explain=explain).reserve(1):  # a full queue refuses a request before it is read
            pass
        with self.intake.admit(request) as limited:
            images = await self._read(limited, read, deadline)
            model = self._model(name, explain=explain)  # it may have been loaded again
            with model.reserve(len(images)):
                return model, await self._unless_gone(request, _predicted(model, images, explain), deadline)

    async def read_predict(self, request: LimitedRequest) -> Sequence[SentImage]:
        """The images of `POST /predict`."""
        body_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if body_type == "multipart/form-data":
            return await request_images.form_images(request, self.options.max_images)
        if body_type.startswith("image/") or body_type == "application/octet-stream":
            return [SentImage("the image", await request.body())]
        if body_type != "application/json":
            raise RequestError(
                415,
                "the content type must be multipart/form-data, application/json, image/* or "
                "application/octet-stream. Send a form: curl -F image=@photo.jpg URL",
            )
        images, urls = await self._in_parser(partial(self._parse_predict, await request.body()))
        for url in urls:
            request.fetched_url = url
            images.append(SentImage(url[:60], await request_images.fetch(url, request.count, self.options.timeout)))
        return images

    def _parse_predict(self, content: bytes) -> tuple[list[SentImage], list[str]]:
        """The images and the URLs of the JSON of `POST /predict`."""
        body = request_images.parse(PredictRequest, content)
        texts = [text for text in (body.image, *body.images) if text is not None]
        urls = [url for url in (body.url, *body.urls) if url is not None]
        if urls and not self.options.allow_urls:
            raise RequestError(403, "this server fetches no URLs. Send the image.")
        if not texts and not urls:
            raise RequestError(400, request_images.NO_IMAGE)
        self._refuse_many(len(urls) + len(texts))
        return request_images.base64_images(texts), urls

    async def read_infer(self, request: Request) -> tuple[InferRequest, Sequence[SentImage]]:
        """The request of `POST /v2/models/NAME/infer`, and its images."""
        header = request.headers.get("inference-header-content-length")
        text, binary = request_images.split_binary(await request.body(), header)
        return await self._in_parser(partial(self._parse_infer, text, binary))

    def _parse_infer(self, text: bytes, binary: bytes) -> tuple[InferRequest, Sequence[SentImage]]:
        body = request_images.parse(InferRequest, text)
        self._refuse_many(request_images.num_tensor_images(body))
        images = request_images.tensor_images(body, binary)
        body.inputs[0].data.clear()  # it takes more memory than its images, and the request is kept until its response
        return body, images

    async def _read(
        self, request: LimitedRequest, read: Callable[[LimitedRequest], Awaitable[Sequence[SentImage]]], deadline: float
    ) -> Sequence[SentImage]:
        try:
            async with asyncio.timeout_at(deadline):
                return await read(request)
        except TimeoutError as error:
            raise self._late(request) from error

    def _model(self, name: str | None, *, explain: bool) -> ServedModel:
        """A model by its name, that has heat maps if they are wanted. Raises RequestError."""
        model = self.models.get(name)
        if explain and not model.explains:
            raise RequestError(400, f"model '{model.name}' has no heat maps. Leave 'explain' out.")
        return model

    def _late(self, request: LimitedRequest) -> RequestError:
        """Why the images of a request were not there in time."""
        within = f"within {self.options.timeout:g} s"
        if request.fetched_url:
            return RequestError(422, f"{short_repr(request.fetched_url)} did not respond {within}. Send the image.")
        if request.is_received:
            return RequestError(503, f"the request was not parsed {within}. Try again.", retry_after=1)
        return RequestError(408, f"the request did not arrive {within}. Send a smaller one.", is_body_unread=True)

    def _refuse_many(self, count: int) -> None:
        if count > self.options.max_images:
            raise RequestError(413, f"{count} images are more than {self.options.max_images}. Send several requests.")

    async def _in_parser(self, function: Callable[[], Value]) -> Value:
        """Call a function in the thread that parses: it may take long for a large body."""
        return await asyncio.get_running_loop().run_in_executor(self._parser, function)

    async def _unless_gone(self, request: Request, work: Coroutine[None, None, Value], deadline: float) -> Value:
        """The result of some work, which ends early if the client hangs up or the time is over."""
        working, gone = asyncio.create_task(work), asyncio.create_task(_hang_up(request))
        try:
            left_s = max(0.0, deadline - asyncio.get_running_loop().time())
            done, _ = await asyncio.wait({working, gone}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if working in done:
                return working.result()
            if gone in done:
                raise ClientDisconnect
            message = f"the predictions took longer than {self.options.timeout:g} s. Send fewer images, or try again."
            raise RequestError(503, message, retry_after=1)
        finally:
            for task in (working, gone):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task


async def _hang_up(request: Request) -> None:
    """Wait until the client has gone. The body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _predicted(
    model: ServedModel, images: Sequence[SentImage], explain: bool
) -> list[tuple[Prediction, str | None]]:
    found = await model.predict(images)
    return [(prediction, await model.explain(prediction, pixels) if explain else None) for prediction, pixels in found]


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
