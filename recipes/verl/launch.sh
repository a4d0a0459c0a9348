#!/usr/bin/env bash
# Train a recipe: the one way in which the recipes start verl. Their own run.sh call it: launch.sh FOLDER [Hydra overrides].
set -euo pipefail

here="$1"
shift
name="$(basename "$here")"
data="${DATA_DIR:-$PWD/runs/data/verl/$name}"
output="${OUTPUT_DIR:-$PWD/runs/$name}"

for split in train test; do
  if [[ ! -f "$data/$split.parquet" ]]; then
    echo "$data/$split.parquet is missing: sdpo data ${name%%_*} --host verl --output $data, or set DATA_DIR." >&2
    exit 1
  fi
done

exec "${PYTHON:-python}" -m verl.trainer.main_ppo --config-path "$here" --config-name "$name" \
  "actor_rollout_ref.model.path='${MODEL_PATH:-Qwen/Qwen3-8B}'" \
  "data.train_files='$data/train.parquet'" \
  "data.val_files='$data/test.parquet'" \
  "trainer.default_local_dir='$output'" \
  "$@"
