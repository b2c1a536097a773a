"""Which trials of a study are hopeless: those that are stopped before their end."""

from __future__ import annotations

import numpy as np
from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

# At the second point of the curve the worst quarter of all that came so far is stopped, once there are ten. Ours.
_POINT, _WORST, _AMONG = 2, 0.25, 10


class WorstQuarter(BasePruner):
    """Stops a trial that at the second point of its curve is among the worst quarter of all that came there.

    Those that were stopped there count too, and a trial is asked once: were it compared with those alone that have
    finished, as Optuna's own pruner does, the bar would rise with each that passes it, and most would be stopped.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless; asked after each point that it has told of."""
        if trial.last_step != _POINT:
            return False
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        there = [one.intermediate_values[_POINT] for one in ended if _POINT in one.intermediate_values]
        if len(there) < _AMONG:
            return False
        return bool(trial.intermediate_values[_POINT] < np.quantile(there, _WORST))
