"""Train a model by a resolved recipe: ``Trainer(setup).fit()``. The loop is in ``training.loop``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from efficientnetv2.data.file_probe import MAX_UNREADABLE
from efficientnetv2.data.loader import Batch, training_batches, worker_errors
from efficientnetv2.progressive.schedule import Revision, StepPlan
from efficientnetv2.training.callbacks import Callback, ModelSelection, RunContext, StopRequestedError
from efficientnetv2.training.checkpoints import load_latest_checkpoint, save_checkpoint
from efficientnetv2.training.ddp import AsyncFlags
from efficientnetv2.training.loop import StepOutput, step_context, train_steps
from efficientnetv2.training.metrics_log import MetricsLog
from efficientnetv2.training.post_training import Result, finish_training
from efficientnetv2.training.run_setup import RunSetup, train_sampler, training_images
from efficientnetv2.training.signals import GracefulStop, WorkerDeath
from efficientnetv2.training.time_limit import Pacer, TimeLimit
from efficientnetv2.training.train_state import init_state
from efficientnetv2.training.validation import DivergenceCheck, Validator
from efficientnetv2.utils.device import place
from efficientnetv2.utils.distributed import all_gather_object, broadcast_from_main, convert_sync_batch_norm
from efficientnetv2.utils.errors import DivergedError, InputError, MemoryShortError, ReaderKilledError
from efficientnetv2.utils.logs import IS_PROGRESS

_logger = logging.getLogger(__name__)


class Trainer:
    """Trains, or resumes, one run to its end. Under several processes each makes its own.

    ``callbacks`` are called in the first process. With a ``limit`` of time, the steps are planned under way, and the
    run directory keeps the plan.
    """

    def __init__(self, setup: RunSetup, callbacks: Sequence[Callback] = (), *, limit: TimeLimit | None = None) -> None:
        minival = setup.recipe.minival
        assert minival == "auto" or (setup.minival is None) == (minival is None), "prepare_data() first"
        self.setup, self.limit = setup, limit
        self._callbacks = tuple(callbacks) if setup.world.is_main_process else ()
        self._stage_ends = setup.recipe.progressive.stage_ends(setup.length.steps)

    def fit(self, *, resume: bool = False) -> Result:
        """Train to the end, then evaluate and save the model; ``resume`` starts from the newest checkpoint, if any.

        Predictions and history of the result are complete in the first process alone. Raises InputError if the loss is
        not finite, a checkpoint can't be written or read, or too many images can't be read; KeyboardInterrupt after
        Ctrl-C or SIGTERM, when a checkpoint of the last step was written.
        """
        self._restore(resume)
        context = self.context
        try:
            self._train()
            context.is_training = False
            context.notify(lambda callback: callback.on_train_end(context.state.step))
            return finish_training(context, self.log, self.validator, self.divergence)
        except StopRequestedError:
            raise KeyboardInterrupt from None
        finally:
            self.setup.folder.close()

    def _restore(self, resume: bool) -> None:
        """The state to start from: new, or that of the newest whole checkpoint."""
        setup, recipe, world = self.setup, self.setup.recipe, self.setup.world
        revisions: list[Any] = []
        if resume and self.limit is not None:
            revisions = broadcast_from_main(world, lambda: setup.folder.beginning().get("revisions", []))
        plan = StepPlan(setup.length.steps, [Revision(*one) for one in revisions])
        selection = None if setup.minival is None else ModelSelection(recipe, setup.length, plan)
        setup.network.activation = setup.activation  # whatever the initial weights predicted
        state = init_state(place(setup.network, setup.device), recipe)
        self.context = RunContext(setup, state, plan, self._callbacks, selection)
        saved = self._load_checkpoint(resume)
        if recipe.sync_batch_norm and world.is_distributed:
            convert_sync_batch_norm(state.network, world)  # not the EMA, which is evaluated and saved
        if self.limit is not None:
            thins = selection is None or selection.ends_only
            self.context.pacer = Pacer(setup, plan, self.limit, saved.get("used_s"), thins=thins)
        self.log = MetricsLog(self.context, saved)
        self.divergence = DivergenceCheck(setup, state)
        is_candidate = state.step == 0 and selection is not None and bool(setup.start)  # the initial model
        is_due = saved.get("to_validate", is_candidate)
        self.validator = Validator(self.context, self.divergence, is_due=is_due)
        self._unreadable = UnreadableImages(setup)
        self._microbatches = setup.microbatches
        self._worker_death = WorkerDeath()
        self._last_checkpoint = self._last_step = time.perf_counter()
        # Seconds since the last step that a time limit plans apart, and those of the last checkpoint.
        self._apart_s = self._checkpoint_s = 0.0

    def _load_checkpoint(self, resume: bool) -> dict[str, Any]:
        """Load the newest whole checkpoint; returns its values, or none."""
        setup, state, selection = self.setup, self.context.state, self.context.selection

        def matches(saved: dict[str, Any]) -> bool:
            return state.matches(saved) and (selection is None or "selection" in saved)

        folder = setup.folder.checkpoints
        newest, damaged = broadcast_from_main(
            setup.world, lambda: load_latest_checkpoint(folder, matches) if resume else (None, [])
        )
        for sentence in damaged:
            _logger.info(f"{sentence}; continuing from the one before it.")
        if newest is not None:
            state.load_state_dict(newest)
            if selection:
                selection.load_state_dict(newest["selection"])
        setup.folder.forget_after(-1 if newest is None else state.step)
        if resume and not self.context.is_done:
            _logger.info(f"Continuing from step {state.step:,} of {self.context.plan.steps:,}.")
        return newest or {}

    def _train(self) -> None:
        """Step by step, to the end or until early stopping."""
        context, world = self.context, self.setup.world
        flags = AsyncFlags(world)
        steps = training_steps(context, self._on_first_batch, self._worker_death)
        # Closed, so that the readers end even where a notebook keeps an error, and with it this frame.
        with closing(steps), self._worker_death, GracefulStop(launched=world.launch is not None) as stop:
            context.stop_requested = lambda: stop.requested
            context.is_training = True
            context.notify(lambda callback: callback.on_train_start(context.state.step, context.plan.steps))
            if self.validator.is_due:  # of the initial model, or what an outage prevented
                self._validate()
                if context.state.step:
                    self.save_checkpoint()
            output: StepOutput | None = None
            while not context.is_done:
                try:
                    with worker_errors():
                        self._worker_death.raise_pending()
                    output = next(steps)
                except (MemoryShortError, DivergedError):  # in the middle of a step
                    raise
                except InputError as error:  # images that can't be read: nothing of their step is done yet
                    if output is not None:
                        self.save_checkpoint()
                    if isinstance(error, ReaderKilledError):
                        self._raise_if_stopped(error)
                        with worker_errors():
                            self._worker_death.raise_pending()  # it says how the process ended
                    raise
                self._on_step_end(output)
                stop_all, unreadable = flags.after_step(
                    stop=stop.requested or context.interrupted, noted=output.unreadable, last=context.is_done
                )
                with self._checkpoint_on_error():
                    self._unreadable.add(unreadable)
                if stop_all:
                    self.save_checkpoint()
                    with suppress(RuntimeError):  # a process that ends lets a launcher kill the one that saves
                        all_gather_object(world, None)
                    raise KeyboardInterrupt

    @contextmanager
    def _checkpoint_on_error(self) -> Iterator[None]:
        """Between steps: an error that the user can fix loses nothing that was trained since the last checkpoint."""
        try:
            with worker_errors():
                yield
        except DivergedError:
            raise
        except (InputError, StopRequestedError) as error:
            self.save_checkpoint()
            self._raise_if_stopped(error)
            raise

    def _raise_if_stopped(self, error: Exception) -> None:
        """A reader that ended by Ctrl-C, which a new process of Windows and macOS does not ignore, was not killed."""
        stopped = self.context.stop_requested() and not self.setup.world.is_distributed
        if isinstance(error, ReaderKilledError) and stopped:
            raise StopRequestedError from error

    def _on_first_batch(self) -> None:
        """The model is compiled, and the first images are requested."""
        if self.context.pacer is not None:
            self.context.pacer.plan(self.context.state.step, begins=True)
        self.context.start_stage(self._stage_ends)
        self._last_step, self._apart_s = time.perf_counter(), 0.0
        self.log.start()

    def _on_step_end(self, output: StepOutput) -> None:
        """Log, validate, plan and save when due; then call the callbacks."""
        context, step = self.context, self.context.state.step
        ends_stage = context.plan.passes(step, self._stage_ends)
        self.log.add(output)
        self.divergence.add(output)
        self.validator.schedule(step)
        if context.pacer is not None:
            # With the waits for a GPU, which is read only now and then, and with the callbacks.
            now = time.perf_counter()
            context.pacer.stepped(output.setting.image_size, now - self._last_step - self._apart_s)
            self._last_step, self._apart_s = now, 0.0
        with self._checkpoint_on_error():
            self._log_and_validate(output)
        every_s = self.setup.recipe.checkpoint_minutes * 60
        if ends_stage or context.is_done or time.perf_counter() - self._last_checkpoint >= every_s:
            self.save_checkpoint()
            self._apart_s += self._checkpoint_s if ends_stage else 0.0
        context.notify(lambda callback: callback.on_step_end(step, context.plan.steps, output.setting))
        if ends_stage and not context.is_done:
            context.start_stage(self._stage_ends)

    def _log_and_validate(self, output: StepOutput) -> None:
        context, step = self.context, self.context.state.step
        row_is_due = self.log.is_due(step)
        if row_is_due or output.loss.device.type == "cpu":  # elsewhere, reading it would wait for the device
            self.divergence.check_loss()
        if output.microbatches != self._microbatches:  # a resumed run starts with them
            px = output.setting.image_size
            _logger.info(
                f"Warning: memory ran out at step {output.step} with {self._microbatches.at(px)} groups of {px} px per "
                f"pass. Steps continue with {output.microbatches.at(px)}: slower, with the same result.",
                extra={IS_PROGRESS: True},
            )
            self.setup.folder.amend_beginning(microbatches=output.microbatches.by_px)
            self._microbatches = output.microbatches
        if row_is_due:
            self.log.write(output)
        else:
            self.log.report_if_due(output)
        if self.validator.is_due:
            self.divergence.check_weights()
            self._validate()
        if context.is_done and not self.log.is_empty:  # early stopping
            self.divergence.check_loss()
            self.log.write(output)
        if context.pacer is not None and not context.is_done:
            context.pacer.plan(step)

    def _validate(self) -> None:
        began = time.perf_counter()
        with self.log.paused():
            self.validator.validate()
        self._apart_s += time.perf_counter() - began

    def save_checkpoint(self) -> None:
        """Write a checkpoint if the weights are finite, in the first process, as all have the same state."""
        if not self.setup.world.is_main_process:
            return
        self.divergence.check_weights()
        began, context = time.perf_counter(), self.context
        saved = self.log.state_dict() | {"to_validate": self.validator.is_due}
        with self.log.paused():
            saved |= context.state.state_dict()
            if context.pacer is not None:
                saved["used_s"] = context.pacer.used_s
            if context.selection is not None:
                saved["selection"] = context.selection.state_dict()
            save_checkpoint(self.setup.folder.checkpoints, saved, context.state.step)
        self._last_checkpoint = time.perf_counter()
        self._checkpoint_s = self._last_checkpoint - began


def training_steps(
    context: RunContext, on_first_batch: Callable[[], None], worker_death: WorkerDeath
) -> Generator[StepOutput, None, None]:
    """The remaining steps; ``on_first_batch`` is called when the model is compiled, before images are read."""
    setup, state, plan = context.setup, context.state, context.plan
    if state.step >= plan.steps:
        return (output for output in list[StepOutput]())
    sampler = train_sampler(setup, steps=setup.length.steps, first_step=state.step, plan=plan)
    images = training_images(setup.train, setup.preprocessing, setup.recipe, workers=setup.workers, reader=setup.reader)
    pin_memory = setup.device.type == "cuda"

    def batches() -> Iterator[Batch]:
        on_first_batch()
        for batch in training_batches(images, sampler, workers=setup.workers, pin_memory=pin_memory):
            worker_death.defer()  # a step or a checkpoint is done whole or not at all
            yield batch

    common, length, microbatches = step_context(setup), setup.length, setup.microbatches
    return train_steps(state, batches(), common, length=length, microbatches=microbatches, world=setup.world, plan=plan)


class UnreadableImages:
    """Counts the training images that have become unreadable during the run."""

    def __init__(self, setup: RunSetup) -> None:
        self._setup = setup
        # Those that this process has met: some that a resumed run lists may be readable again.
        self._lost: set[int] = set()

    def add(self, unreadable: Sequence[tuple[int, str]]) -> None:
        """Skip images from now on: sample and reason of each, from all processes.

        Raises InputError if there are too many; or, if the run is strict, any.
        """
        folder, train = self._setup.folder, self._setup.train
        for sample, reason in unreadable:
            image = f"{train.paths[sample]}: {reason}"
            if self._setup.strict:
                raise InputError(f"{image}. Repair it or leave out `strict`, then continue with `resume`.")
            self._lost.add(sample)
            if folder.skip(train.paths[sample], reason):
                _logger.info(f"Skipped from now on: {image}.")
            if len(self._lost) > MAX_UNREADABLE * len(train):
                listed = f" that {folder.skipped_file} lists" if folder.skipped_file.is_file() else ""
                raise InputError(
                    f"{len(self._lost)} of {len(train)} training images have become unreadable, above the limit of "
                    f"{MAX_UNREADABLE:.0%}; the last is {image}. Restore the images{listed}, then continue with "
                    "`resume`."
                )
