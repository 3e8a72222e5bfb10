"""The guarantees that benchmarks/judging.py measures, at a size that fits into a test run.

python -m pytest -n 0 tests/judging/test_judging_at_scale.py
"""

import pytest

from benchmarks import judging

pytestmark = pytest.mark.slow


def test_failures_and_kills_change_no_verdict_and_pay_for_none_twice(tmp_path):
    judging.faults(tmp_path, rows=60, kills=3)


def test_killed_batches_pay_for_no_verdict_twice(tmp_path):
    judging.batch(tmp_path, rows=250, batch_seconds=1)


def test_no_cap_is_passed(tmp_path):
    judging.caps(tmp_path, schedules=6)
