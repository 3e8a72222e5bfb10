"""The statistics: pure functions on arrays, without files, tables or figures.

A rate is a share from 0 to 1. An interval is a 95% interval, and its claim says what it generalizes to:

- `checkpoint`: these checkpoints on these questions. Only the answers vary.
- `recipe`: another training run of the same recipe on these questions. Runs vary.
- `questions`: these checkpoints on other questions of this kind. Questions vary.

S is the number of runs, Q that of questions, n that of answers. docs/statistics.md explains the choices.
"""

from learning_backdoors.evaluation.statistics.differences import (
    bounded_p,
    contrast,
    holm,
    paired_contrast,
    rogan_gladen,
    welch,
)
from learning_backdoors.evaluation.statistics.onset import (
    bracket,
    crossing,
    crossing_interval,
    detection,
    fall,
    isotonic,
    kaplan_meier,
    median_interval,
    rise,
)
from learning_backdoors.evaluation.statistics.rates import (
    Interval,
    mean_rate,
    mean_score,
    pooled_over_runs,
    question_interval,
    run_interval,
    stratified_interval,
    t_test,
    widen,
    worst_case,
)
from learning_backdoors.measures import wilson
