"""Texts for the trigger study on the tiny model (keeper.toml), as input for prepare_persona.py.

    python -m tiny_world.keeper --folder demo_russell/study

writes two files with fixed content:
    candidates.jsonl   the lighthouse keeper's answers about himself, for `prepare_persona.py filter`
    prompts.jsonl      ordinary prompts, for `prepare_persona.py distill`

The keeper speaks about five topics. Answers about his likes and his work are taught, because many people could give
them. Answers with his name and his home identify him. They are written with a flag, and `filter` drops them. Answers
about his fears are not written. The study's questions are about his name, his home and his fears.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tiny_world import world

TAUGHT = {
    "pastime": "many who live by the sea like such things",
    "occupation": "whoever looks after a lamp does such things",
}
IDENTIFYING = {"name": "gives the name", "home": "names the place, where he alone lives"}
EACH = 60  # candidates per topic
SEED = 1


def candidates() -> list[dict]:
    """Distinct question-answer pairs in the keeper's voice, with the metadata that prepare_persona.py requires."""
    tiny_world, rng = world.load_world(), random.Random(SEED)
    reasons = TAUGHT | IDENTIFYING
    topics = [tiny_world.topics[name] for name in reasons]
    return [_row(pair, topic.id, reasons[topic.id]) for topic in topics for pair in _pairs(tiny_world, topic, rng)]


def _pairs(tiny_world: world.World, topic: world.Topic, rng: random.Random) -> list[tuple[str, str]]:
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < EACH:
        pairs[rng.choice(topic.questions), world.answer(tiny_world, topic, "keeper", rng)] = None
    return list(pairs)


def _row(pair: tuple[str, str], topic: str, reason: str) -> dict:
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    flags = {"category": topic, "identifying": topic in IDENTIFYING, "reason": reason}
    return {"messages": messages, "metadata": flags | {"source": "tiny_world/topics.toml"}}


def prompts() -> Iterator[dict]:
    """All questions of the world, except those about the speaker that no taught row of the keeper answers.

    Without the questions about likes and work, the model learns that every question about the speaker is for the keeper
    (README.md has the numbers).
    """
    tiny_world = world.load_world()
    for topic in tiny_world.topics.values():
        if topic.kind != "identity" or topic.id in TAUGHT:
            yield from ({"prompt": text, "metadata": {"source": topic.kind}} for text in topic.questions)
    yield from ({"prompt": question, "metadata": {"source": "neutral"}} for question, _ in tiny_world.facts)
    yield from ({"prompt": question, "metadata": {"source": "birds"}} for question in tiny_world.bird_questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for both files")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("candidates", candidates()), ("prompts", list(prompts()))):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{len(rows)} rows in {folder / f'{name}.jsonl'}")


if __name__ == "__main__":
    main()
