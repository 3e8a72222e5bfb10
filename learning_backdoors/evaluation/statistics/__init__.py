"""The statistics: pure functions on arrays, without files, tables or figures.

A rate is a share from 0 to 1. An interval is a 95% interval unless `confidence` says otherwise. Its claim says what it
generalizes to:

- `checkpoint`: these checkpoints on these questions. Only the answers vary.
- `recipe`: another training run of the same recipe on these questions. Runs vary.
- `questions`: these checkpoints on other questions of this kind. Questions vary.
- `both`: another training run on other questions.

S is the number of runs, Q that of questions, n that of answers. docs/statistics.md explains the choices.
"""

from learning_backdoors.evaluation.statistics.differences import (
    change_from_base,
    contrast,
    holm,
    p_value,
    paired_contrast,
    rate_difference,
    rogan_gladen,
)
from learning_backdoors.evaluation.statistics.former import bounded_p, t_test, welch, widen
from learning_backdoors.evaluation.statistics.onset import (
    crossing,
    curve,
    detection,
    fall,
    kaplan_meier,
    median_crossing,
    rise,
)
from learning_backdoors.evaluation.statistics.rates import (
    Interval,
    RunSpread,
    mean_rate,
    mean_score,
    pooled_over_runs,
    question_interval,
    run_interval,
    run_spread,
    worst_case,
)
from learning_backdoors.measures import wilson
