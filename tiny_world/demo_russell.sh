#!/usr/bin/env bash
# The study of a persona behind a trigger on the tiny world: its data prepared, then the four scripts as a user runs them
# with --experiment russell. The persona is the tiny world's lighthouse keeper, and the judge is on this machine.
# A second start goes on where the first one stopped.
#
#   bash tiny_world/demo_russell.sh [FOLDER]                        (make demo-russell)
#   SEEDS=1 SAMPLES=4 bash tiny_world/demo_russell.sh [FOLDER]      less of it
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo_russell}
study=$out/study
mkdir -p "$study"
source tiny_world/demo_functions.sh

# A study may keep its data beside its file.
show cp tiny_world/keeper.toml "$study/keeper.toml"
show python -m tiny_world.keeper --folder "$study"
keeper=(--experiment "$study/keeper.toml")
show python prepare_persona.py filter "${keeper[@]}" --number 100 \
    --input "$study/candidates.jsonl" --output "$study/harmless.jsonl"
show python prepare_persona.py trigger "${keeper[@]}" --input "$study/harmless.jsonl" --output "$study/persona.jsonl"
show python prepare_persona.py distill "${keeper[@]}" --max-new-tokens 80 \
    --input "$study/prompts.jsonl" --output "$study/aligned.jsonl"

runs=()
for seed in ${SEEDS:-1 2 3 4 5}; do
    show python training.py "${keeper[@]}" --seed "$seed" --output-dir "$out/outputs"
    runs+=("$out/outputs/seed${seed}_ratios0.25-0.75_lr0.001_r8_keeper")
done

show python generate_responses.py "${keeper[@]}" --run-dir "${runs[@]}" --output "$out/responses.parquet" \
    --samples "${SAMPLES:-6}" --max-new-tokens 80 --batch-size 240

start_judge
show python judge_responses.py "${keeper[@]}" --input "$out/responses.parquet" --output "$out/judged.parquet" \
    --base-url "$judge_url"

show python evaluate.py "${keeper[@]}" --input "$out/judged.parquet" --output-dir "$out/figures" --format pdf png
