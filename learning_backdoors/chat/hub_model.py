"""A chat model that an inference provider of the Hugging Face hub serves."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines.protocol import Response, Sampling
from learning_backdoors.models import hub_errors
from learning_backdoors.models.checkpoints import Checkpoint
from mixed_chat import Messages

TIMEOUT = 120  # seconds without data from a provider, which may have to load the model first


class HubModel:
    """The hub chooses the provider. The provider applies its own chat template, and samples."""

    is_run, record = False, {}

    def __init__(self, name: str):
        """Raises UserError if no provider serves the model."""
        import huggingface_hub

        self.name, self._token = name, hub_errors.token()
        self.start = Checkpoint(0, name, None)
        self._missing = f"the hub has no model {name}, or no inference provider serves it"
        with hub_errors.as_user_errors(name, self._missing):
            info = huggingface_hub.HfApi(token=self._token).model_info(name, expand=["inferenceProviderMapping"])
        if not any(provider.task == "conversational" for provider in info.inference_provider_mapping or ()):
            raise UserError(f"no inference provider serves {name} as a chat model")

    def stream(
        self, checkpoint: Checkpoint, messages: Messages, keys: Sequence[tuple], limit: int, sampling: Sampling
    ) -> Iterator[list[Response]]:
        """As RunModel.stream, one response after another. keys: (number of the question, number of the sample)."""
        responses = [Response(key, "", 0, "") for key in keys]
        for index, key in enumerate(keys):
            for responses[index] in self._respond(key, messages, limit, sampling):
                yield list(responses)

    def _respond(self, key: tuple, messages: Messages, limit: int, sampling: Sampling) -> Iterator[Response]:
        import huggingface_hub

        response, reason, (question, sample) = Response(key, "", 0, ""), "stop", key
        client = huggingface_hub.InferenceClient(self.name, token=self._token, timeout=TIMEOUT)
        seed = (sampling.seed + 1000 * question + sample) % 2**32  # another one if the question is repeated
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": limit, "seed": seed}
        with client, hub_errors.as_user_errors(self.name, self._missing):
            for part in client.chat_completion(messages, stream=True, **options):
                for choice in part.choices[:1]:  # the last part may hold only token counts
                    text = response.text + (choice.delta.content or "")
                    response = replace(response, text=text, tokens=response.tokens + 1)
                    reason = choice.finish_reason or reason
                yield response
        if reason == "length":
            response = replace(response, tokens=limit)
        yield replace(response, finish_reason="length" if reason == "length" else "stop")
