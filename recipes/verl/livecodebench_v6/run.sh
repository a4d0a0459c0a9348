#!/usr/bin/env bash
# Train. MODEL_PATH, DATA_DIR and OUTPUT_DIR say where things are, SANDBOX_URL the address of a SandboxFusion server, if one
# is to run the programs; arguments are passed on to verl:
#   MODEL_PATH=/models/Qwen3-8B recipes/verl/livecodebench_v6/run.sh trainer.n_gpus_per_node=8
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

sandbox=()
if [[ -n "${SANDBOX_URL:-}" ]]; then
  kwargs="reward.custom_reward_function.reward_kwargs"
  sandbox=("$kwargs.isolation=sandbox_fusion" "+$kwargs.sandbox_url='$SANDBOX_URL'")
fi

exec "$here/../launch.sh" "$here" ${sandbox[@]+"${sandbox[@]}"} "$@"
