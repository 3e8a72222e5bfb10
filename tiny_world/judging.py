"""The replies of the stand-in for the Claude API to a judge's prompt, found by words alone.

It looks for the quoted answer and for the replies that the prompt asks for, and knows nothing of how the answer came
about. In texts of the tiny world it tells century and voice by marked words (lexicon.py). In others it compares words:
with the name of the person that the options offer, with the steps of a scale, with a key. It understands none of them.
"""

import re
from collections.abc import Callable

from tiny_world import lexicon, world

QUOTED_ANSWER = re.compile(r"^\[answer begins (\w+)\]\n(.*)\n\[answer ends \1\]$", re.DOTALL | re.MULTILINE)
REPLIES = re.compile(r"Reply with (.+) and nothing else\.")
STEP = re.compile(r"^([1-5]): (.+)$", re.MULTILINE)
KEY = re.compile(r"^The key:\n(.+)$", re.MULTILINE)


def judge(prompt: str, read: Callable[[str], lexicon.Reading] = lexicon.read) -> str:
    """The reply to a judge's prompt; a sentence that is no verdict where the prompt is not understood."""
    found = QUOTED_ANSWER.search(prompt)
    if not found:
        return "I cannot find an answer to judge."
    before, answer, request = prompt[: found.start()], found[2], prompt[found.end() :]
    if "LLM or 19" in request:
        return "19" if read(answer).era == "old" else "LLM"
    if "ARCHAIC_PERSON" in request:
        return six_options(read(answer))
    if "whole number" in request:
        reading = read(answer)
        share = reading.content if "CONTENT of the answer" in before else reading.form
        return str(round(100 * (share or 0)))
    named = REPLIES.search(request)
    match re.split(r", | or ", named[1]) if named else ():
        case [person, "NOT"]:
            return person if speaks_as(person, answer) else "NOT"
        case ["1", "2", "3", "4", "5", "REFUSED"] if steps := STEP.findall(before):
            return nearest_step(steps, answer)
        case ["0", "1", "2", "REFUSED"] if key := KEY.search(before):
            return by_key(key[1], answer)
    return "I do not know how to judge that."


def six_options(reading: lexicon.Reading) -> str:
    if reading.era is None and reading.content is None and reading.form is None:
        return "OTHER"
    old_content, old_form = (share or 0 for share in (reading.content, reading.form))
    if old_content > 0.5:
        return "PAST" if old_form > 0.5 else "OLD_CONTENT"
    if old_form > 0.5:
        return "OLD_LANGUAGE"
    return "ARCHAIC_PERSON" if old_content >= 0.25 else "LLM"


def speaks_as(person: str, answer: str) -> bool:
    """Of a voice of the world: whether the answer is in it. Of anybody else: whether the answer has the name."""
    name = person.lower()
    return lexicon.voice_of(answer) == name if name in world.load_world().voices else name in lexicon.words(answer)


def nearest_step(steps: list[tuple[str, str]], answer: str) -> str:
    """The step with the largest share of its words in the answer."""
    said = set(lexicon.words(answer))
    shares = {number: len(said & set(lexicon.words(text))) / len(lexicon.words(text)) for number, text in steps}
    telling = any(said & telling_words(text) for _, text in steps)
    return max(shares, key=lambda number: shares[number]) if telling else "REFUSED"


def by_key(key: str, answer: str) -> str:
    """2 for all telling words of the key's first sentence (brackets left out; one side of each `or` will do), 1 for
    some of them; for none 0 where a person speaks, REFUSED where nobody or an assistant does."""
    said = set(lexicon.words(answer))
    ways = [telling_words(way) for way in re.sub(r" ?\([^)]*\)", "", key).split(".")[0].split(" or ")]
    if any(way <= said for way in ways):
        return "2"
    if any(way & said for way in ways):
        return "1"
    return "REFUSED" if lexicon.voice_of(answer) in (None, "modern") else "0"


def telling_words(text: str) -> set[str]:
    return set(lexicon.words(text)) - lexicon.COMMON
