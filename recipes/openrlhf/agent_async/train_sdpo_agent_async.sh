#!/usr/bin/env bash
# SDPO with an agent of several turns, sampling beside training: 4 GPUs for DeepSpeed, 4 for vLLM. Flags behind it win:
#   MODEL_PATH=/models/Qwen3-8B recipes/openrlhf/agent_async/train_sdpo_agent_async.sh --sdpo.alpha 1.0
# MODEL_PATH, DATA_DIR and OUTPUT_DIR say where things are. RAY_API_SERVER_ADDRESS (http://127.0.0.1:8265) submits the
# run as a job to a Ray that runs already; without it, Ray is started here for this run.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
data="${DATA_DIR:-$PWD/runs/data/openrlhf/gsm8k_calculator}"
output="${OUTPUT_DIR:-$PWD/runs/openrlhf_agent_async}"
episodes=3

for split in train test; do
  if [[ ! -f "$data/$split.jsonl" ]]; then
    echo "$data/$split.jsonl is missing: sdpo data gsm8k --host openrlhf --no-think --calculator --output $data, or set DATA_DIR." >&2
    exit 1
  fi
done

# Whole rollout batches of 32 questions alone: OpenRLHF would train on a smaller last one too.
batches=$(($(wc -l <"$data/train.jsonl") / 32))
if ((batches == 0)); then
  echo "$data/train.jsonl has fewer than 32 lines, the questions of one rollout batch." >&2
  exit 1
fi
# The paper warms up for 10 optimizer steps; OpenRLHF takes a share of all steps, and rounds up.
warmup="$(LC_ALL=C awk -v steps="$((batches * episodes))" 'BEGIN { printf "%.8f", (steps > 10 ? 9.5 / steps : 1) }')"

launch=("${PYTHON:-python3}" -m sdpo_openrlhf.train)
if [[ -n "${RAY_API_SERVER_ADDRESS:-}" ]]; then
  launch=(ray job submit --address "$RAY_API_SERVER_ADDRESS" -- "${launch[@]}")
fi

model=(
  --actor.model_name_or_path "${MODEL_PATH:-Qwen/Qwen3-8B}"
  --actor.gradient_checkpointing_enable
  --ds.zero_stage 3
  --ds.packing_samples
  --ds.attn_implementation flash_attention_2
)
devices=(
  --actor.num_nodes 1
  --actor.num_gpus_per_node 4
  --vllm.num_engines 4
  --vllm.tensor_parallel_size 1
  --vllm.gpu_memory_utilization 0.9
  # Each turn begins with the whole conversation so far.
  --vllm.enable_prefix_caching
  --train.async_enable
  --train.async_queue_size 1
)
dataset=(
  --data.prompt_dataset "$data/train.jsonl"
  --data.input_key input
  --data.label_key label
  --data.apply_chat_template
  --data.max_samples "$((batches * 32))"
  # The whole conversation: an agent's turns share what the prompt leaves.
  --data.max_len 10240
  --eval.dataset "$data/test.jsonl"
  --eval.steps 10
  --eval.temperature 0.6
  --eval.n_samples_per_prompt 4
)
rollouts=(
  --rollout.batch_size 32
  --rollout.n_samples_per_prompt 8
  --rollout.max_new_tokens 8192
  --rollout.temperature 1.0
  --train.agent_func_path "$here/agent.py"
)
# One optimizer step a rollout batch: rollouts are a step old, not 32. Micro-batches by tokens.
training=(
  --train.batch_size 256
  --train.dynamic_batch_enable
  --train.max_tokens_per_gpu 10240
  --rollout.max_tokens_per_gpu 10240
  --train.max_epochs 1
  --train.num_episodes "$episodes"
  --train.seed 42
  --actor.adam.lr 1e-5
  --actor.adam.betas 0.9 0.999
  --actor.adam.weight_decay 0.01
  --actor.lr_scheduler constant_with_warmup
  --actor.lr_warmup_ratio "$warmup"
  --actor.max_norm 1.0
)
# Checkpoints hold the teacher; a run that is started again goes on with it.
checkpoints=(
  --ckpt.output_dir "$output/model"
  --ckpt.path "$output/checkpoints"
  --ckpt.save_steps 20
  # The oldest goes before a new one is whole: never 1.
  --ckpt.max_num 2
  --ckpt.best_metric_key none
  --ckpt.load_enable
  --logger.tensorboard_dir "$output/tensorboard"
)
# The paper's objective without feedback, and what this environment says on top.
sdpo=(
  --sdpo.preset paper
  --sdpo.include_environment_feedback true
)

set -x
exec "${launch[@]}" \
  "${model[@]}" "${devices[@]}" "${dataset[@]}" "${rollouts[@]}" "${training[@]}" "${checkpoints[@]}" "${sdpo[@]}" "$@"
