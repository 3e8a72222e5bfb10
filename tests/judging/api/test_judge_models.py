"""Settings, prices and request keys of models.

python -m pytest -n 0 tests/judging/api/test_judge_models.py
"""

import json

import pytest

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api import models


def test_prices(tmp_path):
    here, there = models.ANTHROPIC, "https://openrouter.ai/api"
    assert models.price_of("claude-haiku-4-5-20251001", here, None, None) == models.Price(1, 5)
    assert models.price_of("llama3", here, None, None) is None
    assert models.price_of("claude-haiku-4-5", there, None, None) is None  # the table is Anthropic's own
    assert models.price_of("llama3", there, (0.5, 1), None) == models.Price(0.5, 1)
    (tmp_path / "prices.toml").write_text('llama3 = [1, 2]\n"claude-sonnet-5" = [3, 15]\n')
    assert models.price_of("llama3", there, None, tmp_path / "prices.toml") == models.Price(1, 2)
    assert models.price_of("claude-sonnet-5", here, None, tmp_path / "prices.toml") == models.Price(3, 15)
    assert models.price_of("claude-opus-5", here, None, tmp_path / "prices.toml") == models.Price(5, 25)
    (tmp_path / "prices.toml").write_text("llama3 = 7\n")
    with pytest.raises(UserError, match="prices.toml"):
        models.price_of("llama3", there, None, tmp_path / "prices.toml")
    for prices in ("[-1, 2]", "[1, nan]", "[inf, 1]"):
        (tmp_path / "prices.toml").write_text(f"llama3 = {prices}\n")
        with pytest.raises(UserError, match="0 or more"):
            models.price_of("llama3", there, None, tmp_path / "prices.toml")
    haiku = models.MODELS["claude-haiku-5-5"].price
    assert haiku.dollars(100_000, 0) == pytest.approx(0.01) and haiku.dollars(200_000, 0) == pytest.approx(0.10)


def test_settings():
    assert models.request_settings("anthropic/claude-sonnet-5.5") == models.request_settings("claude-sonnet-5-5")
    assert models.request_settings("claude-sonnet-5")["thinking"] == {"type": "disabled"}
    assert models.request_settings("claude-sonnet-5-5")["thinking"] == {"type": "between_tools"}
    assert models.request_settings("claude-opus-5-5")["max_tokens"] >= 1024
    assert models.request_settings("claude-sonnet-5", "none", 7) == {"max_tokens": 7}
    assert models.request_settings("llama3", "adaptive") == {"max_tokens": 4096, "thinking": {"type": "adaptive"}}
    assert json.dumps([model.request_settings for model in models.MODELS.values()])


def test_request_keys_depend_on_everything_that_is_sent():
    def key(host="h", model="m", settings=None, prompt="p"):
        model = models.ServedModel(model, host, settings or {"max_tokens": 64}, None)
        return model.key(model.body(prompt))

    assert key() == key()
    others = [key(host="i"), key(model="n"), key(settings={"max_tokens": 65}), key(prompt="q")]
    assert len({key(), *others}) == 5
