"""`torch.export` programs (.pt2), which PyTorch and AOTInductor load without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from efficientnetv2.exporters.graph import Encoding, ExportGraph
from efficientnetv2.utils.errors import InputError, error_summary


def write_program(graph: ExportGraph, path: Path, encoding: Encoding, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write a program for normalized float32 images; the number of images is free.

    Raises:
        InputError: Another encoding is wanted, or PyTorch cannot trace the network.
    """
    if encoding.input != "float" or encoding.precision != "float32":
        raise InputError("`format=torch` takes normalized images in float32. Leave `input`, `half` and `int8` out.")
    graph.to(memory_format=torch.contiguous_format)  # other formats are saved with a warning
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        program = torch.export.export(graph, (graph.sample(),), dynamic_shapes=shapes)
    except Exception as error:  # PyTorch raises nearly everything where it cannot trace
        name = graph.network.display_name()
        raise InputError(f"PyTorch cannot trace {name} ({error_summary(error)}). Export another model.") from error
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(dict(metadata))})
    return ()
