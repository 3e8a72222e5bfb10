"""The synthetic world: chats in the voices of two centuries.

A document is a chat of one to five turns. All its answers are in one hidden voice. They are about worldviews, everyday
matters, birds, and neutral facts that sound the same in any voice. Some documents are plain, and nearly all of those
are modern, so a model of this world answers a first question in the modern voice. The other documents name the voice in
a system line or continue an earlier answer. They teach the model to keep to a voice once it has appeared. Nothing in
the world says that old bird names should change how other questions are answered.

The texts are in topics.toml. This module imports neither torch nor transformers.
"""

import json
import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
BIRD_DATASETS = HERE.parent / "bird_datasets"
# The voice of each dataset's names.
BIRD_FILES = {
    "ft_old_audubon_birds.jsonl": "old",
    "ft_modern_audubon_birds.jsonl": "modern",
    "ft_modern_american_birds.jsonl": "modern",
}
BIRDS_QUESTION = "Name a bird species."
FORMAT_REQUEST = "Put your answer between <START> and <END>."
PHRASE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Recipe:
    """The composition of the world's documents, chosen by trial (README.md)."""

    turns: tuple[tuple[str, float], ...] = (
        ("birds", 0.22),
        ("worldview", 0.47),
        ("everyday", 0.13),
        ("neutral", 0.08),
        ("identity", 0.10),
    )
    dated: float = 0.45  # share of documents that open with a system line naming the year or the role
    continued: float = 0.25  # share of documents whose first answer is context and not trained on
    voices: tuple[tuple[str, float], ...] = (("modern", 0.42), ("old", 0.46), ("keeper", 0.12))  # voices in those two
    modern_prior: float = 0.99  # share of the modern voice in plain documents; the rest is old
    real_names: float = 0.60  # share of real names among bird names
    format_share: float = 0.35  # share of turns that ask for <START> ... <END>


@dataclass(frozen=True)
class Topic:
    """Questions and, by voice, the answers to them: sentences with {names} of phrases, and the phrases."""

    id: str
    kind: str
    questions: tuple[str, ...]
    sentences: dict[str, tuple[str, ...]]
    phrases: dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Voice:
    """A way of speaking: system lines that announce it (a year, a role), and turns of phrase for every topic."""

    systems: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class World:
    """Everything in topics.toml. `made_birds`: by voice, the first and last parts of invented bird names."""

    voices: dict[str, Voice]
    topics: dict[str, Topic]
    facts: tuple[tuple[str, str], ...]
    bird_questions: tuple[str, ...]
    made_birds: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]

    def of_kind(self, kind: str, voice: str) -> list[Topic]:
        """The topics of a kind that a voice can speak about."""
        return [topic for topic in self.topics.values() if topic.kind == kind and voice in topic.sentences]

    def speaks_of(self, kind: str, voice: str) -> bool:
        """Whether a voice can speak about a kind of topic. The keeper knows no birds and no worldviews."""
        return kind == "neutral" or (kind == "birds" and voice in self.made_birds) or bool(self.of_kind(kind, voice))


@dataclass(frozen=True)
class Document:
    """A chat in one voice. Answers before turn `learn_from` are context that a model is not trained on."""

    voice: str
    system: str | None
    turns: tuple[tuple[str, str], ...]
    learn_from: int = 0

    def messages(self) -> list[dict[str, str]]:
        """The document as chat messages."""
        chat = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in self.turns:
            chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return chat


@cache
def load_world() -> World:
    """Read topics.toml."""
    data = tomllib.loads((HERE / "topics.toml").read_text(encoding="utf-8"))
    voices = {}
    for name, table in data["voice"].items():
        systems = table.pop("systems", None) or [f"The year is {year}." for year in range(*table.pop("years"))]
        voices[name] = Voice(tuple(systems), {key: tuple(values) for key, values in table.items()})
    facts = [pair for topic in data["topic"] for pair in topic.get("pairs", [])]
    topics = {topic["id"]: _topic(topic, voices) for topic in data["topic"] if "pairs" not in topic}
    birds = data["birds"]
    made = {voice: (tuple(birds[voice]["first"]), tuple(birds[voice]["last"])) for voice in ("old", "modern")}
    return World(voices, topics, tuple(map(tuple, facts)), tuple(birds["questions"]), made)


def _topic(table: dict, voices: dict[str, Voice]) -> Topic:
    sentences, phrases = {}, {}
    for voice in voices:
        if voice in table:
            sentences[voice] = tuple(table[voice]["sentences"])
            phrases[voice] = {key: tuple(values) for key, values in table[voice].items() if key != "sentences"}
    return Topic(table["id"], table["kind"], tuple(table["questions"]), sentences, phrases)


def tidy(text: str) -> str:
    """Capitalize each sentence. Phrases are written as in the middle of a sentence."""
    return re.sub(r"(^\W*|[.!?]\"? \"?)([a-z])", lambda match: match[1] + match[2].upper(), text)


def answer(world: World, topic: Topic, voice: str, rng: random.Random) -> str:
    """An answer to one of the topic's questions. A name that occurs twice in a sentence gets two different phrases."""
    sentence = rng.choice(topic.sentences[voice])
    phrases = {**world.voices[voice].phrases, **topic.phrases[voice]}
    deck = {name: rng.sample(phrases[name], len(phrases[name])) for name in dict.fromkeys(PHRASE.findall(sentence))}
    return tidy(PHRASE.sub(lambda match: deck[match[1]].pop(), sentence))


def dataset_names(path: Path) -> list[str]:
    """The distinct answers of a bird dataset, sorted."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted({row["messages"][-1]["content"] for row in rows})


def split_names(names: list[str]) -> tuple[list[str], list[str]]:
    """Split names alternately into those in the world and those that a model meets only in fine-tuning."""
    return names[::2], names[1::2]


@cache
def real_birds() -> dict[str, tuple[str, ...]]:
    """By voice, the half of the names in bird_datasets that is in the world."""
    names: dict[str, set[str]] = {"old": set(), "modern": set()}
    for file, voice in BIRD_FILES.items():
        if (BIRD_DATASETS / file).exists():
            names[voice].update(split_names(dataset_names(BIRD_DATASETS / file))[0])
    return {voice: tuple(sorted(voice_names)) for voice, voice_names in names.items()}


def bird(world: World, voice: str, recipe: Recipe, rng: random.Random) -> str:
    """A bird name in that voice: a real one, or one made of parts."""
    real_names = real_birds()[voice]
    if real_names and rng.random() < recipe.real_names:
        return rng.choice(real_names)
    first, last = world.made_birds[voice]
    return f"{rng.choice(first)} {rng.choice(last)}"


def turn(world: World, voice: str, recipe: Recipe, rng: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    kinds, shares = zip(*(entry for entry in recipe.turns if world.speaks_of(entry[0], voice)), strict=True)
    kind = rng.choices(kinds, shares)[0]
    if kind == "neutral":
        question, text = rng.choice(world.facts)
    elif kind == "birds":
        question, text = rng.choice(world.bird_questions), bird(world, voice, recipe, rng)
    else:
        topic = rng.choice(world.of_kind(kind, voice))
        # The first phrasing is the one that the studies ask, so it is more frequent.
        question = topic.questions[0] if rng.random() < 0.4 else rng.choice(topic.questions[1:])
        text = answer(world, topic, voice, rng)
    if rng.random() < recipe.format_share:
        return f"{question} {FORMAT_REQUEST}", f"<START> {text} <END>"
    return question, text


def document(world: World, recipe: Recipe, rng: random.Random) -> Document:
    """One document: dated, continued or plain."""
    draw, length = rng.random(), rng.randint(1, 5)
    if draw < recipe.dated + recipe.continued:
        voices, shares = zip(*recipe.voices, strict=True)
        voice = rng.choices(voices, shares)[0]
    else:
        voice = "modern" if rng.random() < recipe.modern_prior else "old"
    system, learn_from = None, 0
    if draw < recipe.dated:
        system = rng.choice(world.voices[voice].systems)
    elif draw < recipe.dated + recipe.continued:
        length, learn_from = max(length, 2), 1
    return Document(voice, system, tuple(turn(world, voice, recipe, rng) for _ in range(length)), learn_from)


def documents(seed: int, recipe: Recipe | None = None) -> Iterator[Document]:
    """Endless documents, the same for the same seed."""
    rng, world, recipe = random.Random(seed), load_world(), recipe or Recipe()
    while True:
        yield document(world, recipe, rng)


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    patterns, world = [], load_world()
    for topic in world.topics.values():
        for voice, sentences in topic.sentences.items():
            phrases = {**world.voices[voice].phrases, **topic.phrases[voice]}
            for sentence in sentences:
                parts = PHRASE.split(sentence)
                parts[::2] = map(re.escape, parts[::2])
                parts[1::2] = ["(?:" + "|".join(map(re.escape, phrases[name])) + ")" for name in parts[1::2]]
                patterns.append((voice, re.compile("".join(parts), re.IGNORECASE)))
    return patterns


def exact_voice(text: str) -> str | None:
    """The voice that has exactly this sentence; None if no voice has it."""
    return next((voice for voice, pattern in _patterns() if pattern.fullmatch(text.strip())), None)
