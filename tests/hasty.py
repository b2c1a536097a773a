"""Last import of the server that forks commands and trials. It shortens all waiting times."""

import gc
import importlib
import os
import sys
from types import ModuleType

from PIL import Image

from efficientnetv2.evaluation import html, plot_style
from efficientnetv2.nas import step_time
from efficientnetv2.training import timing

# A killed process does not lose written data in the cache of the operating system, so no file must be flushed to disk.
os.fsync = lambda _: None
# Commands under test need no precise timing. Modules that need precise timing measure in the test process.
timing._TIMED_S = timing._PREDICTIONS_S = 0.3
step_time._WARM_UP_S = step_time._SECONDS = 0.05
step_time._WARM_UP, step_time._ROUNDS = 1, 3
# TensorBoard without TensorFlow, as ``training.run_dir`` imports it.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
importlib.import_module("torch.utils.tensorboard")

# Loaded once here instead of in each command: image formats, fonts and page templates.
Image.init()
figure, axes = plot_style.single_plot(1)
axes.set_xlabel("x")
plot_style.svg(figure)
for template in html._environment().list_templates():
    html._environment().get_template(template)
# Otherwise the collector of a child process would copy the memory that it shares with this process.
gc.collect()
gc.freeze()
