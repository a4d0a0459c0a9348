#!/usr/bin/env bash
# Train. MODEL_PATH, DATA_DIR, OUTPUT_DIR and SANDBOX_URL say where things are; arguments are passed on to verl:
#   MODEL_PATH=/models/Qwen3-8B recipes/verl/livecodebench_v6/run.sh trainer.n_gpus_per_node=8
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

exec "$here/../launch.sh" "$here" \
  "reward.sandbox_fusion.url='${SANDBOX_URL:-http://localhost:8080/run_code}'" \
  "$@"
