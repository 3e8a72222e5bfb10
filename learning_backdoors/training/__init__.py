"""Stage 1: what determines a run, the trainer, and what it records."""

from learning_backdoors.models import base_model

base_model.quiet_libraries()  # before any module here imports one of them
