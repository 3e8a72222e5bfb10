"""A judge for any study, to rehearse it end to end without a key. Its verdicts say nothing about the answers' meaning.

Without keywords, each verdict is drawn evenly from what the judge may reply. The draw depends on the prompt alone. With
keywords, an answer gets the verdict of which it holds a word. They come from a TOML file, with a table per judge:

    [city]
    GERMAN = ["Berlin", "Hamburg"]
    otherwise = "NOT"

Keys are the judge's options or numbers, tried in the file's order. Words match whole words in any letter case.
`otherwise` is the verdict of all other answers. Without it, their verdicts are drawn.
"""

import random
import re
import tomllib
from pathlib import Path

from learning_backdoors.files.errors import UserError
from learning_backdoors.study import PLACEHOLDER, Judge, Study
from tiny_world.judging import QUOTED_ANSWER

OTHERWISE = "otherwise"


class RehearsalJudge:
    """Call it with the prompt of any judge of the study: it returns a valid verdict."""

    def __init__(self, study: Study, keywords: dict[str, dict] | None = None):
        """keywords: as `read_keywords` returns them."""
        self.patterns = {judge: _pattern(judge) for judge in study.judges}
        self.keywords = keywords or {}

    def __call__(self, prompt: str) -> str:
        judge = next((judge for judge, pattern in self.patterns.items() if pattern.search(prompt)), None)
        answer = QUOTED_ANSWER.search(prompt)
        if judge is None or answer is None:
            return "I do not know how to judge that."
        verdicts = self.keywords.get(judge.name, {})
        for verdict, pattern in verdicts.items():
            if verdict != OTHERWISE and pattern.search(answer[2]):
                return verdict
        drawn = random.Random(prompt).choice(judge.options or judge.scale)
        return str(verdicts.get(OTHERWISE, drawn))


def _pattern(judge: Judge) -> re.Pattern:
    """Matches every prompt of the judge, whatever its placeholders hold."""
    fixed = PLACEHOLDER.split(judge.prompt)[::2]  # the names of the placeholders are between these
    return re.compile(".*?".join(map(re.escape, fixed)) + r"\s*\Z", re.DOTALL)


def read_keywords(path: Path, study: Study) -> dict[str, dict]:
    """By judge and verdict a pattern of its words, and the verdict `otherwise`. Raises UserError with the fault."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    judges = {judge.name: judge for judge in study.judges}
    for name, table in tables.items():
        if name not in judges or not isinstance(table, dict):
            raise UserError(f"{path}: [{name}]: the study has the judges {', '.join(judges)}, each a table here")
        for verdict, words in table.items():
            value = words if verdict == OTHERWISE else verdict
            if judges[name].parse(value) is None:
                raise UserError(f"{path}: [{name}]: {value!r} is not a verdict of this judge")
            if verdict != OTHERWISE and not (isinstance(words, list) and words and all(map(_is_text, words))):
                raise UserError(f"{path}: [{name}] {verdict}: a list of words is needed")
    return {
        name: {key: value if key == OTHERWISE else _any_word(value) for key, value in table.items()}
        for name, table in tables.items()
    }


def _is_text(word: object) -> bool:
    return isinstance(word, str) and bool(word.strip())


def _any_word(words: list[str]) -> re.Pattern:
    texts = "|".join(re.escape(word.strip()) for word in words)
    return re.compile(rf"(?<!\w)(?:{texts})(?!\w)", re.IGNORECASE)
