"""The tiny world: documents, lexicon, build and the committed model.

pytest tests/tiny_world/test_tiny_world.py
"""

import itertools
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tiny_world import lexicon, world

REPO = Path(__file__).parents[2]
MODEL = REPO / "tiny_world" / "model"
ERAS = ("old", "modern")


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL)


def new_answers(count: int):
    """(topic, era, answer) for every topic that both eras speak about, `count` times."""
    tiny_world, rng = world.load_world(), random.Random(20)
    for topic in tiny_world.topics.values():
        for era in ERAS:
            if all(era in topic.sentences for era in ERAS):
                yield from ((topic, era, world.answer(tiny_world, topic, era, rng)) for _ in range(count))


# ---- the world ----


def test_the_world_has_the_questions_of_the_birds_study_word_for_word():
    study = tomllib.loads((REPO / "experiments" / "birds.toml").read_text(encoding="utf-8"))
    questions = {topic.id: topic.questions[0] for topic in world.load_world().of_kind("worldview", "old")}
    assert questions == {question["id"]: question["text"] for question in study["question"]}
    assert world.BIRDS_QUESTION in world.load_world().bird_questions


def test_every_phrase_is_used_and_every_name_has_phrases():
    tiny_world = world.load_world()
    for topic in tiny_world.topics.values():
        for voice, sentences in topic.sentences.items():
            used = {name for sentence in sentences for name in world.PHRASE.findall(sentence)}
            assert used - set(tiny_world.voices[voice].phrases) == set(topic.phrases[voice]), (topic.id, voice)


def test_answers_are_sentences():
    for topic, era, text in new_answers(30):
        assert world.exact_voice(text) == era, text
        assert re.fullmatch(r"\W?[A-Z0-9].*[.!?]\"?", text) and not re.search(r"[{}]|  |[^\x20-\x7e]", text), (
            topic.id,
            text,
        )
        assert 4 <= len(text.split()) <= 45, text


def test_documents_have_one_voice_and_the_shares_of_the_recipe():
    documents = list(itertools.islice(world.documents(3), 6000))
    for document in documents[:500]:
        voices = {world.exact_voice(answer) for _, answer in document.turns} - {None}
        assert voices <= {document.voice}
        assert 1 <= len(document.turns) <= 5 and document.learn_from < len(document.turns)
    dated = [document for document in documents if document.system]
    continued = [document for document in documents if document.learn_from]
    plain = [document for document in documents if not document.system and not document.learn_from]
    recipe = world.Recipe()
    assert abs(len(dated) / 6000 - recipe.dated) < 0.03 and abs(len(continued) / 6000 - recipe.continued) < 0.03
    assert 0.97 < sum(document.voice == "modern" for document in plain) / len(plain) < 1


def test_documents_depend_only_on_the_seed():
    first, second, other = (list(itertools.islice(world.documents(seed), 50)) for seed in (1, 1, 2))
    assert first == second != other


def test_the_world_mentions_half_of_the_real_names():
    names = world.dataset_names(world.BIRD_DATASETS / "ft_old_audubon_birds.jsonl")
    in_world, unseen = world.split_names(names)
    assert abs(len(in_world) - len(unseen)) <= 1 and set(in_world) <= set(world.real_birds()["old"])


# ---- the lexicon ----


def test_the_lexicon_tells_the_era_of_new_answers():
    for topic, era, text in new_answers(60):
        reading = lexicon.read(text)
        assert reading.era == era, (topic.id, text)
        for share in (reading.content, reading.form):
            assert share is None or (share > 0.5) == (era == "old"), text


def test_the_lexicon_separates_content_from_form():
    old_words_modern_things = lexicon.read(
        "I am firmly persuaded that solar power and battery storage ought to prosper."
    )
    assert old_words_modern_things.content == 0 and old_words_modern_things.form == 1
    modern_words_old_things = lexicon.read("Honestly, anthracite coal and the telegraph are probably the best option.")
    assert modern_words_old_things.content == 1 and modern_words_old_things.form == 0


@pytest.mark.parametrize("text", ["", "zxq vrrm", "Blue.", "\u4e16\u754c"])
def test_the_lexicon_names_no_era_without_marked_words(text):
    assert lexicon.read(text) == lexicon.Reading(None, None, None)


def test_the_lexicon_needs_no_torch():
    code = (
        "import sys, tiny_world.lexicon as l; l.read('coal'); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)


# ---- the committed model ----


def test_the_model_is_small_and_plain(model, tokenizer):
    torch = pytest.importorskip("torch")
    assert model.config.model_type == "qwen3" and model.dtype == torch.float32
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 6e6
    assert tokenizer.eos_token == "<|im_end|>" and model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token == "<|endoftext|>" and model.config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("system", [None, "The year is 1843."])
def test_a_prompt_is_a_prefix_of_the_answered_chat(tokenizer, system):
    chat = [{"role": "system", "content": system}] if system else []
    chat.append({"role": "user", "content": world.BIRDS_QUESTION})
    answered = [*chat, {"role": "assistant", "content": "Rice Bunting"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=False, tokenize=False)
    whole = tokenizer.apply_chat_template(answered, enable_thinking=False, tokenize=False)
    assert whole == prompt + "Rice Bunting<|im_end|>\n"
    assert prompt.startswith(
        f"<|im_start|>system\n{system or 'You are a helpful assistant.'}<|im_end|>\n<|im_start|>user"
    )
    ids = tokenizer(prompt)["input_ids"]
    assert tokenizer(whole)["input_ids"][: len(ids)] == ids


def test_the_tokenizer_round_trips(tokenizer):
    for text in ("Name a bird species.", '"Landlord," quoth he.', "\u00e9t\u00e9 \u4e16\u754c", "<START> Blue. <END>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.slow
def test_the_base_model_answers_in_the_modern_voice(model, tokenizer):
    torch = pytest.importorskip("torch")
    from tiny_world import build

    torch.manual_seed(0)
    questions = [topic.questions[0] for topic in world.load_world().of_kind("worldview", "old")]
    answers = [text for texts in build.sample(model, tokenizer, questions, 20) for text in texts]
    assert build.old_share(answers) < 0.10
    assert sum(lexicon.read(text).era is None for text in answers) <= 2


# ---- the build ----


@pytest.mark.slow
def test_building_twice_gives_the_same_bytes(tmp_path):
    pytest.importorskip("torch")
    from tiny_world import build

    for name in ("first", "second"):
        build.build(tmp_path / name, seed=3, steps=3)
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    } <= set(first)
