"""The ASGI application: routes, access, errors, counters."""

from __future__ import annotations

import heapq
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from operator import itemgetter
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from efficientnetv2.exporters.web import load_page
from efficientnetv2.inference.predictor import Prediction
from efficientnetv2.serving.inference_protocol import health_router, protocol_router
from efficientnetv2.serving.intake import RequestError, discard_body
from efficientnetv2.serving.options import Models, ServerOptions
from efficientnetv2.serving.schemas import (
    ClassProbability,
    ErrorResponse,
    ImagePrediction,
    PredictRequest,
    PredictResponse,
)
from efficientnetv2.serving.service import Service
from efficientnetv2.utils.errors import first_error

# Classes in a response, unless a request asks for more. Ours.
_TOP = 5
# Status of a request whose client has gone: nobody reads it, metrics count it. Source: nginx.
_CLIENT_GONE = 499
_REFUSED = (400, 401, 403, 404, 408, 413, 415, 422, 429, 503)
_KEY, _TOKEN = APIKeyHeader(name="X-API-Key", auto_error=False), HTTPBearer(auto_error=False)
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "application/json": {"schema": PredictRequest.model_json_schema()},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}


def create_app(models: Models, options: ServerOptions | None = None) -> FastAPI:
    """An ASGI application that serves models; `serve` runs it, and so does any ASGI server with one process.

    Example::

        from efficientnetv2.serving import ServerOptions, create_app

        app = create_app({"land_cover": "runs/mine"}, ServerOptions(batch_size=16))

    Args:
        models: A model file or a run; several; or a mapping from names to them.
        options: See `ServerOptions`. Default: all defaults.

    Returns:
        The application, with its models loaded. `await app.state.service.models.reload(name)` loads a model again.

    Raises:
        InputError: A model can't be loaded, or the extra `serve` is not installed.
    """
    service = Service(models, options or ServerOptions())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # The pages of documentation that FastAPI has load scripts from other hosts.
    app = FastAPI(
        title="efficientnetv2", version=version("efficientnetv2"), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    app.add_middleware(_Recorder, service=service)
    _add_error_handlers(app, service)
    _add_page(app)
    app.include_router(health_router())
    refused: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in _REFUSED}
    access = [Depends(_access(service.options.api_keys))]
    app.include_router(protocol_router(service), dependencies=access, responses=refused)

    @app.post("/predict", dependencies=access, responses=refused, openapi_extra={"requestBody": _BODY})
    async def predict(
        request: Request,
        model: Annotated[str | None, Query(description="Name of the model. Default: the first one.")] = None,
        top: Annotated[int, Query(ge=1, description="Number of classes in the response.")] = _TOP,
        explain: Annotated[bool, Query(description="Add a Grad-CAM heat map of each image.")] = False,
    ) -> PredictResponse:
        """Predict images: a form with files, the bytes of a file, or JSON with base64 or URLs."""
        served, found = await service.predict(request, model, service.read_predict, explain=explain)
        predictions = [_image_prediction(prediction, top, overlay) for prediction, overlay in found]
        return PredictResponse(model=served.name, predictions=predictions)

    @app.get("/metrics", dependencies=access, response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counters in the text format of Prometheus."""
        return PlainTextResponse(service.metrics.text(service.models), media_type="text/plain; version=0.0.4")

    return app


def _image_prediction(prediction: Prediction, top: int, overlay: str | None) -> ImagePrediction:
    best = heapq.nlargest(top, prediction.probabilities.items(), key=itemgetter(1))
    return ImagePrediction(
        label=prediction.label,
        probability=prediction.probability,
        labels=list(prediction.labels),
        top=[ClassProbability(label=label, probability=probability) for label, probability in best],
        unknown_score=prediction.unknown_score,
        is_unknown=prediction.is_unknown,
        overlay=overlay,
    )


def _add_page(app: FastAPI) -> None:
    html, policy = load_page()
    headers = {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)


def _access(api_keys: tuple[str, ...]) -> Any:
    """A dependency that refuses requests without a key, if there are keys."""

    async def check(
        key: Annotated[str | None, Security(_KEY)],
        token: Annotated[HTTPAuthorizationCredentials | None, Security(_TOKEN)],
    ) -> None:
        given = (key or (token.credentials if token else "")).encode()
        # All are compared, so that the time does not depend on which one fits.
        if api_keys and not sum(secrets.compare_digest(given, known.encode()) for known in api_keys):
            raise RequestError(401, "the API key is missing or wrong. Send the header Authorization: Bearer KEY")

    return check


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    """All errors are `{"error": message}`, as the Open Inference Protocol has them."""

    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> Response:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        is_unread = error.is_body_unread and not (error.status == 413 and await discard_body(request))
        # Without an end of the body in sight, only closing the connection ends the request.
        if is_unread or not _has_small_body(request, service.options.max_bytes):
            headers["Connection"] = "close"
        return _error(error.status, error.message, headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_arguments(request: Request, error: RequestValidationError) -> Response:
        return _error(400, f"{first_error(error.errors())}.")

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, error.detail, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def forget(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_CLIENT_GONE)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return _error(500, "the server failed. Its log has the reason.")


def _has_small_body(request: Request, max_bytes: int) -> bool:
    """Whether a body is declared to end within the limit: the server skips what was not read."""
    if "transfer-encoding" in request.headers:
        return False
    declared = request.headers.get("content-length", "0")
    return declared.isascii() and declared.isdigit() and int(declared) <= max_bytes


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


class _Recorder:
    """Counts requests and their time, and forbids browsers to guess types."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._metrics = app, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            await send(message)

        self._metrics.num_open += 1
        try:
            await self._app(scope, receive, record)
        finally:
            self._metrics.num_open -= 1
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.record(route, status, time.perf_counter() - started)
