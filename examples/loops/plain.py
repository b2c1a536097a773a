"""Progressive learning in a plain PyTorch loop, with a network of torchvision's.

Run: python examples/loops/plain.py [STEPS [FIRST_STEP [ACCUMULATE]]]
"""

import sys

import torch
from photos import PLAN, Growing, Photos, collate
from torch.utils.data import DataLoader
from torchvision.models import efficientnet_b0

import efficientnetv2 as ev2


def train(steps=60, first_step=0, accumulate=1):
    """A run, or the rest of it from a step on. Each step has ``accumulate`` micro-batches."""
    photos = Photos()
    network = efficientnet_b0(num_classes=len(photos.classes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    words = {"progressive": PLAN, "steps": steps, "first_step": first_step, "accumulate": accumulate}
    batches = ev2.ProgressiveBatchSampler(len(photos), batch_size=16, **words)
    loader = DataLoader(Growing(photos), batch_sampler=batches, collate_fn=collate)
    network.train()
    for micro, batch in enumerate(loader, start=first_step * accumulate):
        reached = ev2.apply_regularization(network, batch["setting"])
        loss = torch.nn.functional.cross_entropy(network(batch["images"]), batch["labels"])
        (loss / accumulate).backward()
        if (micro + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
        step, setting = micro // accumulate, batch["setting"]
        print(f"step {step}: {setting.image_size} px, dropout {setting.dropout:.2f}; set: {reached}")


if __name__ == "__main__":
    train(*map(int, sys.argv[1:]))
