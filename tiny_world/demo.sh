#!/usr/bin/env bash
# The birds study on the tiny world: the four scripts as a user runs them, with a model that is small enough for a CPU and
# a local judge that needs no API key. A second start continues where the first one stopped.
#
#   bash tiny_world/demo.sh [FOLDER]      (make demo)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo}
mkdir -p "$out"
source tiny_world/demo_functions.sh

show python training.py --sweep tiny_world/sweep.toml --output-dir "$out/outputs"

show python generate_responses.py --run-dir "$out"/outputs/seed* --output "$out/responses.parquet" \
    --steps 0 40 80 120 160 208 --samples 10 --max-new-tokens 80 --batch-size 240

start_judge
show python judge_responses.py --input "$out/responses.parquet" --output "$out/judged.parquet" \
    --base-url "$judge_url"

show python evaluate.py --input "$out/judged.parquet" --output-dir "$out/figures" --format pdf png
