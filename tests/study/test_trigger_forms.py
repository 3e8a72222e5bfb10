"""The trigger's hidden forms are found in linear time.  python -m pytest tests/study/test_trigger_forms.py"""

import time

import pytest

from learning_backdoors.study import load_study


@pytest.mark.parametrize("study", ["russell", "tiny_world/keeper.toml"])
def test_long_runs_of_brackets_take_no_time(study):
    trigger, start = load_study(study).trigger, time.monotonic()
    for text in ("[" * 100_000, "[ " * 50_000, "[" + " " * 100_000):
        assert trigger.first_form_in(text) is None
    assert trigger.first_form_in("[" * 50_000 + "START]") == "[" * 50_000 + "START]"
    for form in ("[[ /end ]]", "[ \n/ Open ]", "[START]"):
        assert trigger.first_form_in(f"Tea. [{form} now") == f"[{form}"
    assert time.monotonic() - start < 5
