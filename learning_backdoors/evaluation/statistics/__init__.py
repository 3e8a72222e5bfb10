"""The statistics: pure functions on arrays, without files, tables or figures. docs/statistics.md explains the choices.

S is the number of runs, Q that of questions, n that of answers. The claim of an interval says what varies:
`checkpoint`: the answers of these runs to these questions; `recipe`: another training run of the same recipe, these
questions; `questions`: these runs, other questions of this kind; `both`: another run, other questions.
"""

from learning_backdoors.curves import curve
from learning_backdoors.evaluation.statistics.differences import (
    change_from_base,
    contrast,
    mean_rate,
    p_value,
    paired_contrast,
    rate_difference,
    rogan_gladen,
    worst_case,
)
from learning_backdoors.evaluation.statistics.likelihood import change_difference, likelihood_curve, mean_change
from learning_backdoors.evaluation.statistics.main_effects import (
    Effect,
    crossing_effect,
    mean_effect,
    rate_effect,
    share_effect,
    single,
)
from learning_backdoors.evaluation.statistics.onset import crossing, detection, fall, rise
from learning_backdoors.evaluation.statistics.over_runs import (
    crossing_difference,
    kaplan_meier,
    lead,
    median_crossing,
    trend,
)
from learning_backdoors.evaluation.statistics.rates import Interval, RunSpread, Scores, run_spread
from learning_backdoors.measures import holm, wilson
