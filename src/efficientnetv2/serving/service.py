"""From a request to predictions, within the limits of the server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from efficientnetv2.inference.predictor import Prediction
from efficientnetv2.serving import request_images
from efficientnetv2.serving.fetch import fetch
from efficientnetv2.serving.intake import Intake, LimitedRequest, RequestError
from efficientnetv2.serving.metrics import RequestMetrics
from efficientnetv2.serving.options import Models, ServerOptions, name_models
from efficientnetv2.serving.schemas import InferRequest, PredictRequest
from efficientnetv2.serving.served_model import ModelRegistry, SentImage, ServedModel

Value = TypeVar("Value")

# Threads that decode images, at most. Ours.
_MAX_DECODERS = 8


class Service:
    """The models of a server, its limits and its counters."""

    def __init__(self, models: Models, options: ServerOptions) -> None:
        self.options = options
        self.pool = ThreadPoolExecutor(min(_MAX_DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")
        self.models = ModelRegistry(name_models(models), options, self.pool)
        self.intake = Intake(options.max_bytes)
        self.metrics = RequestMetrics()

    def close(self) -> None:
        """End all threads."""
        self.models.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def predict(
        self,
        request: Request,
        name: str | None,
        read: Callable[[LimitedRequest], Awaitable[Sequence[SentImage]]],
        *,
        explain: bool = False,
    ) -> tuple[ServedModel, list[tuple[Prediction, str | None]]]:
        """A model's predictions for the images of a request, with heat maps if wanted.

        Raises:
            RequestError: The request is refused.
            ClientDisconnect: The client has gone.
        """
        deadline = asyncio.get_running_loop().time() + self.options.timeout
        model = self.models.get(name)
        if explain and not model.explains:
            raise RequestError(400, f"model '{model.name}' has no heat maps. Leave 'explain' out.")
        with model.reserve(1):  # a full queue refuses a request before it is read
            pass
        with self.intake.admit(request) as limited:
            images = await self._read(limited, read, deadline)
            model = self.models.get(name)  # it may have been loaded again
            with model.reserve(len(images)):
                return model, await self._unless_gone(request, _predicted(model, images, explain), deadline)

    async def read_predict(self, request: LimitedRequest) -> Sequence[SentImage]:
        """The images of `POST /predict`."""
        body_type = request_images.content_type(request)
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
        body = await self._in_pool(partial(request_images.parse, PredictRequest, await request.body()))
        urls = request_images.json_urls(body)
        if urls and not self.options.allow_urls:
            raise RequestError(403, "this server fetches no URLs. Send the image.")
        self._refuse_many(len(urls) + len(body.images))
        images = await self._in_pool(partial(request_images.json_images, body))
        fetched = []
        for url in urls:
            fetched.append(SentImage(url[:60], await fetch(url, request.count, self.options.timeout)))
        return [*images, *fetched]

    async def parse_infer(self, request: Request) -> tuple[InferRequest, Sequence[SentImage]]:
        """The request of `POST /v2/models/NAME/infer`, and its images."""
        header = request.headers.get("inference-header-content-length")
        text, binary = request_images.split_binary(await request.body(), header)
        body = await self._in_pool(partial(request_images.parse, InferRequest, text))
        self._refuse_many(request_images.num_tensor_images(body))
        return body, await self._in_pool(partial(request_images.tensor_images, body, binary))

    async def _read(
        self, request: LimitedRequest, read: Callable[[LimitedRequest], Awaitable[Sequence[SentImage]]], deadline: float
    ) -> Sequence[SentImage]:
        try:
            async with asyncio.timeout_at(deadline):
                return await read(request)
        except TimeoutError as error:
            message = f"the request did not arrive within {self.options.timeout:g} s."
            raise RequestError(408, message, is_body_unread=True) from error

    def _refuse_many(self, count: int) -> None:
        if count > self.options.max_images:
            raise RequestError(413, f"{count} images are more than {self.options.max_images}. Send several requests.")

    async def _in_pool(self, function: Callable[[], Value]) -> Value:
        """Call a function in a thread: it may take long for a large body."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function)

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
