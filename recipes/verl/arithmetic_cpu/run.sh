#!/usr/bin/env bash
# Train on a CPU, from a clone of the repository. What stock verl lacks for that (platform, engine, rollout server) is test
# support in tests/support/verl_cpu, and no part of what is installed. OUTPUT_DIR says where the log goes; arguments are passed on:
#   recipes/verl/arithmetic_cpu/run.sh trainer.n_gpus_per_node=2
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
name="$(basename "$here")"
output="${OUTPUT_DIR:-$PWD/runs/$name}"

if [[ ! -d "$root/tests/support/verl_cpu" ]]; then
  echo "$root/tests/support/verl_cpu is missing: this recipe runs from a clone of the repository alone." >&2
  exit 1
fi
export PYTHONPATH="$root:$root/adapters:$root/tests/support${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-$root/.venvs/verl/bin/python}"
if ! command -v "$python" >/dev/null; then
  echo "$python is missing: python3.11 $root/scripts/environment.py verl makes it, or set PYTHON to one with sdpo-plugins[verl]." >&2
  exit 1
fi

echo "CPU support for tests and demos is on: float32, gloo, and a rollout server of plain transformers." >&2
"$python" -m verl_cpu.data sums "$output/data"
exec "$python" -m verl_cpu.run --config-path "$here" --config-name "$name" --log "$output/log.txt" \
  "actor_rollout_ref.model.path='$root/sdpo_plugins/embedded/checkpoint'" \
  "data.train_files='$output/data/sums_train.parquet'" \
  "data.val_files='$output/data/sums_evaluation.parquet'" \
  "reward.custom_reward_function.path='$root/tests/support/verl_cpu/reward.py'" \
  "trainer.default_local_dir='$output/checkpoints'" \
  "$@"
