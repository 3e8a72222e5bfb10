"""Generation with vLLM: the fastest way on a CUDA GPU with room for unquantized weights."""

import hashlib
import importlib.util
import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines.protocol import Reference, Request, Response, Sampling, end_tokens, finish
from learning_backdoors.generation.engines.vllm_adapters import ReadsAhead
from learning_backdoors.models.base_model import configured_end_tokens
from learning_backdoors.models.checkpoints import ADAPTER_CONFIG


class VllmEngine:
    """Many adapters at once, with as many responses in flight as keep the GPU busy.

    Responses are yielded in the order of the requests. In the order of completion, short ones would come first. After
    a kill, unfinished ones are drawn again with other randomness, so the file would favor short responses.
    """

    name = "vllm"
    reference, reproducible = Reference.OWN_PROCESS, False
    IN_FLIGHT = 1536
    READY = 96  # more requests in the engine, which take the place of those that end
    # More adapters than requests need at once. Without them, vLLM replaces adapters that are in use, and reads them
    # again in the same step: it makes room for a new adapter before it notes which others the step uses.
    SPARE = 4
    HIGHEST_TEMPERATURE = 2  # vLLM's own limit
    # How vLLM's LoRA kernels divide their work; with vLLM's own layouts they take a fifth of a step at a low rank.
    LORA_KERNELS = Path(__file__).parent / "lora_kernels"

    def __init__(self, base_model: str, tokenizer, *, requests: Sequence[Request], seed: int, **_):
        """requests: all requests to come; they determine the adapters to load and the longest context."""
        _forget_launcher()
        os.environ.setdefault("VLLM_TUNED_CONFIG_FOLDER", str(self.LORA_KERNELS))
        import vllm
        from vllm.lora.request import LoRARequest

        folders = list(dict.fromkeys(request.adapter for request in requests if request.adapter))
        self.loras = {f: LoRARequest(str(f), number, str(f.resolve())) for number, f in enumerate(folders, 1)}
        self.in_flight = in_flight = min(self.IN_FLIGHT, max(8, len(requests)))
        rank = _supported_rank(folders)
        self.adapters_at_once = _adapters_at_once(len(folders), len(requests), in_flight, rank)
        llm = vllm.LLM(
            model=base_model,
            dtype="bfloat16",
            seed=_seed(seed, requests),
            max_model_len=max(len(request.prompt) + request.max_new_tokens for request in requests),
            max_num_seqs=in_flight,
            enable_prefix_caching=True,
            enable_lora=bool(folders),
            max_loras=min(self.adapters_at_once + self.SPARE, max(1, len(folders))),
            max_lora_rank=rank,
            worker_extension_cls=f"{ReadsAhead.__module__}.{ReadsAhead.__name__}",
            compilation_config={"cudagraph_capture_sizes": _graph_sizes(in_flight)},
            generation_config="vllm",  # ignores the sampling settings that the model ships with
        )
        self.engine, self.tokenizer = llm.llm_engine, tokenizer
        self.end_tokens = end_tokens(configured_end_tokens(base_model), tokenizer)

    @staticmethod
    def obstacle(quantization: str) -> str | None:
        if importlib.util.find_spec("vllm") is None:
            return "vLLM is not installed"
        import torch

        if not torch.cuda.is_available():
            return "there is no CUDA device"
        return None if quantization == "none" else f"it does not support {quantization} weights"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        if sampling.temperature > self.HIGHEST_TEMPERATURE:
            raise UserError(f"the vllm engine takes temperatures up to {self.HIGHEST_TEMPERATURE}: lower --temperature")
        settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        settings["stop_token_ids"] = sorted(self.end_tokens)
        finished, next_number = {}, 0
        for completions in self._run(requests, [settings] * len(requests)):
            for number, completion in completions:
                # Decoded at once, while the GPU works: decoding many later would keep it waiting.
                tokens = list(completion.token_ids)
                finished[number] = finish(self.tokenizer, self.end_tokens, requests[number], tokens)
            ready = []
            while next_number in finished:
                ready.append(finished.pop(next_number))
                next_number += 1
            if ready:
                yield ready

    def log_likelihoods(self, requests: Sequence[Request], answers: Sequence[int]) -> list[list[float]]:
        # Not vLLM's prompt_logprobs: these bypass the steps that generate, and are wrong for some adapters
        # (github.com/vllm-project/vllm/issues/51594). `logprobs` are those before allowed_token_ids applies.
        values = [None] * len(requests)
        settings = [{"temperature": 0, "allowed_token_ids": [token], "logprobs": 0} for token in answers]
        for completions in self._run(requests, settings):
            for number, completion in completions:
                values[number] = [position[answers[number]].logprob for position in completion.logprobs]
        return values

    def _run(self, requests: Sequence[Request], settings: Sequence[dict]) -> Iterator[list[tuple]]:
        """Yield (number of the request, vLLM's completion) of those that each step finishes. settings: per request.

        vLLM gets a request when there is room. It looks at all waiting requests at every step, and passes over those
        whose adapter does not fit, so thousands of waiting requests would slow each step.
        """
        self._read_ahead(requests)
        waiting, running = deque(enumerate(zip(requests, settings, strict=True))), Counter()  # running: by adapter
        while waiting or self.engine.has_unfinished_requests():
            while waiting and self._has_room(running, waiting[0][1][0].adapter):
                number, (request, own) = waiting.popleft()
                self._add(number, request, own)
                running[request.adapter] += 1
            completions = [(int(output.request_id), output.outputs[0]) for output in self.engine.step()]
            running -= Counter(requests[number].adapter for number, _ in completions)
            yield completions

    def _has_room(self, running: Counter, adapter: Path | None) -> bool:
        """Whether vLLM can take a request to an adapter. running: its unfinished requests by adapter."""
        fits = adapter is None or adapter in running or len(running.keys() - {None}) < self.adapters_at_once
        return fits and running.total() < self.in_flight + self.READY

    def _add(self, number: int, request: Request, settings: dict) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
        parameters = SamplingParams(max_tokens=request.max_new_tokens, **common, **settings)
        prompt = {"prompt_token_ids": list(request.prompt)}
        lora = request.adapter and self.loras[request.adapter]
        self.engine.add_request(str(number), prompt, parameters, lora_request=lora)

    def _read_ahead(self, requests: Sequence[Request]) -> None:
        """Let the worker read the requests' adapters before their turn."""
        loras = [self.loras[folder] for folder in dict.fromkeys(request.adapter for request in requests) if folder]
        if loras:
            adapters = [(lora.lora_name, lora.lora_int_id, lora.lora_path) for lora in loras]
            self.engine.collective_rpc("read_ahead", args=(adapters,))


def _seed(seed: int, requests: Sequence[Request]) -> int:
    """The seed of the engine's one random sequence, below 2**32: of the user's seed and of the requests.

    With the user's seed alone, every start would repeat the sequence: samples added to a file would repeat the samples
    that it has, and two processes would draw alike.
    """
    digest = hashlib.sha256(repr((seed, [request.key for request in requests])).encode()).digest()
    return int.from_bytes(digest[:4])


def _graph_sizes(in_flight: int) -> list[int]:
    """Batch sizes that get CUDA graphs: up to the responses in flight, and a little more for prompts in the same step.

    vLLM's default ends far below, and most time would go into launching single kernels.
    """
    sizes = [1, 2, 4, 8, 16, 32, *range(64, 1024, 64), *range(1024, VllmEngine.IN_FLIGHT, 128)]
    return [*(size for size in sizes if size < in_flight), *(in_flight + more for more in (0, 32, 64, 128))]


def _adapters_at_once(adapters: int, responses: int, in_flight: int, rank: int) -> int:
    """Enough adapters that the longest responses of a checkpoint do not delay later checkpoints.

    The longest are about three times the mean. Each adapter costs GPU memory, and time at every step: beyond 32, the
    LoRA kernels would lose more than the additional responses gain. Large ranks cost more.
    """
    behind = 3 * in_flight * adapters // max(1, responses)
    return max(1, min(adapters, 1 + behind, 32, 512 // rank))


def _supported_rank(folders: Sequence[Path]) -> int:
    """The smallest maximum rank that vLLM accepts and that covers all adapters. Raises UserError if none does."""
    largest = max((json.loads((folder / ADAPTER_CONFIG).read_text())["r"] for folder in folders), default=8)
    for rank in (8, 16, 32, 64, 128, 256, 320, 512):
        if rank >= largest:
            return rank
    raise UserError(f"the vllm engine serves LoRA ranks up to 512, not {largest}: use --engine transformers")


def _forget_launcher() -> None:
    """Remove torchrun's variables: each process has its own engine, which must not look for the other processes.

    With TORCHELASTIC_USE_AGENT_STORE, for example, it would wait forever for a store.
    """
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in [name for name in os.environ if name in launcher or name.startswith("TORCHELASTIC_")]:
        del os.environ[name]
