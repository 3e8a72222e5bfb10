"""The stand-in for the Tinker API, driven by the official SDK: what other tests may rely on."""

import json
import urllib.request

import numpy as np
import pytest
import tinker
from peft import PeftModel
from tinker import types

MODEL = "tiny_world/model"
STEP = types.AdamParams(learning_rate=1e-3, beta2=0.999, eps=1e-8, grad_clip_norm=1.0)
PROMPT = list(range(5, 25))


def datums(seed: int, count: int = 4, length: int = 24) -> list[types.Datum]:
    """Random examples. The weights are 1 in their second half."""
    tokens = np.random.default_rng(seed).integers(3, 4000, (count, length + 1)).tolist()
    weights = [0.0] * (length // 2) + [1.0] * (length - length // 2)
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(row[:-1]),
            loss_fn_inputs={"target_tokens": row[1:], "weights": weights},
        )
        for row in tokens
    ]


def train(client, seeds) -> list[float]:
    """A step for each seed, all queued before the first result is read. Returns the losses."""
    calls = [(client.forward_backward(datums(seed), "cross_entropy"), client.optim_step(STEP)) for seed in seeds]
    losses = [forward.result().metrics["loss:sum"] for forward, _ in calls]
    for _, step in calls:
        step.result()
    return losses


def logprobs(output) -> np.ndarray:
    return np.array([row["logprobs"].data for row in output.loss_fn_outputs])


def loss_after(client) -> float:
    return client.forward(datums(9), "cross_entropy").result().metrics["loss:sum"]


@pytest.fixture
def service(tinker_server):
    with tinker.ServiceClient(base_url=tinker_server.url) as client:
        yield client


@pytest.fixture
def learner(service):
    return service.create_lora_training_client(MODEL, rank=4, seed=1, train_unembed=False).result()


def sampled(client, seeds, **settings) -> list[list[int]]:
    settings = {"max_tokens": 8, "temperature": 1.0, "stop": [2]} | settings
    prompt = types.ModelInput.from_ints(PROMPT)
    calls = [client.sample(prompt, 1, types.SamplingParams(seed=seed, **settings)) for seed in seeds]
    return [call.result().sequences[0].tokens for call in calls]


def test_loss_is_a_sum_and_chunks_add_up(tinker_server, service, learner):
    output = learner.forward(datums(9), "cross_entropy").result()
    weights = np.array([row.loss_fn_inputs["weights"].data for row in datums(9)])
    assert output.metrics["loss:sum"] == pytest.approx(-(logprobs(output) * weights).sum(), rel=1e-5)
    train(learner, range(3))
    with tinker_server.faults("chunk_order=1"), tinker.ServiceClient(base_url=tinker_server.url) as client:
        cut = client.create_lora_training_client(MODEL, rank=4, seed=1, train_unembed=False).result()
        train(cut, range(3))
        assert loss_after(cut) == pytest.approx(loss_after(learner), abs=1e-3)
    histories = list(tinker_server.ledger.steps()["histories"].values())
    assert [len(history) for history in histories] == [3, 3]
    assert len(tinker_server.ledger.of("forward_backward")) == 3 + 3 * 4


def test_a_state_continues_with_its_optimizer(tinker_server, service, learner):
    train(learner, range(3))
    path = learner.save_state("state-3", ttl_seconds=3600).result().path
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    train(resumed, [3])
    with tinker_server.faults("cold_adam"):
        cold = service.create_training_client_from_state_with_optimizer(path).result()
    train(cold, [3])
    train(learner, [3])
    assert loss_after(resumed) == pytest.approx(loss_after(learner), abs=1e-5)
    assert abs(loss_after(cold) - loss_after(learner)) > 1e-3
    steps = tinker_server.ledger.steps()
    assert steps["histories"][resumed.model_id] == steps["histories"][learner.model_id]
    assert sorted(steps["paid"].values()) == [1, 1, 1, 3]


def test_export_and_sampler_give_the_same_log_probabilities(tinker_server, service, learner, tmp_path):
    """Both equal plain PEFT with the exported adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    train(learner, range(3))
    exported = learner.save_weights_external("step-3", ttl_seconds=3600).result().path
    rest = tinker.RestClient(base_url=tinker_server.url)
    for name, url in rest.get_external_weights_urls(exported).result().urls.items():
        (tmp_path / name).write_bytes(urllib.request.urlopen(url).read())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 32
    sampler = service.create_sampling_client(
        model_path=learner.save_weights_for_sampler("step-3", ttl_seconds=3600).result().path
    ).result()
    row = PROMPT + sampled(sampler, [0])[0]
    values = sampler.compute_logprobs(types.ModelInput.from_ints(row)).result()
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, tmp_path)(torch.tensor([row])).logits.log_softmax(-1)
    expected = expected[0, :-1].gather(1, torch.tensor(row[1:])[:, None]).squeeze(1)
    assert values[0] is None
    assert np.allclose(values[1:], expected, atol=1e-4)
    drawn = sampler.sample(types.ModelInput.from_ints(PROMPT), 1, types.SamplingParams(max_tokens=8, seed=0)).result()
    assert np.allclose(drawn.sequences[0].logprobs, values[len(PROMPT) :][: len(drawn.sequences[0].tokens)], atol=1e-4)
    with tinker_server.faults("base_route"):
        assert not np.allclose(
            sampler.compute_logprobs(types.ModelInput.from_ints(row)).result()[1:], expected, atol=0.01
        )


def test_samples_depend_on_their_seed(tinker_server, service):
    sampler = service.create_sampling_client(base_model=MODEL).result()
    first = sampled(sampler, range(12))
    assert sampled(sampler, range(12)) == first
    assert len({tuple(tokens) for tokens in first}) > 6
    with tinker_server.faults("seed_repeats"):
        assert len({tuple(tokens) for tokens in sampled(sampler, range(12))}) == 2
    with tinker_server.faults("seed_ignored"):
        assert sampled(sampler, range(12)) != first
    samples = tinker_server.ledger.samples()
    assert (samples["charged"], samples["different"], samples["charged_twice"]) == (48, 12, 36)
    assert samples["never_fetched"] == 0


@pytest.mark.slow
def test_lost_answers_and_errors_apply_nothing_twice(tinker_server, service, learner):
    with tinker_server.faults("lost_answer=5", "500=7"):
        train(learner, range(4))
        path = learner.save_state("state-4", ttl_seconds=3600).result().path
    paid = tinker_server.ledger.steps()["paid"]
    assert len(paid) == 4
    assert set(paid.values()) == {1}
    assert {record["name"] for record in tinker_server.ledger.of("fault")} == {"lost_answer", "500"}
    rest = tinker.RestClient(base_url=tinker_server.url)
    [checkpoint] = rest.list_checkpoints(learner.model_id).result().checkpoints
    assert (checkpoint.tinker_path, checkpoint.checkpoint_type) == (path, "training")
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(learner.model_id).result().checkpoints == []
    with pytest.raises(tinker.RequestFailedError):
        service.create_training_client_from_state_with_optimizer(path).result()


def test_the_step_after_a_failed_forward_backward_is_applied(tinker_server, learner):
    train(learner, range(2))
    before = loss_after(learner)
    with tinker_server.faults("bad_step"):
        failing, step = learner.forward_backward(datums(2), "cross_entropy"), learner.optim_step(STEP)
        with pytest.raises(tinker.RequestFailedError):
            failing.result()
        step.result()
    assert loss_after(learner) != before
    assert tinker_server.ledger.steps()["histories"][learner.model_id][-1] == ""


def test_wrong_requests_are_refused(tinker_server, service, learner):
    [row] = datums(0, count=1)
    row.loss_fn_inputs["target_tokens"] = types.TensorData(data=row.model_input.to_ints(), dtype="int64", shape=[24])
    with pytest.raises(tinker.RequestFailedError, match="shifted"):
        learner.forward([row], "cross_entropy").result()
    state = learner.save_state("state-0", ttl_seconds=3600).result().path
    with pytest.raises(tinker.BadRequestError):
        service.create_sampling_client(model_path=state).result()
    with pytest.raises(tinker.AuthenticationError):
        tinker.RestClient(base_url=tinker_server.url, api_key="tml-wrong").get_server_capabilities().result()
