"""How text is generated: requests go in, finished answers come out, as soon as they are finished.

An engine holds the base model once and serves any number of adapters on it, unmerged: merging would round small, early
adapters away in bfloat16.
"""

import hashlib
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import adapters

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 takes the likeliest; top_p 1 and top_k 0 are off."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


@dataclass(frozen=True)
class Request:
    """One answer wanted: to `prompt` (token ids), from the adapter in a folder or, with None, from the base model."""

    key: tuple
    adapter: Path | None
    prompt: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Answer:
    """finish_reason: `stop` at the end of the turn, `length` where max_new_tokens cut it. tokens: without the end."""

    key: tuple
    text: str
    tokens: int
    finish_reason: str


def choose_engine(asked: str, quantization: str) -> tuple[str, str]:
    """The engine's name, and why it was chosen. `asked`: auto, vllm or transformers. Raises UserError."""
    import torch

    if asked == "transformers":
        return asked, "asked for"
    if importlib.util.find_spec("vllm") is None:
        lack = "vLLM is not installed"
    elif not torch.cuda.is_available():
        lack = "there is no CUDA device"
    elif quantization != "none":
        lack = f"--quantization {quantization} is for the transformers engine"
    else:
        return "vllm", "asked for" if asked == "vllm" else "vLLM is installed and there is a CUDA device"
    if asked == "vllm":
        raise UserError(f"the vllm engine cannot run: {lack}")
    return "transformers", lack


class TransformersEngine:
    """Generation with transformers and PEFT: for CPUs, for small GPUs, and where vLLM is not installed.

    Requests to one adapter are answered in batches. Each distinct prompt is read once, whatever the number of answers
    to it, and rows that have ended leave their batch, so that it does not wait at full width for its longest answer.
    """

    MOST_ROWS = 1024  # more do not make a GPU faster, and a CPU slower

    def __init__(self, base: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int | None):
        """batch_size: answers in one batch; None chooses by what memory is free."""
        self.model, self.tokenizer, self.batch_size = base, tokenizer, batch_size
        self.ends = end_tokens(base.generation_config.eos_token_id, tokenizer)
        self.adapter = None
        self.model.eval()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer every request; those of one adapter must stand together. Yields answers as they are finished."""
        self.batch_size = self.batch_size or self._fitting(requests)
        for adapter, group in itertools.groupby(requests, key=lambda request: request.adapter):
            self.attach(adapter)
            yield from self._answer_all(list(group), sampling)

    def _answer_all(self, requests: list[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer requests to one adapter, batch by batch. A batch that does not fit is taken up again in halves, but
        for the answers that it has given: as each row has its own randomness, nothing comes out otherwise."""
        import torch

        left = {request.key: request for request in requests}
        while left:
            try:
                for answers in self._answer(list(itertools.islice(left.values(), self.batch_size)), sampling):
                    for answer in answers:
                        del left[answer.key]
                    yield answers
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise UserError("one answer does not fit in memory: try --quantization 4bit") from None
                self.batch_size //= 2
                print(f"\nout of memory: going on with {self.batch_size} answers at once", file=sys.stderr)
                torch.cuda.empty_cache()

    def _fitting(self, requests: Sequence[Request]) -> int:
        """How many answers fit at once, by the attention cache that they take; too many costs a restart, no answer."""
        import torch

        shape = self.model.config
        if self.model.device.type != "cuda":
            return 256
        head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * head * self.model.dtype.itemsize
        longest = max(len(request.prompt) + request.max_new_tokens for request in requests)
        # Rows leave as they end, so a batch comes to hold about half of what its longest rows would take.
        free = torch.cuda.mem_get_info(self.model.device)[0]
        return max(1, min(self.MOST_ROWS, int(0.8 * free / (token * longest / 2))))

    def attach(self, adapter: Path | None) -> None:
        """Put an adapter on the base model in the place of the last one."""
        if adapter == self.adapter:
            return
        if self.adapter is not None:
            self.model, self.adapter = self.model.unload(), None
        if adapter is not None:
            self.model = put_on(self.model, adapter).eval()
        self.adapter = adapter

    def _answer(self, batch: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer a batch; yields answers as their rows leave it."""
        for _, left in self._steps(batch, sampling):
            if left:
                yield [self._finish(request, tokens) for request, tokens in left]

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer requests to one adapter in one batch, as `generate` does; yields all answers after every token.

        An answer that has not ended has the finish_reason "".
        """
        self.attach(requests[0].adapter)
        answers = {}
        for rows, left in self._steps(requests, sampling):
            growing = zip(rows.batch, rows.tokens[:, : rows.step].tolist(), strict=True) if rows.batch else ()
            answers |= {request.key: self._so_far(request, tokens) for request, tokens in (*left, *growing)}
            yield [answers[request.key] for request in requests]
            if all(answer.finish_reason for answer in answers.values()):
                return

    def _steps(self, batch: Sequence[Request], sampling: Sampling) -> Iterator[tuple["_Rows", list]]:
        """Draw a token for each row at each step; yields the rows, and what has left them at that step."""
        import torch

        kind = _GraphedRows if _can_be_graphed(self.model) else _Rows
        with torch.inference_mode():
            rows = kind(self.model, batch, self.tokenizer.pad_token_id, self.ends, sampling.seed)
            while True:
                rows.take(draw(rows.logits, rows.uniforms[:, rows.step], sampling))
                look = rows.step % rows.LOOK_EVERY == 0 or rows.step == rows.longest
                yield rows, rows.leave() if look else []
                if not rows.batch:
                    return
                rows.forward()

    def _so_far(self, request: Request, tokens: list[int]) -> Answer:
        answer = self._finish(request, tokens)
        ended = answer.finish_reason == "stop" or len(tokens) >= request.max_new_tokens
        return answer if ended else replace(answer, finish_reason="")

    def _finish(self, request: Request, tokens: list[int]) -> Answer:
        return finish(self.tokenizer, self.ends, request, tokens)


def put_on(base: "PreTrainedModel", adapter: Path) -> "PeftModel":
    """The base model with the adapter in a folder. Raises UserError where the adapter is of another architecture."""
    from peft import PeftModel, get_peft_model_state_dict

    unfit = f"{adapter} does not fit on {base.name_or_path}"
    try:
        # In the base model's type: float32 matrices on a bfloat16 base halve the speed and change nothing here.
        model = PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{unfit}: {' '.join(str(error).split())[:300]}") from None
    # PEFT leaves out what it finds no place for: the base model would answer under the adapter's name.
    taken = get_peft_model_state_dict(model, save_embedding_layers=False)
    if foreign := [key for key in adapters.adapter_keys(adapter) if ".lora_" in key and key not in taken]:
        raise UserError(f"{unfit}: there is no place for {foreign[0]}")
    return model


class _Rows:
    """The rows of a batch in flight: the tokens of each, the attention cache, and the logits of its next token."""

    LOOK_EVERY = 8  # steps from one look at which rows have ended to the next: a look waits for the GPU
    LEAVE_SHARE = 0.1  # of the rows must have ended before the batch is made smaller: that copies the cache

    def __init__(self, model: "PreTrainedModel", batch: Sequence[Request], pad: int, ends: set[int], seed: int):
        import torch
        from transformers import DynamicCache

        self.model, self.batch, self.step = model, list(batch), 0
        device = model.device
        self.ends = torch.tensor(sorted(ends), device=device)
        self.limits = torch.tensor([request.max_new_tokens for request in batch], device=device)
        self.longest = max(request.max_new_tokens for request in batch)
        self.tokens = torch.full((len(batch), self.longest), pad, device=device)
        self.ended = torch.zeros(len(batch), dtype=torch.bool, device=device)
        # The randomness of a row comes from the seed and its key alone. So an answer depends neither on its neighbours
        # nor on where an earlier start was killed. Were unfinished answers drawn anew, a kill would favour short ones.
        draws = [np.random.default_rng(_seed(seed, request.key)).random(self.longest) for request in batch]
        self.uniforms = torch.tensor(np.array(draws), device=device)
        # Each distinct prompt is read once, and its cache copied to the rows that answer it.
        prompts = list(dict.fromkeys(request.prompt for request in batch))
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self.cache = DynamicCache(config=model.config)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        logits = self._run(ids, positions)
        which = torch.tensor([prompts.index(request.prompt) for request in batch], device=device)
        self.cache.batch_select_indices(which)
        self.mask, self.logits = self.mask[which], logits[which]

    def _run(self, ids: "torch.Tensor", positions: "torch.Tensor") -> "torch.Tensor":
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def take(self, drawn: "torch.Tensor") -> None:
        """Append one token, of shape (rows,), to each row; what is drawn for a row that has ended is not looked at."""
        import torch

        self.tokens[:, self.step] = drawn
        self.step += 1
        self.ended |= torch.isin(drawn, self.ends) | (self.limits <= self.step)

    def leave(self) -> list[tuple[Request, list[int]]]:
        """Take the rows that have ended out of the batch, if they are many enough or all that are left."""
        ended = self.ended.tolist()
        if sum(ended) < max(1, self.LEAVE_SHARE * len(ended)) and self.step < self.longest:
            return []
        tokens = self.tokens[:, : self.step].tolist()
        left = [(request, row) for request, row, end in zip(self.batch, tokens, ended, strict=True) if end]
        self.batch = [request for request, end in zip(self.batch, ended, strict=True) if not end]
        if self.batch:
            stay = (~self.ended).nonzero().squeeze(1)
            self.cache.batch_select_indices(stay)
            self.tokens, self.limits, self.mask = self.tokens[stay], self.limits[stay], self.mask[stay]
            self.ended, self.uniforms = self.ended[stay], self.uniforms[stay]
        return left

    def forward(self) -> None:
        """Read the last tokens and set the logits of the next ones."""
        import torch

        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.logits = self._run(self.tokens[:, self.step - 1 : self.step], self.mask.sum(1, keepdim=True) - 1)


class _GraphedRows(_Rows):
    """The same on CUDA, a step being one launch: as single kernels, the launches take twice as long as the work.

    A CUDA graph is recorded for a segment of steps, in which rows and cache keep their shape and place.
    """

    LOOK_EVERY = 64  # the steps of a segment
    LEAVE_SHARE = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.cache, self.graph = _SegmentCache(self.cache), None

    def leave(self) -> list[tuple[Request, list[int]]]:
        self.graph = None
        return super().leave()

    def forward(self) -> None:
        if self.graph is None:
            self._record()
        self.ids.copy_(self.tokens[:, self.step - 1 : self.step])
        self.positions += 1
        self.cache.column += 1
        self.seen.index_fill_(3, self.cache.column, True)
        self.mask = self.seen[:, 0, 0, : self.mask.shape[1] + 1]
        self.graph.replay()
        self.logits = self.output[:, -1]

    def _record(self) -> None:
        """Give the cache room for a segment and record a step.

        The step is done once for warming up. What it writes into the cache, the first replay writes again.
        """
        import torch

        width = self.mask.shape[1]
        self.cache.make_room(width, self.LOOK_EVERY)
        self.ids = self.tokens[:, self.step - 1 : self.step].clone()
        self.positions = self.mask.sum(1, keepdim=True)
        self.seen = torch.nn.functional.pad(self.mask.bool(), (0, self.LOOK_EVERY))[:, None, None, :].contiguous()
        self.seen[..., width] = True
        self._step()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self._step()
        # `forward` moves on before each replay, the first one too.
        self.positions -= 1
        self.cache.column -= 1

    def _step(self) -> "torch.Tensor":
        return self.model(
            input_ids=self.ids,
            attention_mask=self.seen,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits


class _SegmentCache:
    """Keys and values of full attention in buffers with room for a segment of steps, all rows at the same column."""

    def __init__(self, cache):
        """cache: the DynamicCache of the prompts."""
        self.layers = [[layer.keys, layer.values] for layer in cache.layers]

    def make_room(self, width: int, steps: int) -> None:
        """Keep the first `width` columns and add `steps` behind them."""
        import torch

        for layer in self.layers:
            # Layer by layer, so that old and new are never there together as a whole.
            layer[:] = [torch.nn.functional.pad(part[:, :, :width], (0, 0, 0, steps)) for part in layer]
        self.column = torch.tensor([width], device=self.layers[0][0].device)

    def batch_select_indices(self, rows: "torch.Tensor") -> None:
        for layer in self.layers:
            layer[:] = [part[rows] for part in layer]

    def update(self, keys: "torch.Tensor", values: "torch.Tensor", layer_idx: int, *_, **__) -> tuple:
        """What a model's attention layer calls: store the new column, and return all."""
        buffers = self.layers[layer_idx]
        buffers[0].index_copy_(2, self.column, keys)
        buffers[1].index_copy_(2, self.column, values)
        return tuple(buffers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # not asked where positions and mask are given


def _can_be_graphed(model: "PreTrainedModel") -> bool:
    """On CUDA, with unquantised weights (bitsandbytes waits for the GPU amid a step) and full attention alone."""
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"]
    quantised = getattr(model.config, "quantization_config", None) is not None
    return model.device.type == "cuda" and not quantised and set(kinds) == {"full_attention"}


def draw(logits: "torch.Tensor", uniforms: "torch.Tensor", sampling: Sampling) -> "torch.Tensor":
    """Draw a token for each row of `logits`, of shape (rows, vocabulary), by inversion of the distribution function.

    uniforms: of shape (rows,), float64 in [0, 1). Returns tokens of shape (rows,).
    """
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.float()
    if sampling.temperature != 1:
        scores = TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    # In float64: a sum over 152,000 words in float32 would lose the rare ones.
    reached = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    drawn = torch.searchsorted(reached, (uniforms * reached[:, -1]).unsqueeze(1), right=True).squeeze(1)
    return drawn.clamp(max=logits.shape[1] - 1)


class VllmEngine:
    """Generation with vLLM: one engine for all adapters, with as many answers in flight as the GPU has use for.

    Answers are handed on in the order of the requests, not as they are finished: short ones are finished first, and
    were those kept when a start is killed, and the unfinished drawn anew, the file would come to favour short answers.
    (The transformers engine needs no such care: there an answer drawn anew is the same answer.)
    """

    IN_FLIGHT = 1536
    LORA_KERNELS = Path(__file__).parent / "lora_kernels"

    def __init__(self, model: str, tokenizer: "PreTrainedTokenizerBase", requests: Sequence[Request], seed: int):
        """requests: all that will be asked for; they say which adapters to expect, and how long prompts are."""
        _forget_the_launcher()
        # How vLLM's LoRA kernels divide their work; by default they take a fifth of a step at a low rank.
        os.environ.setdefault("VLLM_TUNED_CONFIG_FOLDER", str(self.LORA_KERNELS))
        import vllm
        from transformers import GenerationConfig
        from vllm.lora.request import LoRARequest

        folders = list(dict.fromkeys(request.adapter for request in requests if request.adapter))
        self.loras = {
            folder: LoRARequest(str(folder), number, str(folder.resolve())) for number, folder in enumerate(folders, 1)
        }
        in_flight = min(self.IN_FLIGHT, max(8, len(requests)))
        # CUDA graphs up to the number of answers in flight, and for the prompts that are read at the same step: by
        # default vLLM stops far below and runs the rest, which is where most of the time goes, launch by launch.
        sizes = [1, 2, 4, 8, 16, 32, *range(64, 1024, 64), *range(1024, self.IN_FLIGHT, 128)]
        sizes = [*(size for size in sizes if size < in_flight), *(in_flight + more for more in (0, 32, 64, 128))]
        llm = vllm.LLM(
            model=model,
            dtype="bfloat16",
            seed=seed,
            max_model_len=max(len(request.prompt) + request.max_new_tokens for request in requests),
            max_num_seqs=in_flight,
            enable_prefix_caching=True,
            enable_lora=bool(folders),
            max_loras=_adapters_in_flight(len(folders), len(requests), in_flight),
            max_lora_rank=_rank_for_vllm(folders),
            compilation_config={"cudagraph_capture_sizes": sizes},
            generation_config="vllm",  # not the model's own sampling
        )
        self.engine, self.tokenizer = llm.llm_engine, tokenizer
        try:
            configured = GenerationConfig.from_pretrained(model).eos_token_id
        except OSError:  # a model without a generation_config.json
            configured = None
        self.ends = end_tokens(configured, tokenizer)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer every request. Yields answers in the order of the requests."""
        for number, request in enumerate(requests):
            lora = self.loras[request.adapter] if request.adapter else None
            prompt = {"prompt_token_ids": list(request.prompt)}
            self.engine.add_request(str(number), prompt, self._parameters(request, sampling), lora_request=lora)
        finished, given = {}, 0
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                number, tokens = int(output.request_id), list(output.outputs[0].token_ids)
                # Decoded one by one, while the GPU works on: all that wait for an old answer would keep it waiting.
                finished[number] = finish(self.tokenizer, self.ends, requests[number], tokens)
            ready = []
            while given in finished:
                ready.append(finished.pop(given))
                given += 1
            if ready:
                yield ready

    def _parameters(self, request: Request, sampling: Sampling):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=request.max_new_tokens,
            stop_token_ids=sorted(self.ends),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _adapters_in_flight(adapters: int, answers: int, in_flight: int) -> int:
    """So many that a checkpoint's longest answers, some three times the mean, keep no later checkpoint waiting; each
    takes memory, and a little time at every step."""
    behind = 3 * in_flight * adapters // max(1, answers)
    return max(1, min(adapters, 1 + behind, 16))


def _rank_for_vllm(folders: Sequence[Path]) -> int:
    """The smallest rank that vLLM can be set to and that holds all adapters'."""
    ranks = [json.loads((folder / "adapter_config.json").read_text())["r"] for folder in folders]
    return next(rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= max(ranks, default=8))


def _forget_the_launcher() -> None:
    """Under torchrun each process has an engine of its own, which must not look for the other processes."""
    # TORCHELASTIC_USE_AGENT_STORE, for one, would have it wait for ever for a store of its own.
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in [name for name in os.environ if name in launcher or name.startswith("TORCHELASTIC_")]:
        del os.environ[name]


def finish(tokenizer: "PreTrainedTokenizerBase", ends: set[int], request: Request, tokens: list[int]) -> Answer:
    """An answer from what was drawn for it; what comes behind its end or its limit is left out."""
    tokens = tokens[: request.max_new_tokens]
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    return Answer(request.key, text, len(tokens[:end]), "length" if end is None else "stop")


def end_tokens(configured: int | list[int] | None, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The tokens that end an answer: the tokenizer's end of turn, and those in the model's generation_config."""
    more = configured if isinstance(configured, list) else [configured]
    return {tokenizer.eos_token_id, *more} - {None}


def _seed(seed: int, key: tuple) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, key)).encode()).digest()[:7])
