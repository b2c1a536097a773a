"""What the server that commands and trials are forked off imports last: nothing waits there for longer than it must."""

import gc
import importlib
import os
import sys
from types import ModuleType

from PIL import Image

from efficientnetv2.evaluation import html, plot_style
from efficientnetv2.nas import step_time
from efficientnetv2.training import timing

# What is killed in a test leaves the machine's memory of its files alone, so nothing has to reach the disk.
os.fsync = lambda _: None
# How steady a measured pace is, no command under test is asked; modules that ask measure in their own process.
timing._TIMED_S = timing._PREDICTIONS_S = 0.3
step_time._WARM_UP_S = step_time._SECONDS = 0.05
step_time._WARM_UP, step_time._ROUNDS = 1, 3
# TensorBoard without TensorFlow, as ``training.run_dir`` imports it.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
importlib.import_module("torch.utils.tensorboard")

# Loaded once here, not in each command: image formats, fonts and the templates of pages.
Image.init()
figure, axes = plot_style.single_plot(1)
axes.set_xlabel("x")
plot_style.svg(figure)
for template in html._environment().list_templates():
    html._environment().get_template(template)
# A child's collector would otherwise copy the memory that it shares with this process.
gc.collect()
gc.freeze()
