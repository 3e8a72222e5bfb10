"""Studies: the TOML files in experiments/. docs/studies.md describes every table and key."""

from learning_backdoors.study.loader import load_study, load_sweep, parse_study, training_defaults
from learning_backdoors.study.recorded import RecordedStudy, describe_foreign, recorded_in, refuse_foreign, study_of
from learning_backdoors.study.references import Contrast, Reference, recorded_questions
from learning_backdoors.study.schema import PLACEHOLDER, Condition, Goal, Judge, Metric, Question, Study, Trigger, fill
