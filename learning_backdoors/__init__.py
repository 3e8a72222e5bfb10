"""Learning Backdoors: train, sample, judge and evaluate checkpoints of narrow fine-tuning runs.

The scripts in the project's root are the user interface. This package holds their parts, one folder per stage.
"""
