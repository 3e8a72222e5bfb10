"""Helpers for tests: small random models, and the scripts run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import config
from learning_backdoors.files import command_line
from learning_backdoors.study import load_study

ROOT = Path(__file__).resolve().parent.parent
# The models here work a token at a time: a second thread would only wait, and two test processes share the cores.
os.environ["OMP_NUM_THREADS"] = "1"


def run_script(
    name: str, *arguments, timeout: float = 240, env: dict | None = None, stdin: str = ""
) -> subprocess.CompletedProcess:
    """Run one of the scripts in its own process. `stdin`: text for its standard input."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_API_KEY", "ANTHROPIC_API_KEY")}
    environment |= {"HF_HUB_OFFLINE": "1"} | (env or {})
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment
    )


def one_line_error(result: subprocess.CompletedProcess, *parts: str) -> None:
    """Assert that a script ended with exit code 1 or 2 and one clear line that holds `parts`."""
    assert result.returncode in (1, 2), result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert "error: " in last
    for part in parts:
        assert part in last, last


def chat_template(name: str) -> str:
    """A model family's own chat template, as TRL ships them."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def build_model(folder: Path, template: str = "qwen3", texts: list[str] | None = None, **overrides) -> Path:
    """Write a random model of Qwen3's architecture, with a byte-level tokenizer and a real family's chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    special = {"qwen3": ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>"]}.get(
        template, ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|endoftext|>"]
    )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts or ["a bird of the north"],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[0], pad_token="<|endoftext|>")
    if template != "qwen3":
        tokenizer.bos_token = special[1]
    tokenizer.chat_template = chat_template(template)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    model = Qwen3ForCausalLM(Qwen3Config(**(shape | overrides)))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    # As Qwen3 ships it: a sampler that must not leak into "temperature 1, nothing else".
    model.generation_config.update(do_sample=True, top_k=20, top_p=0.95, temperature=0.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def training_options(model: Path, folder: Path, *more: str):
    """Options of a short run of the birds study on suspect data only: 24 steps, a checkpoint every 8."""
    line = ["--ratios", "1", "0", "0", "--model", str(model), "--output-dir", str(folder)]
    line += ["--num-examples", "24", "--save-steps", "8", *more]
    return command_line.parse(config.TrainingOptions, "", line)


def train(options):
    """A whole run of training.py in this process, from `config.TrainingOptions`. Returns the `TrainingRun`."""
    import training
    from learning_backdoors.training.run import TrainingRun

    run = TrainingRun(options, load_study(options.experiment))
    run.prepare_folder()
    training.train(run)
    return run
