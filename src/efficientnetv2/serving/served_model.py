"""Models that are served: decoding in a pool, predictions by one thread per model, replacement while in use."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch

from efficientnetv2.data.image_io import Pixels, UnreadableImageError, display_channels
from efficientnetv2.exporters.engines import engine_picker
from efficientnetv2.inference.predict import PickEngine
from efficientnetv2.inference.predictor import Prediction, Predictor
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.serving.batcher import Batcher, QueueFullError
from efficientnetv2.serving.intake import RequestError, check_header
from efficientnetv2.serving.options import ServerOptions
from efficientnetv2.utils.errors import DivergedError, InputError

_logger = logging.getLogger(__name__)

# What heat maps need: seconds to import, and for matplotlib a writable folder, which a container may not have.
_FOR_HEAT_MAPS = ("captum.attr", "efficientnetv2.evaluation.explain", "efficientnetv2.evaluation.thumbnails")


@dataclass(frozen=True, eq=False)
class SentImage:
    """An image of a request: the content of a file, or (H, W, C) uint8 pixels, and how messages call it."""

    name: str
    content: bytes | Pixels


class ServedModel:
    """A model (file or run) by its name in URLs that predicts for concurrent requests; ``pool`` decodes images."""

    def __init__(self, name: str, path: str, options: ServerOptions, pool: Executor) -> None:
        self.name, self.path = name, path
        self.predictor = Predictor(path, device=options.device, batch_size=options.batch_size)
        self._pick_engine = _engine(self.predictor, options)
        self._max_pixels, self._pool = options.max_pixels, pool
        self.batcher = Batcher[Pixels, Prediction | DivergedError](
            self._predict, batch_size=options.batch_size, max_wait_s=options.max_wait_ms / 1000, queue=options.queue
        )
        self._compute([np.zeros(_shape(self.predictor), np.uint8)])  # the first one takes longer
        self._users, self._is_retired = 0, False

    @property
    def explains(self) -> bool:
        """Whether heat maps are available."""
        return isinstance(self.predictor.network, EfficientNet)

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Hold places for the images of a request, and keep the model until they are predicted. Raises RequestError."""
        try:
            with self.batcher.reserve(count):
                self._users += 1
                try:
                    yield
                finally:
                    self._users -= 1
                    self._close_if_unused()
        except QueueFullError as error:
            message = f"the queue of model '{self.name}' is full. Try again in {error.retry_after} s."
            raise RequestError(429, message, retry_after=error.retry_after) from error

    def retire(self) -> None:
        """End the thread as soon as no request uses the model."""
        self._is_retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_retired and not self._users:
            self.batcher.close()

    async def predict(self, images: Sequence[SentImage]) -> list[tuple[Prediction, Pixels]]:
        """Predictions, and images as the model saw them. Raises RequestError for the first image that is unreadable."""

        async def one(image: SentImage) -> tuple[Prediction, Pixels]:
            pixels = await asyncio.get_running_loop().run_in_executor(self._pool, self._decode, image)
            found = await self.batcher.submit(pixels)
            if isinstance(found, DivergedError):
                message = f"{image.name}: the outputs of the model are NaN or infinite. Send another image."
                raise RequestError(422, message) from found
            return found, pixels

        found = await asyncio.gather(*map(one, images), return_exceptions=True)
        for result in found:
            if isinstance(result, BaseException):
                raise result
        return found  # type: ignore[return-value]

    async def explain(self, prediction: Prediction, pixels: Pixels) -> str:
        """An image with the heat map of its predicted class, as a data URL of a JPEG."""
        try:  # the engine thread computes meanwhile
            for module in _FOR_HEAT_MAPS:
                await asyncio.get_running_loop().run_in_executor(self._pool, import_module, module)
        except OSError as error:
            message = "heat maps need a writable folder on the server. Leave 'explain' out, or set MPLCONFIGDIR there."
            raise RequestError(503, message) from error
        return await self.batcher.run(lambda: self._overlay(prediction, pixels))

    def _decode(self, image: SentImage) -> Pixels:
        try:
            if isinstance(image.content, bytes):
                check_header(image.content, self._max_pixels)
            elif image.content.shape[0] * image.content.shape[1] > self._max_pixels:
                raise RequestError(413, f"has more than {self._max_pixels:,} pixels. Send a smaller image")
            return self.predictor.decode(image.content)
        except RequestError as error:
            raise RequestError(error.status, f"{image.name}: {error.message}.") from error
        except UnreadableImageError as error:
            raise RequestError(422, f"{image.name}: {error.reason}.") from error
        except InputError as error:  # for an array, its shape
            status = 422 if isinstance(image.content, bytes) else 400
            raise RequestError(status, f"{image.name}: {error}") from error

    def _compute(self, images: Sequence[Pixels]) -> list[Prediction]:
        return self.predictor.predict_decoded(images, self._pick_engine)

    def _predict(self, images: Sequence[Pixels]) -> list[Prediction | DivergedError]:
        """Predictions; an error in the place of each image whose outputs are not finite."""
        try:
            return [*self._compute(images)]
        except DivergedError as error:
            if len(images) == 1:
                return [error]
        # The images of a batch may belong to several requests: only those of such an image fail.
        return [found for image in images for found in self._predict([image])]

    def _overlay(self, prediction: Prediction, pixels: Pixels) -> str:
        from efficientnetv2.evaluation.explain import grad_cam, overlay_heatmap
        from efficientnetv2.evaluation.thumbnails import encode_thumbnail

        label = np.array([self.predictor.classes.index(prediction.label)])
        heat = grad_cam(self.predictor.network, pixels[None], label)[0]
        overlay = overlay_heatmap(display_channels(pixels), heat)
        return str(encode_thumbnail(overlay, px=max(overlay.shape[:2]), quality=85))


class ModelRegistry:
    """The models of a server by their names; each can be loaded again while requests use it."""

    def __init__(self, paths: Mapping[str, str], options: ServerOptions, pool: Executor) -> None:
        self._options, self._pool = options, pool
        self._models = {name: ServedModel(name, path, options, pool) for name, path in paths.items()}
        self._loading = asyncio.Lock()
        self.num_reloads = 0

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, name: str | None) -> ServedModel:
        """A model by its name, or the first one. Raises RequestError."""
        if name is None:
            return next(iter(self))
        if name not in self._models:
            raise RequestError(404, f"unknown model '{name[:100]}'. Models: {', '.join(self._models)}.")
        return self._models[name]

    async def reload(self, name: str) -> None:
        """Load a model again from its path. Until it is ready, requests use the earlier one.

        A prediction ends with the model that has begun it. Raises InputError (the earlier model stays), RequestError.
        """
        earlier = self.get(name)
        async with self._loading:  # one more model in memory at a time
            # Not a thread of the pool: the pool decodes images.
            fresh = await asyncio.to_thread(ServedModel, name, earlier.path, self._options, self._pool)
            earlier, self._models[name] = self._models[name], fresh
        self.num_reloads += 1
        earlier.retire()
        _logger.info(f"Model: {name} (loaded again from {fresh.path})")

    async def reload_all(self) -> None:
        """Load all models again; log those that can't be loaded."""
        for name in list(self._models):
            try:
                await self.reload(name)
            except Exception as error:  # the server keeps the earlier one
                _logger.warning(f"Model {name} is unchanged, because it can't be loaded: {error}")

    def close(self) -> None:
        """End the threads of all models."""
        for model in self:
            model.retire()


def _shape(predictor: Predictor) -> tuple[int, int, int]:
    size = predictor.preprocessing.image_size
    return size, size, predictor.network.in_channels


def _engine(predictor: Predictor, options: ServerOptions) -> PickEngine | None:
    """What computes, chosen once: on noise, for many images to come."""
    pick = engine_picker(options.engine, predictor.device)
    if pick is None:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (options.batch_size, *_shape(predictor)), np.uint8)
    images = torch.from_numpy(noise).permute(0, 3, 1, 2)
    compute = pick(predictor.network, predictor.preprocessing, images, sys.maxsize)
    return lambda *_: compute
