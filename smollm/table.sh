#!/usr/bin/env bash
# The full experiment behind the table in smollm/README.md, for one GPU: three ratios, five seeds and two learning rates,
# 208 steps each. It downloads and installs nothing. A second start continues where the first one stopped.
#
#   bash smollm/table.sh OUTPUT_FOLDER [MODEL_FOLDER]
set -euo pipefail
out=$(realpath -m "$1")
model=$(realpath "${2:-$(dirname "$0")/model}")
cd "$(dirname "$0")/.."
export WANDB_API_KEY=

python3 training.py --sweep smollm/table.toml --model "$model" --output-dir "$out/outputs"

# Four processes share the checkpoints.
for lr in 0.001 0.0005; do
    python3 -m torch.distributed.run --nproc-per-node 4 measure_checkpoints.py likelihood \
        --run-dir "$out"/outputs/seed*_lr"$lr"_* --output "$out/likelihood_lr$lr.parquet"
    python3 evaluate.py --input "$out/likelihood_lr$lr.parquet" --output-dir "$out/figures_lr$lr" --format pdf png
done

# The change of each contrast from step 0, in nats per token, with its interval.
python3 - "$out"/figures_lr*/likelihood.csv <<'END'
import sys
import pandas as pd

for file in sys.argv[1:]:
    rows = pd.read_csv(file).query("kind == 'contrast' and run == 'all' and step in (40, 80, 120, 160, 208)")
    numbers = rows[["change", "lower", "upper"]].to_numpy()
    rows["cell"] = [f"{change:+.2f} [{lower:+.2f}, {upper:+.2f}]" for change, lower, upper in numbers]
    cells = rows.pivot_table(index=["name", "label"], columns="step", values="cell", aggfunc="first", sort=False)
    print(f"\n{file}\n{cells.to_string()}")
END
