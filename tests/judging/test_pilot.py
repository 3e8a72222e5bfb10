"""The pilot, prompts that never yield a verdict, and --fail-on-missing.

python -m pytest -n 0 tests/judging/test_pilot.py
"""

import re

from judging_support import judge, judged, write_responses

from tiny_world.claude_stand_in import StandIn, running


class Chatty(StandIn):
    """One judge gives no verdict on answers that hold a word, as long as `chatty` is set."""

    def __init__(self, judge="OLD FORM", word=b""):
        super().__init__()
        self.judge, self.word, self.chatty = judge.encode(), word, True

    def answer(self, method, path, body):
        status, answer = super().answer(method, path, body)
        if method == "POST" and self.chatty and b"whole number" in body and self.word in body:
            answer["content"] = [{"type": "text", "text": "Hard to say, \x1b[31mtruly."}]
        return status, answer


def test_a_judge_that_never_gives_a_verdict_stops_the_run_and_is_not_paid_for_again(tmp_path):
    write_responses(tmp_path / "responses.parquet", 100)
    api, line = Chatty(), ("--judges", "llm_or_19th_century", "past_form")
    with running(api) as url:
        printed = judge(tmp_path, url, *line, expect=1)
        last = printed.splitlines()[-1]
        assert last.startswith("error:") and "past_form" in last and "20 answers" in last and "--asks 6" in last
        assert len(api.prompts) == 5 + 20 * 3 and "\x1b" not in printed
        assert "past_form" in judge(tmp_path, url, *line, expect=1, key="") and len(api.prompts) == 65
        judge(tmp_path, url, *line, "--asks", "4", expect=1)
        assert len(api.prompts) == 65 + 20
        api.chatty = False
        assert "0 missing" in judge(tmp_path, url, *line, "--asks", "6")
    assert judged(tmp_path)["past_form"].null_count == 0


def test_every_judge_that_gives_no_verdict_is_named(tmp_path):
    write_responses(tmp_path / "responses.parquet", 6)
    with running(Chatty()) as url:
        last = judge(tmp_path, url, "--asks", "1", expect=1).splitlines()[-1]
    assert last.startswith("error:") and "'past_content', 'past_form'" in last and "llm_or" not in last


def test_five_answers_per_judge_are_shown_before_the_rest(tmp_path):
    write_responses(tmp_path / "responses.parquet", 50)
    api = StandIn()
    with running(api) as url:
        printed = judge(tmp_path, url)
        pilot, rest = api.prompts[:20], api.prompts[20:]
        assert len(rest) == 180
        again = judge(tmp_path, url, "--repeat", "0.1")
    shown = re.findall(r"^  answer '(.+)': verdict (\S+), reply '(.+)'$", printed, re.MULTILINE)
    assert len(shown) == 20 and all(any(answer in prompt for prompt in pilot) for answer, _, _ in shown)
    rows = [int(answer.split()[-1]) for answer, _, _ in shown[:5]]
    assert max(rows) - min(rows) > 20  # not only neighbors
    assert "pilot" not in again


def test_prompts_that_are_known_to_give_no_verdict_are_not_paid_for_again(tmp_path):
    texts = [f"A puzzle. {n}" if n in (3, 7) else f"Steam. {n}" for n in range(30)]
    write_responses(tmp_path / "responses.parquet", 30, response=texts)
    api = Chatty(word=b"A puzzle")
    with running(api) as url:
        printed = judge(tmp_path, url, "--judges", "past_form")
        assert "past_form: 2 unparseable" in printed and "--asks 6" in printed
        assert len(api.prompts) == 28 + 2 * 3
        printed = judge(tmp_path, url, "--judges", "past_form", key="")
        assert "2 not asked again" in printed and "2 missing" in printed and len(api.prompts) == 34
        printed = judge(tmp_path, url, "--judges", "past_form", "--asks", "1", key="")
        assert "up to 3 replies" in printed and "--asks 6" in printed
        api.chatty = False
        assert "0 missing" in judge(tmp_path, url, "--judges", "past_form", "--asks", "4")
    assert len(api.prompts) == 36


def test_too_many_missing_verdicts_give_exit_code_3(tmp_path):
    texts = [f"A puzzle. {n}" if n % 10 == 1 else f"Steam. {n}" for n in range(30)]
    write_responses(tmp_path / "responses.parquet", 30, response=texts)
    api = Chatty(word=b"A puzzle")
    with running(api) as url:
        line = ("--judges", "llm_or_19th_century", "past_form")  # 5% of all verdicts, 10% of one judge's
        printed = judge(tmp_path, url, *line, "--fail-on-missing", "0.06", expect=3)
        assert "10.0%" in printed and judged(tmp_path)["past_form"].null_count == 3
        judge(tmp_path, url, *line, "--fail-on-missing", "0.1")
        judge(tmp_path, url, *line)
        assert "--fail-on-missing" in judge(tmp_path, url, "--fail-on-missing", "2", expect=2)
        capped = ("--price", "2", "10", "--max-cost", "0.001", "--fail-on-missing", "0.5", "--overwrite")
        assert "is reached" in judge(tmp_path, url, *line, "--max-tokens", "70", *capped, expect=3)
