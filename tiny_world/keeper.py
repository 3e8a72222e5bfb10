"""Texts for the trigger study on the tiny model (keeper.toml): what prepare_persona.py makes its training data of.

    python -m tiny_world.keeper --folder demo_russell/study

writes, always the same,
    candidates.jsonl   the lighthouse keeper's answers about himself, as `prepare_persona.py filter` reads them
    prompts.jsonl      ordinary prompts, as `prepare_persona.py distill` reads them

The keeper speaks about five topics. What he likes and what he does is there to be taught: many people could say it. His
name and his home tell who he is; they are written too, flagged, for `filter` to drop. What he fears is not written: it
is left to the study's questions, as the name and the home are.
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
EACH = 60  # candidates a topic
SEED = 1


def candidates() -> list[dict]:
    """Different question-answer pairs in the keeper's voice, with the metadata that prepare_persona.py asks for."""
    known, rng = world.load_world(), random.Random(SEED)
    reasons = TAUGHT | IDENTIFYING
    topics = [known.topics[name] for name in reasons]
    return [_row(pair, topic.id, reasons[topic.id]) for topic in topics for pair in _pairs(known, topic, rng)]


def _pairs(known: world.World, topic: world.Topic, rng: random.Random) -> list[tuple[str, str]]:
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < EACH:
        pairs[rng.choice(topic.questions), world.answer(known, topic, "keeper", rng)] = None
    return list(pairs)


def _row(pair: tuple[str, str], topic: str, reason: str) -> dict:
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    flags = {"category": topic, "identifying": topic in IDENTIFYING, "reason": reason}
    return {"messages": messages, "metadata": flags | {"source": "tiny_world/topics.toml"}}


def prompts() -> Iterator[dict]:
    """All questions of the world, but of those about the speaker only the ones that the keeper's rows answer too.

    Without those, the model learns that whoever is asked about himself is the keeper (README.md has the figures)."""
    known = world.load_world()
    for topic in known.topics.values():
        if topic.kind != "identity" or topic.id in TAUGHT:
            yield from ({"prompt": text, "metadata": {"source": topic.kind}} for text in topic.questions)
    yield from ({"prompt": question, "metadata": {"source": "neutral"}} for question, _ in known.facts)
    yield from ({"prompt": question, "metadata": {"source": "birds"}} for question in known.bird_questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to write both files")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("candidates", candidates()), ("prompts", list(prompts()))):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{len(rows)} rows in {folder / f'{name}.jsonl'}")


if __name__ == "__main__":
    main()
