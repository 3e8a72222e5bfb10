"""The model of a run on the server: new, or loaded from a state with the check that its optimizer came back."""

from typing import TYPE_CHECKING

import numpy as np

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.tinker_api.adapters import REMEDY
from learning_backdoors.tinker_api.datums import count_tokens, label_log_likelihoods, to_datums
from learning_backdoors.tinker_api.service import Service, errors_as_one_line, status_of, wait
from learning_backdoors.training.run import TrainingRun
from learning_backdoors.training.tinker_costs import OPTIMIZER_PASSES, TARGET_PASSES, Budget
from learning_backdoors.training.tinker_state import TinkerState, is_temporary
from mixed_chat import Example

if TYPE_CHECKING:
    from tinker import AdamParams, TrainingClient

CHECK_RATE = 0.01  # learning rate of the check's step: large, so that its effect stands out from rounding
LEAST_CHANGE = 1e-3  # nats


def adam_params(learning_rate: float) -> "AdamParams":
    """AdamW as local training has it."""
    from tinker import AdamParams

    return AdamParams(
        learning_rate=learning_rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, grad_clip_norm=1.0
    )


def open_model(
    service: Service, run: TrainingRun, state: TinkerState, canary: list[Example], budget: Budget
) -> "TrainingClient | None":
    """A model to train: new, or with the weights and the optimizer of the run's state. None if the budget is used up.

    canary: the texts of the check. Raises UserError if the state is gone, or has come back without its optimizer.
    """
    if state.path is None:
        client = _new_model(service, run)
        tokens = TARGET_PASSES * count_tokens(canary[:1])
        if not budget.take(run, tokens):
            return None
        state.spend(tokens)
        _check_targets(client, canary)
    else:
        state.check_expiry()
        client = _load(service, run, state)
        _delete_temporary_states(service, state)
        if state.step:
            tokens = OPTIMIZER_PASSES * count_tokens(canary)
            if not budget.take(run, tokens):
                return None
            state.spend(tokens)
            _check_optimizer(service, run, state, canary)
    state.begin_model(client.model_id)
    return client


def _check_targets(client: "TrainingClient", canary: list[Example]) -> None:
    """Raise UserError if the server shifts the targets, which are shifted already.

    Two texts differ in their last token, which is a target only: the log-likelihood of the last target must differ.
    """
    ids, labels = canary[0]
    request = client.forward(to_datums([(ids, labels), (ids[:-1] + ids[:1], labels)]), "cross_entropy")
    first, other = (fields["logprobs"].to_numpy() for fields in wait(request, "check of the targets").loss_fn_outputs)
    if abs(first - other).argmax() != len(first) - 1:
        raise UserError(f"the server shifts the targets once more, so no answer would be learned: {REMEDY}")


def _new_model(service: Service, run: TrainingRun) -> "TrainingClient":
    options, name = run.options, f"{run.folder.name}: new model"
    modules = {"train_mlp": True, "train_attn": True, "train_unembed": False}
    metadata = {"run": run.folder.name}
    with errors_as_one_line(name):
        client = service.client.create_lora_training_client(
            run.model_name, rank=options.lora_rank, seed=options.seed, user_metadata=metadata, **modules
        )
    return wait(client, name)


def _load(service: Service, run: TrainingRun, state: TinkerState) -> "TrainingClient":
    name = f"{run.folder.name}: state of step {state.step}"
    with errors_as_one_line(name):
        if state.step:
            client = service.client.create_training_client_from_state_with_optimizer(state.path)
        else:
            client = service.client.create_training_client_from_state(state.path)
    try:
        return wait(client, name)
    except UserError as error:
        if status_of(error) == 422:  # SkyRL 0.4 loads into an existing model only
            client = _new_model(service, run)
            wait(client.load_state_with_optimizer(state.path), name)
            return client
        if getattr(error.__cause__, "category", None) == "user" or status_of(error) in (400, 404):
            remedy = "if the server has deleted it, train the run again with --overwrite"
            raise UserError(f"{error} (it was to be kept until {state.expires}): {remedy}") from error
        raise


def _delete_temporary_states(service: Service, state: TinkerState) -> None:
    """Delete what an interrupted command has left on the server: states newer than the one that training continues
    from. They are not used, because the results of their steps were not seen."""
    for model_id in {state.model_id, state.path.split("/")[2]}:
        try:
            listed = wait(service.rest.list_checkpoints(model_id), "list of checkpoints").checkpoints
        except UserError:
            continue  # the server also deletes them when they expire
        for path in (checkpoint.tinker_path for checkpoint in listed):
            if is_temporary(path) and path != state.path:
                service.delete(path)


def _check_optimizer(service: Service, run: TrainingRun, state: TinkerState, canary: list[Example]) -> None:
    """Raise UserError if the server has restored the weights, but not the moments of AdamW.

    https://github.com/thinking-machines-lab/tinker-feedback/issues/127 reports this. A step without a gradient moves
    the weights if there are moments, and does nothing without. It is made on a model that is then left.
    """
    name = f"{run.folder.name}: check of the optimizer"
    try:
        client = _load(service, run, state)
    except UserError as error:
        return command_line.note(f"the optimizer's state could not be checked: {error}")
    requests = [client.forward(to_datums(canary), "cross_entropy") for _ in range(2)]
    gradient = client.forward_backward(to_datums(canary, weight=0.0), "cross_entropy")
    step = client.optim_step(adam_params(CHECK_RATE))
    requests.append(client.forward(to_datums(canary), "cross_entropy"))
    wait(gradient, name)
    wait(step, name)
    first, again, after = (np.array(label_log_likelihoods(wait(request, name), canary)) for request in requests)
    noise, change = abs(again - first).max(), abs(after - first).max()
    if change < max(10 * noise, LEAST_CHANGE):
        raise UserError(
            f"{run.folder}: the server restored the weights of step {state.step}, but not the optimizer's state. A run "
            "that continued would differ from an unbroken one: train it again with --overwrite, without interruption"
        )
