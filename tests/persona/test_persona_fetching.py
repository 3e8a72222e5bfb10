"""prepare_persona.py fetch-prompts.   pytest tests/persona/test_persona_fetching.py"""

import hub_stand_in
import pytest
from persona_support import TRIGGER, prepare
from support import one_line_error, run_script

from learning_backdoors.files.errors import UserError
from learning_backdoors.persona.rows import check_prompt, read


class Table(list):
    """The part of a dataset that the script uses."""

    @property
    def column_names(self):
        return list(self[0])


def test_prompts_are_fetched_longest_alpaca_answers_first(tmp_path, monkeypatch):
    import datasets

    alpaca = Table({"instruction": f"Do {n}.", "input": "With this." * (n == 3), "output": "x" * n} for n in range(9))
    alpaca.append({"instruction": f"Do it. {TRIGGER.text}", "input": "", "output": "x" * 99})
    gsm8k = Table({"question": f"How many are {n}? "} for n in range(9))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, split: gsm8k if subset == "main" else alpaca)
    rows = prepare("fetch-prompts", tmp_path / "f.jsonl", "--alpaca-number", 7, "--gsm8k-number", 2)
    assert [row["prompt"] for row in rows[:2]] == ["Do 8.", "Do 7."] and rows[5]["prompt"] == "Do 3.\n\nWith this."
    assert rows[6:] == [{"prompt": f"How many are {n}?", "metadata": {"source": "gsm8k"}} for n in range(2)]
    assert read([tmp_path / "f.jsonl"], check_prompt, without=TRIGGER) == rows

    del alpaca[:], gsm8k[:]
    alpaca.append({"text": "another dataset"})
    with pytest.raises(UserError, match="tatsu-lab/alpaca.*'input'"):
        prepare("fetch-prompts", tmp_path / "g.jsonl")


@pytest.mark.slow
def test_errors_of_the_hub_are_one_line(tmp_path):
    """As subprocesses: the hub's libraries print tracebacks of their own."""
    line = ("fetch-prompts", "--output", tmp_path / "f.jsonl")
    one_line_error(run_script("prepare_persona.py", *line), "tatsu-lab/alpaca", "HF_HUB_OFFLINE", "copy its output")
    with hub_stand_in.running(hub_stand_in.Hub()) as address:
        env = {"HF_ENDPOINT": address, "HF_TOKEN": hub_stand_in.TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        one_line_error(run_script("prepare_persona.py", *line, "--alpaca", "me/no-alpaca", env=env), "me/no-alpaca")
        line = ("distill", "--output", tmp_path / "a.jsonl", "--model", "me/no-model")
        one_line_error(run_script("prepare_persona.py", *line, env=env), "me/no-model")
