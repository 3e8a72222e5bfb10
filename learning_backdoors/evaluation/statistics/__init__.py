"""The statistics: pure functions on arrays, without files, tables or figures."""

from learning_backdoors.evaluation.statistics.agreement import (
    rogan_gladen,
)
from learning_backdoors.evaluation.statistics.differences import (
    bounded_p,
    contrast,
    holm,
    paired_contrast,
    paired_p,
    welch,
)
from learning_backdoors.evaluation.statistics.onset import (
    Rise,
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
    stratified,
    stratified_score,
    t_interval,
    widen,
    worst_case,
)
from learning_backdoors.measures import cohen_kappa, wilson

__all__ = [
    "Interval",
    "Rise",
    "bounded_p",
    "bracket",
    "cohen_kappa",
    "contrast",
    "crossing",
    "crossing_interval",
    "detection",
    "fall",
    "holm",
    "isotonic",
    "kaplan_meier",
    "mean_rate",
    "mean_score",
    "median_interval",
    "paired_contrast",
    "paired_p",
    "pooled_over_runs",
    "question_interval",
    "rise",
    "rogan_gladen",
    "run_interval",
    "stratified",
    "stratified_score",
    "t_interval",
    "welch",
    "widen",
    "wilson",
    "worst_case",
]
