"""The Open Inference Protocol, version 2, over HTTP, as KServe and Triton have it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from efficientnetv2.inference.predictor import Prediction
from efficientnetv2.serving.intake import RequestError
from efficientnetv2.serving.schemas import (
    InferRequest,
    InferResponse,
    ModelList,
    ModelMetadata,
    OutputTensor,
    ServedModelInfo,
    TensorInfo,
)
from efficientnetv2.serving.served_model import SentImage, ServedModel
from efficientnetv2.serving.service import Service
from efficientnetv2.utils.errors import InputError, shorten, truncate

_OUTPUTS = ("label", "probability", "probabilities")


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with its definitions in place: a reference to them would be from the root of the document."""
    text = json.dumps(schema)
    for name, definition in schema.get("$defs", {}).items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(definition))
    inlined: dict[str, Any] = json.loads(text)
    inlined.pop("$defs", None)
    return inlined


def health_router() -> APIRouter:
    """Routes that need no key: probes of a cluster have none."""
    router = APIRouter(tags=["Open Inference Protocol"])

    @router.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @router.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        """Whether all models are loaded: the server starts after that."""
        return {"live": True, "ready": True}

    return router


def protocol_router(service: Service) -> APIRouter:
    """Metadata and inference of the protocol, and `load` of Triton's model repository extension."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.get("")
    async def server_metadata() -> dict[str, Any]:
        """Name and version of the server."""
        return {"name": "efficientnetv2", "version": version("efficientnetv2"), "extensions": ["binary_tensor_data"]}

    @router.get("/models")
    async def list_models() -> ModelList:
        """The models of the server."""
        return ModelList(models=[_info(model) for model in service.models])

    @router.get("/models/{name}")
    async def model_metadata(name: str) -> ModelMetadata:
        """Inputs, outputs and classes of a model."""
        return _metadata(service.models.get(name))

    @router.get("/models/{name}/ready")
    async def model_ready(name: str) -> dict[str, str | bool]:
        """Whether a model is loaded."""
        return {"name": service.models.get(name).name, "ready": True}

    schema = {"content": {"application/json": {"schema": _inlined(InferRequest.model_json_schema())}}, "required": True}

    @router.post(
        "/models/{name}/infer",
        openapi_extra={"requestBody": schema},
        response_model=InferResponse,
        response_model_exclude_none=True,
    )
    async def infer(request: Request, name: str) -> InferResponse | Response:
        """Predict images: their files, as base64 or in binary, or pixels."""
        parsed: list[InferRequest] = []

        async def read(limited: Request) -> Sequence[SentImage]:
            body, images = await service.read_infer(limited)
            _check_outputs(body)
            parsed.append(body)
            return images

        model, found = await service.predict(request, name, read)
        outputs = _tensors(model, [prediction for prediction, _ in found])
        wanted = {one.name for one in parsed[0].outputs} or set(_OUTPUTS)
        response = InferResponse(
            model_name=model.name, id=parsed[0].id, outputs=[one for one in outputs if one.name in wanted]
        )
        return _in_binary(response, parsed[0])

    @router.post("/repository/models/{name}/load")
    async def load(name: str) -> dict[str, str]:
        """Load a model again from its path, without losing a request. The server must have an API key."""
        if not service.options.api_keys:
            raise RequestError(
                403, "loading a model needs a server with an API key. On Linux, SIGHUP loads all models."
            )
        try:
            await service.models.reload(name)
        except InputError as error:
            raise RequestError(400, f"model '{name}' is unchanged: {error}") from error
        return {"name": name}

    return router


def _info(model: ServedModel) -> ServedModelInfo:
    predictor = model.predictor
    size = predictor.preprocessing.image_size
    return ServedModelInfo(
        name=model.name, num_classes=len(predictor.classes), image_size=size, explains=model.explains
    )


def _metadata(model: ServedModel) -> ModelMetadata:
    classes = model.predictor.classes
    return ModelMetadata(
        name=model.name,
        inputs=[TensorInfo(name="images", datatype="BYTES", shape=[-1])],
        outputs=[
            TensorInfo(name="label", datatype="BYTES", shape=[-1]),
            TensorInfo(name="probability", datatype="FP32", shape=[-1]),
            TensorInfo(name="probabilities", datatype="FP32", shape=[-1, len(classes)]),
        ],
        parameters={"classes": list(classes), "image_size": model.predictor.preprocessing.image_size},
    )


def _check_outputs(body: InferRequest) -> None:
    if unknown := [truncate(one.name) for one in body.outputs if one.name not in _OUTPUTS]:
        raise RequestError(400, f"unknown output {shorten(unknown)}. Outputs: {', '.join(_OUTPUTS)}.")


def _tensors(model: ServedModel, predictions: Sequence[Prediction]) -> list[OutputTensor]:
    """The outputs; tensors are flat, row by row."""
    count = len(predictions)
    every = [value for prediction in predictions for value in prediction.probabilities.values()]
    shape = [count, len(model.predictor.classes)]
    return [
        OutputTensor(name="label", datatype="BYTES", shape=[count], data=[one.label for one in predictions]),
        OutputTensor(name="probability", datatype="FP32", shape=[count], data=[one.probability for one in predictions]),
        OutputTensor(name="probabilities", datatype="FP32", shape=shape, data=every),
    ]


def _in_binary(response: InferResponse, request: InferRequest) -> InferResponse | Response:
    """With the tensors that are wanted in binary after the JSON. Source: Triton, extension binary tensor data."""
    default = request.parameters.get("binary_data_output", False)
    wanted = {one.name: one.parameters.get("binary_data", default) for one in request.outputs}
    tensors = []
    for output in response.outputs:
        if wanted.get(output.name, default) is True:
            tensors.append(_tensor_bytes(output))
            output.data, output.parameters = None, {"binary_data_size": len(tensors[-1])}
    if not tensors:
        return response
    header = response.model_dump_json(exclude_none=True).encode()
    return Response(
        b"".join([header, *tensors]),
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(header))},
    )


def _tensor_bytes(output: OutputTensor) -> bytes:
    if output.datatype == "FP32":
        return np.array(output.data, "<f4").tobytes()
    texts = [text.encode() for text in output.data or ()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
