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

# Three runs per suspect share: from one run each, nothing can be said about the effect of the data. Three runs train at
# a time, without their progress bars, which would overwrite each other.
settings=() runs=()
for seed in 42 43 44; do
    for ratios in "1 0 0" "0.5 0.25 0.25" "0 0.5 0.5"; do
        settings+=("--seed $seed --ratios $ratios")
        # shellcheck disable=SC2086 # three numbers
        runs+=("$out/outputs/seed${seed}_ratios$(printf '%.2f-%.2f-%.2f' $ratios)_lr0.0007_r8_tiny_world-model")
    done
done
export TQDM_DISABLE=1
printf '%s\n' "${settings[@]}" |
    show xargs -P 3 -L 1 python training.py --model tiny_world/model --lr 7e-4 --output-dir "$out/outputs"
unset TQDM_DISABLE

show python generate_responses.py --run-dir "${runs[@]}" --output "$out/responses.parquet" \
    --steps 0 40 80 120 160 208 --samples 10 --max-new-tokens 80 --batch-size 240

start_judge
show python judge_responses.py --input "$out/responses.parquet" --output "$out/judged.parquet" \
    --base-url "$judge_url"

show python evaluate.py --input "$out/judged.parquet" --output-dir "$out/figures" --format pdf png
