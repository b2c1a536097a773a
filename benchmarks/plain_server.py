"""A plain FastAPI server of a PyTorch model, without batching: the baseline of ``benchmarks.server_load``.

Run: python -m benchmarks.plain_server MODEL PORT
"""

from __future__ import annotations

import io
import sys

import torch
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from torchvision.transforms import v2

import efficientnetv2 as ev2

app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> list[tuple[str, float]]:
    image = Image.open(io.BytesIO(await request.body())).convert("RGB")
    with torch.inference_mode():
        probabilities = network(transform(image)[None].to(memory_format=torch.channels_last)).softmax(1)[0]
    shares, classes = probabilities.topk(5)
    return [(network.class_names[k], share) for k, share in zip(classes.tolist(), shares.tolist(), strict=True)]


if __name__ == "__main__":
    network = ev2.load(sys.argv[1]).eval().to(memory_format=torch.channels_last)
    own = network.preprocessing
    resize = v2.Resize(round(own.image_size / own.crop_pct), v2.InterpolationMode.BICUBIC)
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(own.mean, own.std)]
    transform = v2.Compose([resize, v2.CenterCrop(own.image_size), *to_float])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
