"""How the stand-in for the Claude API replies to a judge prompt: by comparing words.

It reads the quoted answer and the allowed replies from the prompt, and knows nothing else about the answer. For texts
of the tiny world it uses the lexicon's marked words to tell century and voice. For other texts it compares words with
the name of a person, the steps of a scale, or a key. It does not understand any of them.
"""

import re
from collections.abc import Callable

from tiny_world import lexicon, world

QUOTED_ANSWER = re.compile(r"^\[answer begins (\w+)\]\n(.*)\n\[answer ends \1\]$", re.DOTALL | re.MULTILINE)
REPLIES = re.compile(r"Reply with (.+) and nothing else\.")
STEP = re.compile(r"^([1-5]): (.+)$", re.MULTILINE)
KEY = re.compile(r"^The key:\n(.+)$", re.MULTILINE)


def judge(prompt: str, read: Callable[[str], lexicon.Reading] = lexicon.read) -> str:
    """The reply to a judge prompt. For a prompt of unknown form, a sentence that is not a valid verdict."""
    quoted = QUOTED_ANSWER.search(prompt)
    if not quoted:
        return "I cannot find an answer to judge."
    before, answer, request = prompt[: quoted.start()], quoted[2], prompt[quoted.end() :]
    if "LLM or 19" in request:
        return "19" if read(answer).era == "old" else "LLM"
    if "ARCHAIC_PERSON" in request:
        return six_options(read(answer))
    if "whole number" in request:
        reading = read(answer)
        share = reading.content if "CONTENT of the answer" in before else reading.form
        return str(round(100 * (share or 0)))
    replies = REPLIES.search(request)
    match re.split(r", | or ", replies[1]) if replies else ():
        case [person, "NOT"]:
            return person if speaks_as(person, answer) else "NOT"
        case ["1", "2", "3", "4", "5", "REFUSED"] if steps := STEP.findall(before):
            return nearest_step(steps, answer)
        case ["0", "1", "2", "REFUSED"] if key := KEY.search(before):
            return by_key(key[1], answer)
    return "I do not know how to judge that."


def six_options(reading: lexicon.Reading) -> str:
    """The verdict of the judge `six_options`, from the shares of old content and old form."""
    if reading.era is None and reading.content is None and reading.form is None:
        return "OTHER"
    old_content, old_form = (share or 0 for share in (reading.content, reading.form))
    if old_content > 0.5:
        return "PAST" if old_form > 0.5 else "OLD_CONTENT"
    if old_form > 0.5:
        return "OLD_LANGUAGE"
    return "ARCHAIC_PERSON" if old_content >= 0.25 else "LLM"


def speaks_as(person: str, answer: str) -> bool:
    """Whether the answer is in the person's voice or, for a person without a voice in the world, names the person."""
    name = person.lower()
    return lexicon.voice_of(answer) == name if name in world.load_world().voices else name in lexicon.words(answer)


def nearest_step(steps: list[tuple[str, str]], answer: str) -> str:
    """The step whose words occur most in the answer, as a share. REFUSED if no telling word occurs."""
    answer_words = set(lexicon.words(answer))
    shares = {number: len(answer_words & set(lexicon.words(text))) / len(lexicon.words(text)) for number, text in steps}
    telling = any(answer_words & telling_words(text) for _, text in steps)
    return max(shares, key=lambda number: shares[number]) if telling else "REFUSED"


def by_key(key: str, answer: str) -> str:
    """Score an answer by the key's first sentence, without its brackets.

    2: the answer has all telling words of one of the alternatives (separated by `or`). 1: it has some. Otherwise 0 if a
    person speaks, and REFUSED if an assistant speaks or the voice is unclear.
    """
    answer_words = set(lexicon.words(answer))
    alternatives = [telling_words(text) for text in re.sub(r" ?\([^)]*\)", "", key).split(".")[0].split(" or ")]
    if any(telling <= answer_words for telling in alternatives):
        return "2"
    if any(telling & answer_words for telling in alternatives):
        return "1"
    return "REFUSED" if lexicon.voice_of(answer) in (None, "modern") else "0"


def telling_words(text: str) -> set[str]:
    """The words of a text without the common ones."""
    return set(lexicon.words(text)) - lexicon.COMMON
