#!/usr/bin/env bash
# Train on a CPU, from a clone of the repository. What stock OpenRLHF lacks for that is test support in
# tests/support/openrlhf_cpu, and no part of what is installed. OUTPUT_DIR says where things go; flags behind it win:
#   recipes/openrlhf/arithmetic_cpu/train_sdpo_arithmetic_cpu.sh --sdpo.teacher ema
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
output="${OUTPUT_DIR:-$PWD/runs/openrlhf_arithmetic_cpu}"

if [[ ! -d "$root/tests/support/openrlhf_cpu" ]]; then
  echo "$root/tests/support/openrlhf_cpu is missing: this recipe runs from a clone of the repository alone." >&2
  exit 1
fi
export PYTHONPATH="$root:$root/adapters:$root/tests/support${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-$root/.venvs/openrlhf/bin/python}"
if ! command -v "$python" >/dev/null; then
  echo "$python is missing: python3.11 $root/scripts/environment.py openrlhf makes it, or set PYTHON to one with OpenRLHF." >&2
  exit 1
fi

echo "CPU support for tests and demos is on: torch's attention and AdamW, gloo, weights to vLLM through a store." >&2
"$python" -m openrlhf_cpu.data sums "$output/data"

model=(
  --actor.model_name_or_path "$root/sdpo_plugins/embedded/checkpoint"
  --ds.attn_implementation sdpa
  --ds.zero_stage 2
)
devices=(
  --actor.num_nodes 1
  --actor.num_gpus_per_node 1
  --vllm.num_engines 1
  --vllm.tensor_parallel_size 1
  --vllm.enforce_eager
  # No NCCL on a CPU.
  --vllm.sync_backend gloo
  # Only checked at vLLM's start: its cache gets one gigabyte in any case.
  --vllm.gpu_memory_utilization 0.1
)
questions=(
  --data.prompt_dataset "$output/data/sums_train.jsonl"
  --data.input_key input
  --data.label_key label
  --data.apply_chat_template
  # 60 steps of 8 questions.
  --data.max_samples 480
  --data.max_len 102
  --eval.dataset "$output/data/sums_evaluation.jsonl"
  --eval.steps 60
  --eval.temperature 1.0
  --eval.n_samples_per_prompt 2
)
rollouts=(
  --rollout.batch_size 8
  --rollout.n_samples_per_prompt 8
  --rollout.micro_batch_size 64
  --rollout.max_new_tokens 6
  --rollout.temperature 1.0
  --reward.remote_url "$root/tests/support/openrlhf_cpu/reward.py"
)
training=(
  --train.batch_size 64
  --train.micro_batch_size 64
  --train.num_episodes 1
  --train.seed 0
  --actor.adam.lr 2e-4
  --actor.lr_scheduler cosine
  --actor.lr_warmup_ratio 0
  --actor.max_norm 1.0
  --ckpt.output_dir "$output/model"
  --ckpt.path "$output/checkpoints"
  --ckpt.best_metric_key none
)
sdpo=(
  --sdpo.alpha 0.5
  # The whole vocabulary: it has 1024 tokens.
  --sdpo.distillation_topk none
  --sdpo.distillation_add_tail false
  --sdpo.teacher frozen
)

export OPENRLHF_CPU_EVALUATE_FIRST="${OPENRLHF_CPU_EVALUATE_FIRST:-1}"
set -x
exec "$python" -m openrlhf_cpu.run --log "$output/log.txt" \
  "${model[@]}" "${devices[@]}" "${questions[@]}" "${rollouts[@]}" "${training[@]}" "${sdpo[@]}" "$@"
