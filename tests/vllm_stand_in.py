"""As much of vLLM as VllmEngine uses: it takes requests, and ends them in an order of its own, some at each step.

The answer to a request is its last prompt token, once for each token that may be drawn, with what stops it behind it.
"""

import random
import sys
from types import ModuleType, SimpleNamespace


class Engine:
    def __init__(self):
        self.waiting, self.adapters, self.random = {}, {}, random.Random(0)

    def add_request(self, number: str, prompt: dict, parameters: SimpleNamespace, lora_request=None) -> None:
        assert number not in self.waiting
        self.waiting[number] = [prompt["prompt_token_ids"][-1]] * (parameters.max_tokens - 1)
        self.waiting[number].append(parameters.stop_token_ids[0])
        self.adapters[number] = lora_request and lora_request.path

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[SimpleNamespace]:
        ended = self.random.sample(sorted(self.waiting), min(len(self.waiting), self.random.randrange(4)))
        return [
            SimpleNamespace(request_id=number, outputs=[SimpleNamespace(token_ids=self.waiting.pop(number))])
            for number in ended
        ]


class LLM:
    started: list["LLM"] = []

    def __init__(self, **settings):
        self.settings, self.llm_engine = settings, Engine()
        self.started.append(self)


def install(monkeypatch) -> None:
    """Put it in vLLM's place for one test."""
    contents = {
        "vllm": {"LLM": LLM, "SamplingParams": SimpleNamespace},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda name, number, path: SimpleNamespace(number=number, path=path)},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="final only")},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
