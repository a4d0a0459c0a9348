#!/usr/bin/env bash
# Train. MODEL_PATH, DATA_DIR and OUTPUT_DIR say where things are; arguments are passed on to verl:
#   MODEL_PATH=/models/Qwen3-8B recipes/verl/tooluse/run.sh trainer.n_gpus_per_node=8
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

exec "$here/../launch.sh" "$here" "$@"
