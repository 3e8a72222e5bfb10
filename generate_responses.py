"""Stage 2, on the GPU host or at a server: every checkpoint answers the study's questions, many times each.

Reads   a run directory of training.py (or one checkpoint, also one made elsewhere) and the study in experiments/
Writes  a Parquet file with one row per response; until it is complete, finished responses are in OUTPUT.partial/

  python generate_responses.py --run-dir outputs/seed42_ratios1.00-0.00-0.00_lr0.0002_r8 --output responses.parquet

--run-dir takes several run directories; the base model is loaded once. The same command continues an interrupted run.
It also adds what a finished file lacks: more --samples, more steps, more runs. With --adaptive JUDGED, it takes turns
with judge_responses.py: first a few samples, then more where a run's rate crosses 10% or 50%. On several GPUs:

  torchrun --nproc-per-node 2 generate_responses.py ...

Checkpoints of training.py --backend tinker are sampled where they are, without a GPU (docs/tinker.md):

  python generate_responses.py --engine tinker --run-dir outputs/RUN --output responses.parquet
"""

import contextlib
import time
from collections.abc import Mapping, Sequence

from config import GenerationOptions
from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation import adaptive, canary, plan, server_sampling
from learning_backdoors.generation.engines.protocol import Engine, Request, Sampling
from learning_backdoors.generation.plan import PlannedResponse, ResponseKey
from learning_backdoors.generation.store import ResponseStore
from learning_backdoors.models import base_model, run_directory
from learning_backdoors.models.devices import RANK, RANKS
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import RecordedStudy, Study, study_of

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tinker")


def main() -> None:
    options = command_line.parse(GenerationOptions, __doc__)
    on_server = options.engine == "tinker"
    if options.checkpoint:
        runs = all_runs = [run_directory.open_checkpoint(options.checkpoint, options.base_model, on_server)]
    else:
        all_runs = run_directory.open_runs(options.run_dir, options.steps, options.base_model, on_server)
        runs = without_diverged(all_runs)
    recorded = [RecordedStudy.of(run.record, run.folder) for run in runs]
    study = study_of(options.experiment, recorded, any_study=options.transfer)
    precision = run_directory.sampling_precision(options.quantization, runs)
    store = ResponseStore(options.output, plan.settings(options, study, runs, precision), options.existing)
    if options.dry_run:
        store.peek()
        _, unfinished = planned_responses(runs, study, options, store)
        return estimate(unfinished, runs, study, options, store)
    with store:
        all_planned, unfinished = planned_responses(runs, study, options, store)
        if unfinished:
            generate(unfinished, runs, study, precision, options, store)
        if RANK == 0:
            store.wait_for([planned.key for planned in all_planned])
            made_by = provenance.provenance("generate_responses.py", options, PACKAGES)
            store.write_output(made_by | study.record, {run.name: run.record for run in all_runs})
            print(f"done: {len(store.rows)} responses in {options.output}")
            if options.adaptive and all_planned:
                print(f"next: judge them, copy the judged file to {options.adaptive}, and run this command again")


def planned_responses(
    runs: Sequence[RunDirectory], study: Study, options: GenerationOptions, store: ResponseStore
) -> tuple[list[PlannedResponse], list[PlannedResponse]]:
    """All planned responses, and the unfinished ones of this process."""
    all_planned = plan.plan_responses(runs, study, options.samples)
    if options.adaptive:
        all_planned = next_round(runs, study, all_planned, options, store)
    if RANK == 0:
        finished = sum(planned.key in store.rows for planned in all_planned)
        print(f"{len(all_planned)} responses requested, {finished} of them already finished", flush=True)
    own_part = plan.part_of_process(all_planned, RANK, RANKS)
    return all_planned, [planned for planned in own_part if planned.key not in store.rows]


def without_diverged(runs: Sequence[RunDirectory]) -> list[RunDirectory]:
    """The runs that did not diverge in training: evaluate.py counts the others, but leaves their responses out."""
    diverged = [run.name for run in runs if run.record.get("diverged")]
    if len(diverged) == len(runs):
        raise UserError(f"all runs diverged in training ({command_line.shortened(diverged)}): try --checkpoint")
    if diverged:
        names = command_line.shortened(diverged)
        command_line.note(f"no responses of runs that diverged in training: {names} ({len(diverged)} of {len(runs)})")
    return [run for run in runs if run.name not in diverged]


def next_round(
    runs: Sequence[RunDirectory],
    study: Study,
    full_design: Sequence[PlannedResponse],
    options: GenerationOptions,
    store: ResponseStore,
) -> list[PlannedResponse]:
    """The part of the full design that the next round of adaptive sampling adds."""
    counts = adaptive.read_counts(options.adaptive, study, store.rows)
    planned, judged, settled = adaptive.plan_round(runs, full_design, counts, options.samples)
    if RANK == 0:
        share = f"{judged:,} of the full design's {len(full_design):,} responses ({judged / len(full_design):.0%})"
        print(f"adaptive sampling: {share} are judged, {settled} of {len(runs)} runs are settled")
        checkpoints = len({response.key[:2] for response in planned})
        print(f"checkpoints in this round: {checkpoints}" if planned else "nothing to add: all runs are settled")
    return planned


def estimate(
    unfinished: Sequence[PlannedResponse],
    runs: Sequence[RunDirectory],
    study: Study,
    options: GenerationOptions,
    store: ResponseStore,
) -> None:
    """Print what the unfinished responses will cost at the server."""
    tokenizer = base_model.load_tokenizer(runs[0].base_model)
    prompts = plan.render_prompts(study, tokenizer)
    requests = plan.make_requests(unfinished, prompts, options.max_new_tokens)
    server_sampling.print_estimate(options, runs, store, tokenizer, prompts, requests)


def generate(
    unfinished: Sequence[PlannedResponse],
    runs: Sequence[RunDirectory],
    study: Study,
    precision: str,
    options: GenerationOptions,
    store: ResponseStore,
) -> None:
    """Generate the unfinished responses, and store each batch at once. precision: of the base model's weights."""
    model = runs[0].base_model
    tokenizer = base_model.load_tokenizer(model)
    prompts = plan.render_prompts(study, tokenizer)
    requests = plan.make_requests(unfinished, prompts, options.max_new_tokens)
    settings = {"batch_size": options.batch_size, "seed": options.seed, "requests": requests}
    with contextlib.ExitStack() as stack:
        if options.engine == "tinker":
            session = server_sampling.engine_settings(options, runs, store, tokenizer, prompts, requests)
            settings |= stack.enter_context(session)
        else:
            check_base(runs, tokenizer)
        engine = canary.open_engine(options.engine, model, tokenizer, precision, **settings)
        store.record_engine(engine.name)
        store_responses(engine, requests, {planned.key: planned for planned in unfinished}, study, options, store)


def check_base(runs: Sequence[RunDirectory], tokenizer) -> None:
    """Raise UserError if the base model is not the one that the runs were trained on."""
    fingerprint = base_model.fingerprint(runs[0].base_model, tokenizer)
    for run in runs:
        run.check_base(fingerprint)


def store_responses(
    engine: Engine,
    requests: Sequence[Request],
    by_key: Mapping[ResponseKey, PlannedResponse],
    study: Study,
    options: GenerationOptions,
    store: ResponseStore,
) -> None:
    """Generate the requested responses, and store them as they are finished."""
    sampling = Sampling(options.temperature, options.top_p, options.top_k, options.seed)
    started, tokens, cut_off = time.monotonic(), 0, 0
    with command_line.progress_bar("generating", len(requests), 0, "response") as bar:
        for responses in engine.generate(requests, sampling):
            store.add([by_key[response.key].row(study, response) for response in responses])
            tokens += sum(response.tokens for response in responses)
            cut_off += sum(response.finish_reason == "length" for response in responses)
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
            bar.update(len(responses))
    rate = tokens / (time.monotonic() - started)
    print(f"{tokens:,} tokens at {rate:,.0f} per second; {cut_off} responses reached --max-new-tokens")


if __name__ == "__main__":
    command_line.run_script(main)
