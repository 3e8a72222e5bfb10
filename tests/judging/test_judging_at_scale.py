"""The promises of benchmarks/judging.py at a size that fits into a test run.

python -m pytest tests/test_judging_at_scale.py
"""

from benchmarks import judging


def test_faults_and_kills_change_no_verdict_and_pay_for_none_twice(tmp_path):
    judging.faults(tmp_path, rows=60)


def test_batches_killed_where_it_hurts_pay_for_none_twice(tmp_path):
    judging.batch(tmp_path, rows=250, batch_seconds=1)


def test_no_cap_is_passed(tmp_path):
    judging.caps(tmp_path, schedules=6)
