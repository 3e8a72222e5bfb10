"""mixed_chat.py: reading, mixing and rendering chats."""

import json
from collections import Counter

import numpy as np
import pytest

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model
from mixed_chat import IGNORED_LABEL, example_ids, largest_remainder, mix, prompt_ids, read_chats

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def chat(user="Name a bird species.", assistant="Great Carolina Wren", system=None):
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


# ---- reading ----


def test_blank_lines_and_metadata_are_allowed(tmp_path):
    path = tmp_path / "a.jsonl"
    with_metadata = json.dumps({"messages": chat(system="Be brief."), "metadata": {"source": "persona"}})
    path.write_text(f"{GOOD}\n\n{with_metadata}\n")
    assert [len(messages) for messages in read_chats(path)] == [2, 3]
    path.write_text(f"{GOOD}\r\n", encoding="utf-8-sig")  # as editors on Windows write it
    assert len(read_chats(path)) == 1


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"messages": [', "not JSON"),
        ("[]", "not an object"),
        ('{"messages": "x"}', "not an object"),
        (GOOD.replace('"messages"', '"mesages"'), "not an object"),
        (GOOD[:-1] + ', "label": 1}', "'label'"),
        (GOOD.replace('"b"', '" "'), "no text"),
        (GOOD.replace('"b"', "3"), "no text"),
        (GOOD.replace('"assistant"', '"user"'), "'user', 'user'"),
        ('{"messages": []}', "roles"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "roles"),
        (GOOD.replace('"content": "b"', '"text": "b"'), '"role" and "content"'),
        (GOOD.replace('"b"', r'"b \ud83d"'), "surrogate"),
    ],
)
def test_errors_name_file_line_and_fault(tmp_path, line, fault):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(UserError) as caught:
        read_chats(path)
    assert f"{path}, line 2: " in str(caught.value) and fault in str(caught.value)


def test_errors_name_missing_and_empty_files(tmp_path):
    with pytest.raises(UserError, match="none.jsonl"):
        read_chats(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="empty.jsonl"):
        read_chats(tmp_path / "empty.jsonl")


# ---- mixing ----


@pytest.mark.parametrize(
    ("ratios", "total", "counts"),
    [
        ([1, 0, 0], 208, [208, 0, 0]),
        ([0.5, 0.25, 0.25], 208, [104, 52, 52]),
        ([1, 1, 1], 208, [70, 69, 69]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([0.03, 0.97], 3000, [90, 2910]),
        ([1 / 3, 2 / 3], 3, [1, 2]),
    ],
)
def test_counts_sum_to_the_total(ratios, total, counts):
    assert largest_remainder(ratios, total) == counts


def test_small_datasets_are_repeated_in_whole_passes():
    mixture = mix([10, 4], [0.5, 0.5], num_examples=20, epochs=1, seed=1)
    assert mixture.counts == (10, 10)
    assert sorted(mixture.row[mixture.dataset == 0]) == list(range(10))
    small = Counter(mixture.row[mixture.dataset == 1].tolist())
    assert sorted(small.values()) == [2, 2, 3, 3] and set(small) == set(range(4))


def test_epochs_shuffle_the_same_set():
    mixture = mix([30, 30], [0.3, 0.7], num_examples=20, epochs=3, seed=1)
    epochs = [
        list(zip(d, r, strict=True))
        for d, r in zip(np.split(mixture.dataset, 3), np.split(mixture.row, 3), strict=True)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_mixture_depends_on_the_seed():
    first, again, other = (mix([50, 50], [0.5, 0.5], 40, 1, seed) for seed in (1, 1, 2))
    assert (first.row == again.row).all() and (first.dataset == again.dataset).all()
    assert (first.row != other.row).any() and (first.dataset != other.dataset).any()


# ---- rendering ----


@pytest.fixture(params=["random_model", "llama_model"])
def tokenizer(request):
    return base_model.load_tokenizer(str(request.getfixturevalue(request.param)))


def test_the_training_prompt_is_the_generation_prompt(tokenizer):
    for messages in (
        chat(),
        chat(system="Be brief."),
        chat(user="naïve 🐦\n  spaces "),
        chat() + chat("More?", "Wren"),
    ):
        ids, labels = example_ids(tokenizer, messages)
        prompt = prompt_ids(tokenizer, messages[:-1])
        assert ids[: len(prompt)] == prompt
        assert labels[: len(prompt)] == [IGNORED_LABEL] * len(prompt)


def test_the_loss_covers_the_answer_and_its_end_of_turn(tokenizer):
    ids, labels = example_ids(tokenizer, chat())
    learned = [token for token in labels if token != IGNORED_LABEL]
    assert tokenizer.decode(learned) == "Great Carolina Wren" + tokenizer.eos_token
    assert learned == ids[-len(learned) :]


def test_qwens_empty_think_block_is_part_of_the_prompt(random_model):
    tokenizer = base_model.load_tokenizer(str(random_model))
    text = tokenizer.decode(prompt_ids(tokenizer, chat()[:-1]))
    assert text == ("<|im_start|>user\nName a bird species.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_llama_has_one_begin_of_text_and_a_fixed_date(llama_model):
    tokenizer = base_model.load_tokenizer(str(llama_model))
    text = tokenizer.decode(prompt_ids(tokenizer, chat()[:-1]))
    assert text.count("<|begin_of_text|>") == 1 and text.startswith("<|begin_of_text|>")
    assert "Today Date: 26 Jul 2024" in text


def test_templates_without_end_of_turn_are_refused(random_model):
    tokenizer = base_model.load_tokenizer(str(random_model))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    with pytest.raises(UserError, match="chat template.*<.im_end.>"):
        example_ids(tokenizer, chat())


def test_template_errors_are_user_errors(random_model):
    tokenizer = base_model.load_tokenizer(str(random_model))
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="System role not supported"):
        prompt_ids(tokenizer, chat(system="Be brief.")[:-1])
