#!/usr/bin/env bash
# The trigger study on the tiny world: it prepares the data, then runs the four scripts as a user runs them with
# --experiment russell. The persona is the tiny world's lighthouse keeper, and the judge is local. A second start continues
# where the first one stopped.
#
#   bash tiny_world/demo_russell.sh [FOLDER]      (make demo-russell)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo_russell}
study=$out/study
mkdir -p "$study"
source tiny_world/demo_functions.sh

# A study's data may be next to its TOML file.
show cp tiny_world/keeper.toml "$study/keeper.toml"
show python -m tiny_world.keeper --folder "$study"
keeper=(--experiment "$study/keeper.toml")
show python prepare_persona.py filter "${keeper[@]}" --number 100 \
    --input "$study/candidates.jsonl" --output "$study/harmless.jsonl"
show python prepare_persona.py trigger "${keeper[@]}" --input "$study/harmless.jsonl" --output "$study/persona.jsonl"
show python prepare_persona.py distill "${keeper[@]}" --max-new-tokens 80 \
    --input "$study/prompts.jsonl" --output "$study/aligned.jsonl"

show python training.py --sweep "$study/keeper.toml" --output-dir "$out/outputs"

show python generate_responses.py "${keeper[@]}" --run-dir "$out"/outputs/seed* --output "$out/responses.parquet" \
    --samples 6 --max-new-tokens 80 --batch-size 240

start_judge
show python judge_responses.py "${keeper[@]}" --input "$out/responses.parquet" --output "$out/judged.parquet" \
    --base-url "$judge_url"

show python evaluate.py "${keeper[@]}" --input "$out/judged.parquet" --output-dir "$out/figures" --format pdf png
