"""``effnetv2 serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.options import advanced, argument, between, expanded, flag, option
from efficientnetv2.cli.parsing import ADVANCED

if TYPE_CHECKING:
    from fastapi import FastAPI


def serve(
    models: Annotated[
        list[str],
        argument("MODEL", "A model.safetensors, a run folder or pretrained weights; several; NAME=PATH gives a name."),
    ],
    host: Annotated[str, option("Address to listen on. 0.0.0.0: all of this machine.", "ADDRESS")] = "127.0.0.1",
    port: Annotated[int, option("Port to listen on. 0: any free one.", "N", check=between(0, 65_535))] = 8000,
    api_key_file: Annotated[Path | None, option("File of API keys, one per line.", "FILE")] = None,
    device: options.Device = "auto",
    batch_size: Annotated[int, option("Images to compute at a time, at most.", "N", check=between(1))] = 32,
    max_wait_ms: Annotated[float, option("Time that an image waits for a batch.", "MS", check=between(0))] = 5.0,
    queue: Annotated[int, option("Images in the queue, at most; then status 429.", "N", check=between(1))] = 256,
    timeout: Annotated[float, option("Seconds per request, at most.", "S", check=between(1))] = 30.0,
    max_bytes: Annotated[int, advanced("Bytes of a request, at most.", "N", check=between(1))] = 33_554_432,
    max_pixels: Annotated[int, advanced("Pixels of an image, at most.", "N", check=between(1))] = 50_000_000,
    max_images: Annotated[int, advanced("Images of a request, at most.", "N", check=between(1))] = 32,
    allow_urls: Annotated[
        bool, flag("--allow-urls", "Fetch images by URL, from public addresses.", panel=ADVANCED)
    ] = False,
    engine: options.Engine = "auto",
) -> None:
    """Serve models over HTTP, with a web page.

    Press Ctrl-C to stop.

    Examples:
    - `effnetv2 serve runs/demo`
    - `effnetv2 serve runs/demo --host 0.0.0.0 --api-key-file keys.txt`
    - `effnetv2 serve cats=runs/one dogs=runs/two --port 9000`
    """
    from efficientnetv2 import serving
    from efficientnetv2.serving.options import read_api_keys

    with Screen() as screen:
        chosen = serving.ServerOptions(
            device=device,
            engine=engine,
            batch_size=batch_size,
            max_wait_ms=max_wait_ms,
            queue=queue,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            max_images=max_images,
            timeout=timeout,
            allow_urls=allow_urls,
            api_keys=() if api_key_file is None else read_api_keys(api_key_file),
        )

        def show(url: str, app: FastAPI) -> None:
            for model in app.state.service.models:
                screen.say(f"Model: {model.name} ({model.predictor!r})")
            screen.say(f"Page: {url}/")
            key = "" if api_key_file is None else '-H "Authorization: Bearer KEY" '
            curl = "curl.exe" if os.name == "nt" else "curl"  # PowerShell has another command of this name
            screen.say(f"Example: {curl} -F image=@photo.jpg {key}{url}/predict")

        serving.serve(expanded(models), chosen, host=host, port=port, on_start=show)
