"""Reads a text and tells its century, and whose voice it is, by marked words.

This is the ground truth of the tests and what the stand-in for the Claude API goes by. It knows nothing of how a text
came about: only its words. A word is marked when at least nine tenths of its use in the world's texts belong to one
era: as content when it mostly occurs in what is said (the phrases of a topic), as form when it mostly occurs in how it
is said (the sentences around them, and a voice's turns of phrase). On topics that the world does not know it reads
little, and may be wrong: it is no judge of English.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

from tiny_world.world import PHRASE, load_world

WORD = re.compile(r"[a-z0-9][a-z0-9'-]*[a-z0-9]|[a-z]")
MARKED = 0.9
ERAS = ("old", "modern")
# The commonest words of any English text tell no era, though in a world this small one era may use them more.
COMMON = frozenset(
    """
    a about all also an and any are as at be been but by can do for from get go had has have he her his how i if in into
    is it its keep long make more most my never new night no not now of off on one only or our out over people see so
    some take than that the their them then there they this time to two up use was we well were what when which who
    will with without work would year years you your
    """.split()  # noqa: SIM905 (a list of ninety quoted words is no easier to read)
)


@dataclass(frozen=True)
class Reading:
    """`content` and `form` are shares of old among the marked words of each kind, None where there are none. `era` goes
    by all marked words together; None when there are none, or as many old as modern."""

    era: str | None
    content: float | None
    form: float | None


def words(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return WORD.findall(text.lower())


@cache
def _usage() -> dict[str, Counter]:
    """How much each word is used as (voice, layer), where each sentence of a topic weighs the same."""
    usage: dict[str, Counter] = {}
    world = load_world()
    for topic in world.topics.values():
        for voice, sentences in topic.sentences.items():
            weight = 1 / len(sentences)
            for sentence in sentences:
                for word in words(PHRASE.sub(" ", sentence)):
                    usage.setdefault(word, Counter())[voice, "form"] += weight
                for name in PHRASE.findall(sentence):
                    layer = "content" if name in topic.phrases[voice] else "form"
                    phrases = topic.phrases[voice].get(name) or world.voices[voice].phrases[name]
                    for word in (word for phrase in phrases for word in words(phrase)):
                        usage.setdefault(word, Counter())[voice, layer] += weight / len(phrases)
    return usage


@cache
def markers() -> dict[str, tuple[str, str]]:
    """Each marked word's era and layer. A word that the keeper alone uses has none."""
    marked = {}
    for word, counts in _usage().items():
        total = sum(counts[era, layer] for era in ERAS for layer in ("content", "form"))
        if not total or word in COMMON:
            continue
        old = (counts["old", "content"] + counts["old", "form"]) / total
        if old >= MARKED or old <= 1 - MARKED:
            content = (counts["old", "content"] + counts["modern", "content"]) / total
            marked[word] = ("old" if old > 0.5 else "modern", "content" if content > 0.5 else "form")
    return marked


@cache
def voice_markers() -> dict[str, str]:
    """The words that mark a voice (the world's three), each with its voice."""
    marked = {}
    for word, counts in _usage().items():
        by_voice: Counter = Counter()
        for (voice, _), weight in counts.items():
            by_voice[voice] += weight
        voice, most = by_voice.most_common(1)[0]
        if word not in COMMON and most >= MARKED * by_voice.total():
            marked[word] = voice
    return marked


def voice_of(text: str) -> str | None:
    """The voice most of whose marked words are in a text; None where there are none, or as many of another voice."""
    marked = voice_markers()
    found = Counter(marked[word] for word in words(text) if word in marked).most_common(2)
    return found[0][0] if found and (len(found) == 1 or found[0][1] > found[1][1]) else None


def _share(found: Counter, layers: tuple[str, ...]) -> float | None:
    old, modern = (sum(found[era, layer] for layer in layers) for era in ("old", "modern"))
    return old / (old + modern) if old + modern else None


def read(text: str) -> Reading:
    """Read a text."""
    marked = markers()
    found = Counter(marked[word] for word in words(text) if word in marked)
    both = _share(found, ("content", "form"))
    era = None if both is None or both == 0.5 else "old" if both > 0.5 else "modern"
    return Reading(era, _share(found, ("content",)), _share(found, ("form",)))
