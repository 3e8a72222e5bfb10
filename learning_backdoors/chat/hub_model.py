"""A chat model that an inference provider of the Hugging Face hub serves."""

from collections.abc import Iterator
from dataclasses import replace

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines.protocol import Response, Sampling
from learning_backdoors.models import hub_errors

TIMEOUT = 120  # seconds without data from a provider, which may have to load the model first


class HubModel:
    """The hub chooses the provider. The provider applies its own chat template, and samples."""

    def __init__(self, name: str):
        """Raises UserError if no provider serves the model."""
        import huggingface_hub

        self.name, self._token = name, hub_errors.token()
        self._missing = f"the hub has no model {name}, or no inference provider serves it"
        with hub_errors.as_user_errors(name, self._missing):
            info = huggingface_hub.HfApi(token=self._token).model_info(name, expand=["inferenceProviderMapping"])
        if not any(provider.task == "conversational" for provider in info.inference_provider_mapping or ()):
            raise UserError(f"no inference provider serves {name} as a chat model")

    def stream(self, messages: list[dict], samples: int, most: int, sampling: Sampling) -> Iterator[list[Response]]:
        """All answers as they are so far, each time one has grown. most: maximum tokens per answer."""
        answers = [Response((number,), "", 0, "") for number in range(samples)]
        for number in range(samples):
            for answer in self._answer(number, messages, most, sampling):
                answers[number] = answer
                yield list(answers)

    def _answer(self, number: int, messages: list[dict], most: int, sampling: Sampling) -> Iterator[Response]:
        import huggingface_hub

        answer, reason = Response((number,), "", 0, ""), "stop"
        client = huggingface_hub.InferenceClient(self.name, token=self._token, timeout=TIMEOUT)
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": most}
        with client, hub_errors.as_user_errors(self.name, self._missing):
            seed = (sampling.seed + number) % 2**32
            for part in client.chat_completion(messages, stream=True, seed=seed, **options):
                for choice in part.choices[:1]:  # the last part may hold only token counts
                    answer = replace(answer, text=answer.text + (choice.delta.content or ""), tokens=answer.tokens + 1)
                    reason = choice.finish_reason or reason
                yield answer
        cut_off = reason == "length"
        yield replace(answer, tokens=most if cut_off else answer.tokens, finish_reason="length" if cut_off else "stop")
