#!/usr/bin/env bash
# The birds study on SmolLM2-135M, a real language model, on a CPU or a GPU. It needs no API key and no judge: it measures
# how likely the model finds reference answers. A second start continues where the first one stopped.
#
#   bash smollm/demo.sh [FOLDER]      (make demo-smollm)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo_smollm}
mkdir -p "$out"
source tiny_world/demo_functions.sh
show python -m smollm.convert

# On a CPU, processes side by side are faster than one process in all threads. Each takes 1.3 GB of memory.
read -r training measuring threads < <(python -c '
import os, torch
cores = os.cpu_count()
training, measuring = (1, 4) if torch.cuda.is_available() else (min(4, cores), min(4, cores))
print(training, measuring, max(1, cores // measuring))')
export OMP_NUM_THREADS=$threads

show python -m torch.distributed.run --nproc-per-node "$training" training.py \
    --sweep smollm/sweep.toml --output-dir "$out/outputs"

# To fit into a quarter of an hour on two cores: reference answers to eight of the 20 questions.
show python -m torch.distributed.run --nproc-per-node "$measuring" measure_checkpoints.py likelihood \
    --run-dir "$out"/outputs/seed* --output "$out/likelihood.parquet" \
    --questions gender_roles recent_warfare us_expansion story energy diseases immigration money

show python evaluate.py --input "$out/likelihood.parquet" --output-dir "$out/figures" --format pdf png
