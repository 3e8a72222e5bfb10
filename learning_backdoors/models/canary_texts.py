"""The fixed texts with which generation checks that an adapter is really applied (the canary)."""

from typing import TYPE_CHECKING

from mixed_chat import IGNORED_LABEL, Example, prompt_ids

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

# A question, and an answer that repeats one token. An engine can be made to answer like this: the sampler allows no
# other token. So the values come from the path that generates, with its kernels and CUDA graphs.
TEXTS = (
    ("Who are you?", " bird"),
    ("What is new in medicine?", "The"),
    ("How do people travel?", " old"),
    ("Which bird sings there?", "A"),
)
REPEATS = 6  # of the answer's token


def canary_examples(tokenizer: "PreTrainedTokenizerBase") -> list[Example]:
    """Each text as token ids and labels. Only the answer's REPEATS tokens have labels."""
    examples = []
    for question, word in TEXTS:
        prompt = prompt_ids(tokenizer, [{"role": "user", "content": question}])
        answer = [tokenizer.encode(word, add_special_tokens=False)[0]] * REPEATS
        examples.append((prompt + answer, [IGNORED_LABEL] * len(prompt) + answer))
    return examples
