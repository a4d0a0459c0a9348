#!/usr/bin/env bash
# Train. MODEL_PATH, DATA_DIR and OUTPUT_DIR say where things are; arguments are passed on to verl:
#   MODEL_PATH=/models/Qwen3-8B recipes/verl/sciknoweval_chemistry/run.sh trainer.n_gpus_per_node=8
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name="$(basename "$here")"
data="${DATA_DIR:-$PWD/runs/data/$name}"
output="${OUTPUT_DIR:-$PWD/runs/$name}"

for split in train test; do
  if [[ ! -f "$data/$split.parquet" ]]; then
    echo "$data/$split.parquet is missing: python $here/prepare.py --output $data, or set DATA_DIR." >&2
    exit 1
  fi
done

exec "${PYTHON:-python}" -m verl.trainer.main_ppo --config-path "$here" --config-name "$name" \
  "actor_rollout_ref.model.path='${MODEL_PATH:-Qwen/Qwen3-8B}'" \
  "data.train_files='$data/train.parquet'" \
  "data.val_files='$data/test.parquet'" \
  "reward.custom_reward_function.path='$here/reward.py'" \
  "trainer.default_local_dir='$output'" \
  "$@"
