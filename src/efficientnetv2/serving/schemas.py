"""What requests and responses contain, as JSON. Source of the protocol: Open Inference Protocol, version 2, REST."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

# A wrong list has one error, instead of one for each of its items.
_Texts = Annotated[list[str], FailFast()]
# Source: Open Inference Protocol, version 2, section "Parameters". The number of them is ours.
_Parameters = Annotated[dict[str, bool | int | float | str], Field(max_length=64)]


class PredictRequest(BaseModel):
    """Images of `POST /predict`: base64 of their files, or URLs where the server allows them."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(None, description="Base64 of an image file, or a data URL.")
    images: _Texts = Field([], description="The same of several images.")
    url: str | None = Field(None, description="URL of an image.")
    urls: _Texts = Field([], description="URLs of several images.")


class ClassProbability(BaseModel):
    """A class and its probability, 0 to 1."""

    label: str
    probability: float


class ImagePrediction(ClassProbability):
    """Prediction for an image."""

    labels: list[str] = Field(description="All labels. Only a multi-label model has none or several.")
    top: list[ClassProbability] = Field(description="The most probable classes.")
    unknown_score: float | None = Field(
        None, description="Distance to the validation images; null if the model stores none."
    )
    is_unknown: bool | None = Field(None, description="Whether the image may belong to none of the classes.")
    overlay: str | None = Field(None, description="The image with a Grad-CAM heat map, as a data URL.")


class PredictResponse(BaseModel):
    """Response of `POST /predict`: a prediction per image, in order."""

    model: str
    predictions: list[ImagePrediction]


class ErrorResponse(BaseModel):
    """Response to a request that failed."""

    error: str


class ServedModelInfo(BaseModel):
    """A model of the server."""

    name: str
    num_classes: int
    image_size: int
    explains: bool = Field(description="Whether heat maps are available.")


class ModelList(BaseModel):
    """The models of the server."""

    models: list[ServedModelInfo]


class TensorInfo(BaseModel):
    """Name, type and shape of a tensor; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Response of `GET /v2/models/NAME`."""

    name: str
    platform: str = "efficientnetv2"
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    parameters: dict[str, Any]


class InputTensor(BaseModel):
    """Images: BYTES are base64 of image files; UINT8 are pixels (N, H, W, 3), or the bands of a raster."""

    name: str
    shape: list[Annotated[int, Field(gt=0, lt=2**31)]] = Field(min_length=1, max_length=8)
    datatype: Literal["BYTES", "UINT8"]
    data: list[Any] = Field([], description="Left out if the tensor follows the JSON in binary.")
    parameters: _Parameters = {}


class RequestedOutput(BaseModel):
    """An output to return."""

    name: str
    parameters: _Parameters = {}


class InferRequest(BaseModel):
    """Request of `POST /v2/models/NAME/infer`."""

    id: str | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] = Field([], max_length=8)
    parameters: _Parameters = {}


class OutputTensor(TensorInfo):
    """A result, row by row; without ``data``, it follows the JSON in binary."""

    data: list[Any] | None
    parameters: dict[str, Any] | None = None


class InferResponse(BaseModel):
    """Response of `POST /v2/models/NAME/infer`."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    id: str | None = None
    outputs: list[OutputTensor]
