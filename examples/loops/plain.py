"""Progressive learning in a plain PyTorch loop, with a network of torchvision's. Run: python examples/loops/plain.py"""

import sys

import torch
from photos import PLAN, Photos
from torch.utils.data import DataLoader
from torchvision.models import efficientnet_b0

import efficientnetv2 as ev2

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
photos = Photos()
network = efficientnet_b0(num_classes=len(photos.classes))
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
batches = ev2.ProgressiveBatches(len(photos), batch_images=16, progressive=PLAN, steps=steps)

for step, (images, labels) in enumerate(DataLoader(photos, batch_sampler=batches)):
    setting = PLAN.at(step, steps=steps)
    reached = ev2.apply_setting(network, dropout=setting.dropout, drop_path=setting.drop_path)
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    where = ", ".join(reached.dropout_modules)
    print(f"step {step}: {images.shape[-1]} px, dropout {setting.dropout:.2f} in {where}")
