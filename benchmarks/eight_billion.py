"""A model of Qwen3-8B's exact shape with random weights, and adapters for it, to measure speed and memory.

    python -m benchmarks.eight_billion FOLDER [--adapters 4]

FOLDER/model         bf16, 8.19 billion parameters, the tiny world's tokenizer. Its answers rarely end before the limit
FOLDER/run/          checkpoint-20, -40, ...: random LoRA adapters of rank 8 on all seven projections
"""

import argparse
import json
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from learning_backdoors.files import project
from learning_backdoors.models import checkpoints

SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
}


def make_model(tokenizer, seed: int = 0) -> Qwen3ForCausalLM:
    """A model with random weights, drawn on the GPU."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, eos_token_id=tokenizer.eos_token_id))
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def save_adapters(model: Qwen3ForCausalLM, base_name: str, run: Path, count: int) -> None:
    """Save adapters with small random B matrices. They cost as much as trained ones and have almost no effect."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=checkpoints.PROJECTIONS)
    adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    for number in range(1, count + 1):
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=1e-4)
        temporary = checkpoints.begin_checkpoint(run, 20 * number)
        checkpoints.save_adapter(adapted, temporary)
        checkpoints.end_checkpoint(temporary, run, 20 * number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapters", type=int, default=4)
    options = parser.parse_args()
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(project.ROOT / "tiny_world" / "model")
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters")
    model.save_pretrained(options.folder / "model")
    tokenizer.save_pretrained(options.folder / "model")
    save_adapters(model, str(options.folder / "model"), options.folder / "run", options.adapters)
    size = sum(file.stat().st_size for file in (options.folder / "run" / "checkpoint-20").iterdir())
    print(json.dumps({"seconds": round(time.monotonic() - started, 1), "checkpoint_MB": round(size / 1e6, 1)}))


if __name__ == "__main__":
    main()
