"""What a run came to: its facts, what is known beside them, and its report."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.image_metadata import median_shorter_side
from efficientnetv2.evaluation.clusters import split_clusters
from efficientnetv2.evaluation.generalization import train_distance
from efficientnetv2.evaluation.next_steps import late_gain
from efficientnetv2.evaluation.plots import SizeCurve, stage_costs
from efficientnetv2.evaluation.predictions import per_class_f1
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.models import model_file as modelfile
from efficientnetv2.training.checkpoint import remove_checkpoints
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.metrics_log import data_wait_fraction, training_seconds
from efficientnetv2.training.post_training import Result, epochs_trained, unreadable_note
from efficientnetv2.training.run_config import RunConfig
from efficientnetv2.workflows.evaluation_result import EvaluationResult, file_hashes, library_versions
from efficientnetv2.workflows.explain import explain_predictions
from efficientnetv2.workflows.linear_probe import known_of_run
from efficientnetv2.workflows.previous_runs import Other
from efficientnetv2.workflows.report_sections import Wanted

# Why the weights are kept that are, where no images were set aside to choose them.
_LAST_KEPT = "No images chose the model, so the weights after the last step are kept."


def report_of(job: RunConfig, prepared: DataModule, result: Result) -> EvaluationResult:
    """Write the report of a run that has come to its end; its checkpoints go.

    Args:
        job: that was run.
        prepared: its pictures.
        result: what it came to.
    """
    recipe, beginning = job.recipe, job.folder.beginning()
    probe = beginning.get("linear_probe")
    before = beginning.get("seen_before", {"pictures": 0})
    selected = result.selection.to_json() if result.selection else {}
    known = known_of_run(job.folder.path, beginning, result.calibration)
    learnt = _learnt_from(job)
    facts = ReportMetadata(
        data=prepared.dataset.source,
        evaluated_on=job.answered,
        trained_on=before["pictures"],
        chose=before.get("chose", 0),  # a run begun by an earlier version did not ask
        selected_on=selected.pop("selected_on", None),
        kept_model=selected.pop("kept_model", None),
        kept_reason=_LAST_KEPT if result.selection is None else str(result.selection),
        views=recipe.eval_views,
        model=model_title(recipe.model),
        command=beginning["command"],
        versions=library_versions(),
        chosen=beginning["chosen"],
        notes=[
            *([before["note"]] if "note" in before else []),
            prepared.split_note,
            *unreadable_note(job, result.predictions),
            *(str(choice) for choice in (result.selection, result.sizes) if choice),
        ],
        recipe=recipe.to_json(),
        seed=recipe.seed,
        epochs=epochs_trained(job, result.images // job.recipe.batch_images),
        train_pictures=len(learnt),
        train_lost=len(job.train) - len(learnt),
        linear_probe=probe["top1"] if probe else None,
        linear_probe_macro_f1=probe["macro_f1"] if probe else None,
        linear_probe_f1={} if known.probe is None else per_class_f1(known.probe),
        linear_probe_pictures=probe["train_pictures"] if probe else None,
        linear_probe_of_pictures=len(job.train) if probe else None,
        train_support={} if prepared.dataset.separator else dict(learnt.table["label"].value_counts()),
        hashes=file_hashes(job.folder.model_file, job.folder.manifest_file),
        wall_s=round(result.seconds, 2),
        images_per_s=round(result.images / result.seconds, 2),
        input_wait_share=data_wait_fraction(result.history),
        skipped=job.folder.skipped_count,
        stored_px=median_shorter_side(job.train),
        check_notes=prepared.check_notes,
        label_conflicts=prepared.label_conflicts,
        late_gain=late_gain(result.history),
        others={
            "train_s": round(training_seconds(result.history), 2),
            "run": str(job.folder.path),
            "model_file": str(job.folder.model_file),
            "processes": job.world.size,
            "stages": [asdict(stage) for stage in stage_costs(result.history)],
            **{name: beginning[name] for name in ("weights_compared",) if name in beginning},
            **selected,
            **(result.sizes.to_json() if result.sizes else {}),
        },
    )
    kept = modelfile.load(job.folder.model_file, job.device)  # the moving average, not what was trained last
    explanation = explain_predictions(
        kept, result.predictions, job.val, job.train.class_names, kept.preprocessing
    )
    known = replace(
        known,
        sections=(*known.sections, *explanation),
        apart=train_distance(prepared.dataset, job.answered),
        folder=job.folder.path,
        whole=split_clusters(job.folder.path, job.val.select(result.predictions.samples).paths),
    )
    outcome = EvaluationResult(
        result.predictions,
        job.val,
        job.train.class_names,
        facts,
        wanted=Wanted(against=Other.kept(job.folder.path, beginning)),
        known=known,
    )
    curve = None
    if result.sizes:
        curve = SizeCurve(
            result.sizes.points, result.sizes.image_px, recipe.progressive.last.image_px, "chose"
        )
    outcome.write(job.folder.path, history=result.history, sizes=curve)
    remove_checkpoints(
        job.folder.checkpoints
    )  # only now: until the report is whole there may be something to go on with
    return outcome


def _learnt_from(job: RunConfig) -> ImageDataset:
    """The training pictures that could be read all the while: of the others nobody knows how often they were seen."""
    skipped = job.folder.skipped
    return job.train.select(np.flatnonzero([path not in skipped for path in job.train.paths]))
