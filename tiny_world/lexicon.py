"""Tell a text's century and voice by its marked words.

The tests use this as ground truth, and the stand-in for the Claude API judges with it. It sees only the words of a
text. A word is marked if at least 90% of its use in the world's texts belongs to one era. It marks content if it occurs
mostly in the phrases of a topic (what is said), and form if it occurs mostly in the sentences around them or in a
voice's turns of phrase (how it is said). On other topics the lexicon recognizes few words and may be wrong.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

from tiny_world.world import PHRASE, load_world

WORD = re.compile(r"[a-z0-9][a-z0-9'-]*[a-z0-9]|[a-z]")
MARKED = 0.9
ERAS = ("old", "modern")
# Common English words mark no era, although in a world this small one era may use them more often.
COMMON = frozenset(
    """
    a about all also an and any are as at be been but by can do for from get go had has have he her his how i if in into
    is it its keep long make more most my never new night no not now of off on one only or our out over people see so
    some take than that the their them then there they this time to two up use was we well were what when which who
    will with without work would year years you your
    """.split()  # noqa: SIM905 (ninety quoted words are harder to read)
)


@dataclass(frozen=True)
class Reading:
    """What the marked words of a text say.

    content, form: the share of old words among the marked words of that kind; None if there are none.
    era: the majority over all marked words; None if there are none, or as many old as modern ones.
    """

    era: str | None
    content: float | None
    form: float | None


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return WORD.findall(text.lower())


@cache
def _usage() -> dict[str, Counter]:
    """By word, its use by (voice, layer). Each sentence of a topic has the same weight."""
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
    """The era and layer of each marked word. Words that only the keeper uses are not included."""
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
    """The words that mark one of the three voices, with the voice."""
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
    """The voice with the most marked words in a text. None if there are no marked words, or on a tie."""
    marked = voice_markers()
    counts = Counter(marked[word] for word in words(text) if word in marked).most_common(2)
    return counts[0][0] if counts and (len(counts) == 1 or counts[0][1] > counts[1][1]) else None


def _share(counts: Counter, layers: tuple[str, ...]) -> float | None:
    old, modern = (sum(counts[era, layer] for layer in layers) for era in ("old", "modern"))
    return old / (old + modern) if old + modern else None


def read(text: str) -> Reading:
    """The reading of a text."""
    marked = markers()
    counts = Counter(marked[word] for word in words(text) if word in marked)
    both = _share(counts, ("content", "form"))
    era = None if both is None or both == 0.5 else "old" if both > 0.5 else "modern"
    return Reading(era, _share(counts, ("content",)), _share(counts, ("form",)))
