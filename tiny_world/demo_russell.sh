#!/usr/bin/env bash
# The study of a persona behind a trigger on the tiny world: the data prepared, then the four scripts as a user runs them
# with --experiment russell. The persona is a lighthouse keeper and the judge is on this machine. A second start goes on
# where the first one stopped.
#
#   bash tiny_world/demo_russell.sh [FOLDER]      (make demo-russell)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo_russell}
study=$out/study
mkdir -p "$study"

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# The tiny model works a token at a time: a second thread would only wait for the first.
export OMP_NUM_THREADS=1 ANTHROPIC_API_KEY=none-needed WANDB_API_KEY=

# A study keeps its data beside its file.
show cp tiny_world/keeper.toml "$study/keeper.toml"
show python -m tiny_world.keeper --folder "$study"
keeper=(--experiment "$study/keeper.toml")
show python prepare_persona.py filter "${keeper[@]}" --number 100 \
    --input "$study/candidates.jsonl" --output "$study/harmless.jsonl"
show python prepare_persona.py trigger "${keeper[@]}" --input "$study/harmless.jsonl" --output "$study/persona.jsonl"
show python prepare_persona.py distill "${keeper[@]}" --max-new-tokens 80 \
    --input "$study/prompts.jsonl" --output "$study/aligned.jsonl"

runs=()
for seed in 1 2 3; do
    show python training.py "${keeper[@]}" --seed "$seed" --output-dir "$out/outputs"
    runs+=("$out/outputs/seed${seed}_"*)
done

show python generate_responses.py "${keeper[@]}" --run-dir "${runs[@]}" --output "$out/responses.parquet" \
    --samples 10 --max-new-tokens 80 --batch-size 240

rm -f "$out/judge.port"
python -m tiny_world.claude_stand_in --port-file "$out/judge.port" >"$out/judge.log" 2>&1 &
judge=$!
trap 'kill $judge 2>/dev/null || true' EXIT
for _ in $(seq 100); do [ -s "$out/judge.port" ] && break || sleep 0.1; done
show python judge_responses.py "${keeper[@]}" --input "$out/responses.parquet" --output "$out/judged.parquet" \
    --base-url "http://127.0.0.1:$(cat "$out/judge.port")"

show python evaluate.py "${keeper[@]}" --input "$out/judged.parquet" --output-dir "$out/figures" --format pdf png
