"""Files for phones: LiteRT (`.tflite`), ExecuTorch (`.pte`) and Core ML (`.mlpackage`). Each takes one image."""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from efficientnetv2.exporters.graph import OUTPUTS, Encoding, ExportGraph
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_optional


class _ChannelsLast(nn.Module):
    """Normalized images (N, S, S, C), as Android's image classes give them, to outputs by name."""

    def __init__(self, graph: ExportGraph) -> None:
        super().__init__()
        self.inner = graph

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(OUTPUTS, self.inner(images.permute(0, 3, 1, 2)), strict=True))


class _Probabilities(nn.Module):
    """Images (N, C, S, S), normalized or with ``levels`` 0 to 255, to probabilities, as in Core ML classifiers."""

    scale: Tensor
    offset: Tensor

    def __init__(self, graph: ExportGraph, *, levels: bool) -> None:
        super().__init__()
        self.inner, self.levels = graph, levels
        own = graph.preprocessing
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (own.mean, own.std))
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, -1, 1, 1))
        self.register_buffer("offset", (-mean / std).float().view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        normalized = images * self.scale + self.offset if self.levels else images
        return cast(Tensor, self.inner(normalized)[1])


def write_litert(graph: ExportGraph, path: Path, encoding: Encoding, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write a LiteRT file of one image (1, S, S, C).

    `labels.txt` and `metadata.json` are a zip archive at its end, which is where LiteRT's own metadata has its files.
    Source: ai.google.dev/edge/litert, "Adding metadata", "Pack metadata and associated files into the model".
    """
    with quiet():
        litert = import_optional("litert_torch", "mobile", "Exporting to LiteRT")
        litert.config.show_progress = False
        sample = graph.sample(1).permute(0, 2, 3, 1).contiguous()
        model = litert.convert(_ChannelsLast(graph.contiguous()).eval(), sample_kwargs={"images": sample})
        model.export(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "\n".join([*json.loads(metadata["names"]), ""]))
        archive.writestr("metadata.json", json.dumps(dict(metadata)))
    return ()


def write_executorch(
    graph: ExportGraph, path: Path, encoding: Encoding, metadata: Mapping[str, str]
) -> tuple[str, ...]:
    """Write an ExecuTorch program of one image (1, C, S, S) for XNNPACK. Its method ``metadata`` returns JSON."""
    with quiet():
        exir = import_optional("executorch.exir", "mobile", "Exporting to ExecuTorch")
        backend = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        partitioner = import_optional(backend, "mobile", "Exporting to ExecuTorch").XnnpackPartitioner()
        program = torch.export.export(graph.contiguous(), (graph.sample(1),))
        constants = {"metadata": json.dumps(dict(metadata))}
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[partitioner], constant_methods=constants)
        path.write_bytes(lowered.to_executorch().buffer)
    return ()


def write_coreml(graph: ExportGraph, path: Path, encoding: Encoding, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write a Core ML package that nothing has run: with ``verified`` false in its metadata.

    ``float`` takes an array (1, C, S, S); ``uint8`` takes an image, which the Vision framework crops and resizes.
    """
    image = encoding.input == "uint8"
    if image and graph.preprocessing.channels != 3:
        raise InputError("`format=coreml` with `input=uint8` takes RGB images. Use `input=float` for this model.")
    with quiet():
        front = _Probabilities(graph.contiguous(), levels=image).eval()
        # Before the import: coremltools imports TensorFlow if it is installed, and Triton crashes if it comes later.
        program = torch.export.export(front, (graph.sample(1),)).run_decompositions({})
        ct = import_optional("coremltools", "mobile", "Exporting to Core ML")
        ct.converters.mil.frontend.torch.register_torch_op(_alias, torch_alias=["alias"], override=True)
        labels = ct.ClassifierConfig(json.loads(metadata["names"]), predicted_probabilities_output=OUTPUTS[1])
        model = ct.convert(
            program,
            source="pytorch",
            convert_to="mlprogram",
            inputs=[(ct.ImageType if image else ct.TensorType)(name="images", shape=tuple(graph.sample(1).shape))],
            outputs=[ct.TensorType(name=OUTPUTS[1])],
            classifier_config=labels if metadata["problem_type"].startswith("single") else None,
            compute_precision=ct.precision.FLOAT16 if encoding.precision == "float16" else ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS15,
            skip_model_load=True,
        )
        model.user_defined_metadata.update({**metadata, "verified": "false"})
        model.save(str(path))
    return ()


def _alias(context: Any, node: Any) -> None:
    """PyTorch's operator ``alias``, which coremltools 9 lacks: its input."""
    context.add(context[node.inputs[0]], node.name)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars and warnings of these libraries, such as those of untested versions.

    Standard output, logging and warnings change in the whole process: do not use it while other threads run.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
