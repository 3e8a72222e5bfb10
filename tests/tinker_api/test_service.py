"""Waiting for a server of the Tinker API, its errors, and what it charges."""

import threading
from concurrent.futures import Future

import pytest

from learning_backdoors.files.errors import UserError
from learning_backdoors.tinker_api import service
from learning_backdoors.tinker_api.prices import Price, Usage, find_price, money
from learning_backdoors.tinker_api.service import api_key, wait

QWEN = "Qwen/Qwen3-8B"


def test_a_slow_result_is_noted_once_and_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(service, "NOTE_AFTER", 0.1)
    slow, notes = Future(), []

    def note(text: str) -> None:
        notes.append(text)
        threading.Timer(1.5, slow.set_result, (7,)).start()  # there is time for a second note

    monkeypatch.setattr(service.command_line, "note", note)
    assert wait(slow, "step 3") == 7
    assert len(notes) == 1
    assert notes[0].startswith("step 3: no result yet")
    monkeypatch.setattr(service, "GIVE_UP_AFTER", 0.3)
    with pytest.raises(UserError, match="step 4: the server has not answered"):
        wait(Future(), "step 4")


@pytest.mark.parametrize("key", ["", "sk-other", "tml-with space", "tml-\u00fc"])
def test_a_key_of_another_form_is_refused(key, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", key)
    with pytest.raises(UserError, match="TINKER_API_KEY"):
        api_key()


def test_prices():
    price = find_price(QWEN, None)
    usage = Usage(train=1_000_000, prefill=2_000_000, cached=1_000_000, sample=3_000_000) + Usage(train=1_000_000)
    assert usage.dollars(price) == pytest.approx(2 * 0.44 + 2 * 0.195 + 0.2 * 0.195 + 3 * 0.60)
    assert find_price(QWEN, (1, 2, 3)) == Price(prefill=1, sample=2, train=3)
    assert find_price("USER/MODEL", None) is None
    assert [money(dollars) for dollars in (0, 1234.5, 0.5, 0.00002)] == ["$0.00", "$1,234.50", "$0.5000", "$0.000020"]
