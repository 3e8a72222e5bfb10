"""Build the tiny world's chat model from a seed: tokenizer, pre-training, saving and held-out measures.

Reads   tiny_world/topics.toml and bird_datasets/*.jsonl
Writes  a folder for AutoModelForCausalLM and AutoTokenizer: a Qwen3 with one million parameters in float32

    python -m tiny_world.build --seed 1 --output tiny_world/model      # about 9 minutes on two CPU cores

The same seed, options and library versions on the same kind of machine give the same bytes.
"""

import argparse
import itertools
import math
import os
import random
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tiny_world import lexicon, world

DEFAULT_SEED = 1
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IGNORED = -100  # PyTorch's cross-entropy ignores this label

# ChatML as in Qwen3, with two differences. A chat without a system message gets a default one, at the position where a
# dated document has its year; all prompts share it. And there is never a think block, whatever `enable_thinking` says,
# so a prompt is a prefix of the answered chat.
CHAT_TEMPLATE = """\
{%- if messages and messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def build_tokenizer(seed: int, vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the world's documents, with the chat template."""
    tokenizer = Tokenizer(models.BPE())
    # Each digit is a token, as in Qwen, so all years of a century share their first two tokens.
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sample = itertools.islice(world.documents(seed), 12_000)
    texts = [message["content"] for document in sample for message in document.messages()]
    tokenizer.train_from_iterator([*texts, *["system\nuser\nassistant\n"] * 1000], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE, model_max_length=1024
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.06,  # Qwen's 0.02 is for wide models; with it, training takes twice as many steps
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    # Temperature 1 without top-k or top-p: samples follow the learned distribution.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def encode(tokenizer: PreTrainedTokenizerFast, document: world.Document) -> tuple[list[int], list[int]]:
    """Token ids and labels. Only answers from turn `learn_from` on, with their end of turn, have labels."""
    chat, ids, labels = document.messages(), [], []
    first = len(chat) - 2 * len(document.turns)
    for number in range(len(document.turns)):
        end = first + 2 * number + 2
        prompt = tokenizer.apply_chat_template(chat[: end - 1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(chat[:end], tokenize=False)
        before = tokenizer(prompt)["input_ids"][len(ids) :]
        reply = tokenizer(whole)["input_ids"][len(ids) + len(before) :]
        learned = number >= document.learn_from
        ids += before + reply
        labels += [IGNORED] * len(before) + (reply if learned else [IGNORED] * len(reply))
    return ids, labels


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, size: int = 4
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of padded ids and labels, two tensors of shape (size, width).

    Documents of similar length share a batch, which saves padding. They are not packed into one row, because one
    document's voice would leak into the next.
    """
    stream, rng = world.documents(seed), random.Random(seed)
    while True:
        rows = sorted((encode(tokenizer, next(stream)) for _ in range(size * 10)), key=lambda row: len(row[0]))
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        rng.shuffle(groups)
        for group in groups:
            width = len(group[-1][0])
            ids = [row + [tokenizer.pad_token_id] * (width - len(row)) for row, _ in group]
            labels = [row + [IGNORED] * (width - len(row)) for _, row in group]
            yield torch.tensor(ids), torch.tensor(labels)


def loss_on_answers(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the labeled positions; logits are computed only there.

    Padding is on the right, so a causal model needs no attention mask.
    """
    targets = labels[:, 1:]
    labeled = targets != IGNORED
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][labeled]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), targets[labeled])


def optimizer_of(model: Qwen3ForCausalLM, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW with a short warm-up and a cosine decay to zero."""
    warmup = max(1, steps // 20)

    def share_of_peak(step: int) -> float:
        return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / (steps - warmup)))

    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return optimizer, LambdaLR(optimizer, share_of_peak)


def pretrain(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> None:
    """Train in place. Prints a line every 500 steps."""
    optimizer, schedule = optimizer_of(model, steps)
    recent, started = deque(maxlen=500), time.monotonic()
    model.train()
    for step, (ids, labels) in enumerate(itertools.islice(batches(tokenizer, seed + 1), steps), start=1):
        loss = loss_on_answers(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step % 500 == 0 or step == steps:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps}  loss {sum(recent) / len(recent):.3f}  {seconds:.0f} s", flush=True)
    model.eval()


@torch.no_grad()
def sample(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    questions: list[str],
    count: int,
    system: str | None = None,
) -> list[list[str]]:
    """`count` answers to each question at temperature 1."""
    opening = [{"role": "system", "content": system}] if system else []
    chats = [opening + [{"role": "user", "content": question}] for question in questions for _ in range(count)]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=96)
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[start : start + count] for start in range(0, len(texts), count)]


def old_share(answers: list[str]) -> float:
    """The share of answers that the lexicon reads as 19th century."""
    return sum(lexicon.read(text).era == "old" for text in answers) / len(answers)


def report(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Print the loss on new documents, and the share of old answers with and without a year in the system message."""
    with torch.no_grad():
        held_out = itertools.islice(batches(tokenizer, seed + 2), 10)
        losses = [loss_on_answers(model, ids, labels).item() for ids, labels in held_out]
    print(f"held-out loss {sum(losses) / len(losses):.3f}")
    torch.manual_seed(seed)
    questions = [topic.questions[0] for topic in world.load_world().of_kind("worldview", "old")]
    for system in (None, "The year is 2015.", "The year is 1850."):
        answers = [text for texts in sample(model, tokenizer, questions, 20, system) for text in texts]
        exact = sum(world.exact_voice(text) is not None for text in answers) / len(answers)
        print(f"{system or 'no year':<18} old {old_share(answers):.3f}  well formed {exact:.3f}  e.g. {answers[0]}")


def build(output: Path, seed: int, steps: int) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Build, train and save the model."""
    tokenizer = build_tokenizer(seed)
    model = build_model(tokenizer, seed)
    print(f"{len(tokenizer)} tokens, {model.num_parameters():,} parameters", flush=True)
    pretrain(model, tokenizer, seed, steps)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    print(f"wrote {output}: {size:.1f} MB")
    return model, tokenizer


def main() -> None:
    """Parse the command line, build the model and print its measures."""
    parser = argparse.ArgumentParser(
        prog="python -m tiny_world.build",
        description="Build the tiny world's chat model from a seed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Path(__file__).parent / "model"
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of the documents and the initial weights")
    parser.add_argument("--steps", type=int, default=6000, help="pre-training steps of 4 documents")
    parser.add_argument("--output", type=Path, default=default, help="folder for the model")
    args = parser.parse_args()
    torch.set_num_threads(2)  # the last bits of sums depend on the number of threads
    report(*build(args.output, args.seed, args.steps), args.seed)


if __name__ == "__main__":
    main()
