"""A model of Qwen3-8B's exact shape with random weights, and adapters for it, to measure speed and memory with.

    python -m benchmarks.eight_billion FOLDER [--adapters 4]

FOLDER/model         bf16, 8.19 billion parameters, the tiny world's tokenizer; answers end by themselves, after 400
                     tokens in the mean (each token ends one with probability 1/400)
FOLDER/endless       the same weights; no answer ends before its limit
FOLDER/run/          checkpoint-20, -40 ...: random LoRA adapters of rank 8 on all seven projections
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import config
import mixed_chat

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
MEAN_TOKENS = 400


def make_model(tokenizer, seed: int = 0) -> Qwen3ForCausalLM:
    """Random weights on the GPU, with the output row of the end of turn set so that answers have a mean length."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, eos_token_id=tokenizer.eos_token_id))
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with torch.inference_mode():
        # A component that all tokens share gives the end of turn a logit that hardly depends on the text.
        model.model.embed_tokens.weight[:, 0] = 1
        ids = torch.randint(0, 4000, (8, 256), device="cuda")
        hidden = model.model(ids).last_hidden_state[:, 32:].float()
        logits = hidden @ model.lm_head.weight.float().T
        wanted = torch.logsumexp(logits, -1).mean() - math.log(MEAN_TOKENS)
        model.lm_head.weight[tokenizer.eos_token_id] = 0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = wanted / hidden[..., 0].mean()
    return model


def save_model(model: Qwen3ForCausalLM, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    endless = folder / "endless"
    endless.mkdir(parents=True, exist_ok=True)
    for file in (folder / "model").iterdir():
        if file.suffix == ".safetensors" or file.name.endswith("index.json"):
            (endless / file.name).unlink(missing_ok=True)
            (endless / file.name).symlink_to(file.resolve())
    never = SHAPE["vocab_size"] - 1
    model.config.eos_token_id = model.generation_config.eos_token_id = never
    model.config.save_pretrained(endless)
    model.generation_config.save_pretrained(endless)
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.save_pretrained(endless)


def save_adapters(model: Qwen3ForCausalLM, base_name: str, run: Path, count: int) -> None:
    """Adapters whose B matrices are small and random: as heavy as trained ones, and nearly without effect."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=mixed_chat.PROJECTIONS)
    adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    for number in range(1, count + 1):
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=1e-4)
        with mixed_chat.new_checkpoint(run, 20 * number) as folder:
            mixed_chat.save_adapter(adapted, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapters", type=int, default=4)
    options = parser.parse_args()
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(config.ROOT / "tiny_world" / "model")
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters")
    save_model(model, tokenizer, options.folder)
    save_adapters(model, str(options.folder / "model"), options.folder / "run", options.adapters)
    size = sum(file.stat().st_size for file in (options.folder / "run" / "checkpoint-20").iterdir())
    print(json.dumps({"seconds": round(time.monotonic() - started, 1), "checkpoint_MB": round(size / 1e6, 1)}))


if __name__ == "__main__":
    main()
