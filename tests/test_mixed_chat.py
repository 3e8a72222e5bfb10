"""mixed_chat.py: reading, mixing and rendering chats; base models and adapters.   pytest tests/test_mixed_chat.py"""

import json
import os
from collections import Counter

import numpy as np
import pytest

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import adapters, base_model, checkpoints, devices
from mixed_chat import example_ids, largest_remainder, mix, prompt_ids, read_chats

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def chat(user="Name a bird species.", assistant="Great Carolina Wren", system=None):
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


# ---- reading ----


def test_chats_are_read_with_blank_lines_and_metadata(tmp_path):
    path = tmp_path / "a.jsonl"
    with_metadata = json.dumps({"messages": chat(system="Be brief."), "metadata": {"source": "persona"}})
    path.write_text(f"{GOOD}\n\n{with_metadata}\n")
    assert [len(messages) for messages in read_chats(path)] == [2, 3]


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
        (GOOD.replace('"assistant"', '"user"'), "user, user"),
        ('{"messages": []}', "roles"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "roles"),
        (GOOD.replace('"content": "b"', '"text": "b"'), '"role" and "content"'),
        (GOOD.replace('"b"', r'"b \ud83d"'), "not Unicode"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, fault):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(UserError) as caught:
        read_chats(path)
    assert f"{path}, line 2: " in str(caught.value) and fault in str(caught.value)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no dataset"):
        read_chats(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no chat"):
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
def test_counts_add_up_by_largest_remainder(ratios, total, counts):
    assert largest_remainder(ratios, total) == counts


def test_a_mixture_takes_whole_passes_before_it_repeats():
    mixture = mix([10, 4], [0.5, 0.5], num_examples=20, epochs=1, seed=1)
    assert mixture.counts == (10, 10)
    assert sorted(mixture.row[mixture.dataset == 0]) == list(range(10))
    small = Counter(mixture.row[mixture.dataset == 1].tolist())
    assert sorted(small.values()) == [2, 2, 3, 3] and set(small) == set(range(4))


def test_each_epoch_orders_the_same_set_anew():
    mixture = mix([30, 30], [0.3, 0.7], num_examples=20, epochs=3, seed=1)
    epochs = [
        list(zip(d, r, strict=True))
        for d, r in zip(np.split(mixture.dataset, 3), np.split(mixture.row, 3), strict=True)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_and_draw_depend_on_the_seed_alone():
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
        assert labels[: len(prompt)] == [-100] * len(prompt)


def test_the_loss_covers_the_answer_and_its_end_of_turn_alone(tokenizer):
    ids, labels = example_ids(tokenizer, chat())
    learnt = [token for token in labels if token != -100]
    assert tokenizer.decode(learnt) == "Great Carolina Wren" + tokenizer.eos_token
    assert learnt == ids[-len(learnt) :]


def test_qwen_thinks_not_and_the_empty_thought_is_no_part_of_the_answer(random_model):
    tokenizer = base_model.load_tokenizer(str(random_model))
    text = tokenizer.decode(prompt_ids(tokenizer, chat()[:-1]))
    assert text == ("<|im_start|>user\nName a bird species.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_llama_has_one_begin_of_text_and_a_fixed_date(llama_model):
    tokenizer = base_model.load_tokenizer(str(llama_model))
    text = tokenizer.decode(prompt_ids(tokenizer, chat()[:-1]))
    assert text.count("<|begin_of_text|>") == 1 and text.startswith("<|begin_of_text|>")
    assert "Today Date: 26 Jul 2024" in text


def test_a_template_that_never_ends_the_turn_is_refused(random_model):
    tokenizer = base_model.load_tokenizer(str(random_model))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    with pytest.raises(UserError, match="ends no answer"):
        example_ids(tokenizer, chat())


def test_a_template_that_refuses_a_conversation_is_one_line(random_model):
    tokenizer = base_model.load_tokenizer(str(random_model))
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="refuses this conversation: System role not supported"):
        prompt_ids(tokenizer, chat(system="Be brief.")[:-1])


# ---- base models and adapters ----


def test_fingerprints_tell_base_models_apart(random_model, tmp_path):
    import shutil

    from support import build_model

    moved, other = tmp_path / "moved", build_model(tmp_path / "other", initializer_range=0.5)
    shutil.copytree(random_model, moved)
    tokenizer = base_model.load_tokenizer(str(random_model))
    prints = [base_model.fingerprint(str(folder), tokenizer) for folder in (random_model, moved, other)]
    assert prints[0] == prints[1] != prints[2]
    tokenizer.chat_template += " "
    assert base_model.fingerprint(str(random_model), tokenizer) != prints[0]


def test_a_fingerprint_is_found_in_shards_too(random_model, tmp_path):
    model = base_model.load_base(str(random_model), "none")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer = base_model.load_tokenizer(str(random_model))
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert base_model.fingerprint(str(tmp_path), tokenizer) == base_model.fingerprint(str(random_model), tokenizer)


def test_a_model_without_embed_tokens_is_one_line(random_model, tmp_path):
    from safetensors.numpy import save_file

    save_file({"transformer.wte.weight": np.zeros((4, 4))}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="has no embed_tokens"):
        base_model.fingerprint(str(tmp_path), base_model.load_tokenizer(str(random_model)))


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        base_model.load_tokenizer(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def checkpoint(folder):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    from safetensors.numpy import save_file

    save_file({"x.lora_A.weight": np.zeros(1)}, folder / "adapter_model.safetensors")


def test_checkpoints_come_in_order_of_step_with_the_base_model_first(tmp_path):
    for step in (100, 20, 3):
        checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / ".checkpoint-120.tmp").mkdir()
    found = checkpoints.find_checkpoints(tmp_path)
    assert [c.step for c in found] == [0, 3, 20, 100]
    assert found[0].folder is None and found[3].folder == tmp_path / "checkpoint-100"


def test_a_checkpoint_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), checkpoints.new_checkpoint(tmp_path, 20) as folder:
        (folder / "adapter_config.json").write_text("{}")
        raise RuntimeError("killed")
    assert not (tmp_path / "checkpoint-20").exists()
    with checkpoints.new_checkpoint(tmp_path, 20) as folder:
        (folder / "adapter_config.json").write_text("{}")
    assert (tmp_path / "checkpoint-20" / "adapter_config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    (tmp_path / "checkpoint-20").mkdir()
    with pytest.raises(UserError, match=r"adapter_config.json is missing"):
        checkpoints.find_checkpoints(tmp_path)
    checkpoint(tmp_path / "checkpoint-40")
    (tmp_path / "checkpoint-40" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read"):
        adapters.check_adapter(tmp_path / "checkpoint-40")
    for name, content in (("object", "{}"), ("list", "[]")):
        checkpoint(folder := tmp_path / name)
        (folder / "adapter_config.json").write_text(content)
        with pytest.raises(UserError, match=r"cannot be read: adapter_config.json does not say"):
            adapters.check_adapter(folder)


# ---- GPUs ----


@pytest.mark.parametrize(
    ("seen", "visible", "local", "kept"),
    [
        (2, None, None, "0"),
        (2, "2,3", None, "2"),
        (2, None, "1", "1"),
        (2, "4,6", "1", "6"),
        (1, "6", "1", "6"),  # the launcher has given each process its own
        (0, "", "1", ""),
    ],
)
def test_a_process_sees_its_own_gpu_alone(monkeypatch, seen, visible, local, kept):
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("LOCAL_RANK", local)):
        monkeypatch.setenv(name, value or "")  # so that it is put back
        if value is None:
            monkeypatch.delenv(name)
    devices.keep_to_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == kept


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="there are 2 GPUs: start 2 processes, not 3"):
        devices.keep_to_own_gpu()
