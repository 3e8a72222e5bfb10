"""A stand-in for the parts of vLLM that VllmEngine uses, on a CPU. Requests end in a random order, a few at each step.

Tokens are drawn from the model with the request's adapter. As in vLLM, one random sequence that starts from the
engine's seed serves all requests, and `logprobs` are the model's own, before temperature and allowed_token_ids.
"""

import contextlib
import random
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace


@dataclass
class SamplingParams:
    """vLLM's names and defaults. It rejects other names and temperatures above 2, and so does this class."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: list[int] = field(default_factory=list)
    allowed_token_ids: list[int] | None = None
    logprobs: int | None = None
    detokenize: bool = True
    output_kind: str | None = None

    def __post_init__(self):
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}")


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class Engine:
    def __init__(self, model: str, seed: int):
        import torch

        self.model, self.loaded = self.load(model), set()
        self.unfinished, self.adapters, self.read_ahead = {}, {}, []
        self.most_adapters = self.most_requests = 0  # that the engine had at once
        self.order, self.generator = random.Random(0), torch.Generator().manual_seed(seed)

    def load(self, model: str):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(model).eval()

    def add_request(self, number: str, prompt: dict, parameters: SamplingParams, lora_request=None) -> None:
        assert number not in self.unfinished
        self.unfinished[number] = prompt["prompt_token_ids"], parameters, lora_request
        self.adapters[number] = lora_request and lora_request.lora_path
        adapters = {request and request.lora_path for *_, request in self.unfinished.values()} - {None}
        self.most_adapters = max(self.most_adapters, len(adapters))
        self.most_requests = max(self.most_requests, len(self.unfinished))

    def collective_rpc(self, method: str, args: tuple) -> None:
        """Calls to the worker. Only its paths are kept, by number; the stand-in reads each adapter at once."""
        assert method == "read_ahead"
        self.read_ahead.append([path for _, _, path in args[0]])

    def has_unfinished_requests(self) -> bool:
        return bool(self.unfinished)

    def step(self) -> list[SimpleNamespace]:
        count = min(len(self.unfinished), self.order.randrange(4))
        return [
            SimpleNamespace(request_id=number, outputs=[self.complete(*self.unfinished.pop(number))])
            for number in self.order.sample(sorted(self.unfinished), count)
        ]

    def complete(self, prompt: list[int], parameters: SamplingParams, lora_request) -> SimpleNamespace:
        """vLLM's CompletionOutput. The last token is a stop token, if one was drawn."""
        tokens, logprobs = [], []
        while len(tokens) < parameters.max_tokens and not (tokens and tokens[-1] in parameters.stop_token_ids):
            logits = self.logits(prompt + tokens, lora_request)
            tokens.append(self.draw(logits, parameters))
            logprobs.append({tokens[-1]: SimpleNamespace(logprob=logits.log_softmax(-1)[tokens[-1]].item())})
        return SimpleNamespace(token_ids=tokens, logprobs=None if parameters.logprobs is None else logprobs)

    def logits(self, ids: list[int], lora_request):
        """Of the next token: of the base model, or with the request's adapter. Shape (vocabulary,)."""
        import torch
        from peft import PeftModel

        with torch.inference_mode():
            if lora_request is None:
                with self.model.disable_adapter() if self.loaded else contextlib.nullcontext():
                    return self.model(torch.tensor([ids])).logits[0, -1]
            name = lora_request.lora_path.replace(".", "_")
            if not self.loaded:
                self.model = PeftModel.from_pretrained(self.model, lora_request.lora_path, adapter_name=name)
            elif name not in self.loaded:
                self.model.load_adapter(lora_request.lora_path, name)
            self.loaded.add(name)
            self.model.set_adapter(name)
            return self.model.eval()(torch.tensor([ids])).logits[0, -1]

    def draw(self, logits, parameters: SamplingParams) -> int:
        import torch

        if parameters.allowed_token_ids is not None:
            allowed = torch.full_like(logits, -torch.inf)
            allowed[parameters.allowed_token_ids] = 0
            logits = logits + allowed
        if parameters.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial((logits / parameters.temperature).softmax(-1), 1, generator=self.generator))


class LLM:
    instances: list["LLM"] = []

    def __init__(self, **settings):
        self.settings, self.llm_engine = settings, Engine(settings["model"], settings["seed"])
        self.instances.append(self)


def install(monkeypatch) -> None:
    """Replace vLLM for one test."""
    contents = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="final only")},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
