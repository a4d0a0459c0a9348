#!/usr/bin/env bash
# SDPO with rich feedback on one node of 8 GPUs, which DeepSpeed and vLLM share in turn. Flags behind it win:
#   MODEL_PATH=/models/Qwen3-8B recipes/openrlhf/hybrid_engine/train_sdpo_ray_hybrid_engine.sh --eval.steps 20
# MODEL_PATH, DATA_DIR and OUTPUT_DIR say where things are. RAY_API_SERVER_ADDRESS (http://127.0.0.1:8265) submits the
# run as a job to a Ray that runs already; without it, Ray is started here for this run.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
data="${DATA_DIR:-$PWD/runs/data/openrlhf/gsm8k}"
output="${OUTPUT_DIR:-$PWD/runs/openrlhf_hybrid_engine}"

for split in train test; do
  if [[ ! -f "$data/$split.jsonl" ]]; then
    echo "$data/$split.jsonl is missing: sdpo data gsm8k --host openrlhf --no-think --output $data, or set DATA_DIR." >&2
    exit 1
  fi
done

# Whole rollout batches of 32 questions alone: OpenRLHF would train on a smaller last one too.
questions=$(($(wc -l <"$data/train.jsonl") / 32 * 32))
if ((questions == 0)); then
  echo "$data/train.jsonl has fewer than 32 lines, the questions of one rollout batch." >&2
  exit 1
fi

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
# All GPUs belong to both: while one works, the other's states are out of the way.
devices=(
  --actor.num_nodes 1
  --actor.num_gpus_per_node 8
  --vllm.num_engines 8
  --vllm.tensor_parallel_size 1
  --vllm.gpu_memory_utilization 0.6
  --vllm.enable_sleep
  --ds.enable_sleep
  --train.colocate_all
)
dataset=(
  --data.prompt_dataset "$data/train.jsonl"
  --data.input_key input
  --data.label_key label
  --data.apply_chat_template
  --data.max_samples "$questions"
  # 2048 tokens of prompt and 8192 of response.
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
  # A row at a time: OpenRLHF's pass for old log-probabilities holds float32 logits of whole sequences.
  --rollout.micro_batch_size 1
)
# Eight rollouts an optimizer step, 32 steps a rollout batch, as in section 4 of the paper.
training=(
  --train.batch_size 8
  --train.micro_batch_size 1
  --train.max_epochs 1
  --train.num_episodes 3
  --train.seed 42
  --actor.adam.lr 1e-6
  --actor.adam.betas 0.9 0.999
  --actor.adam.weight_decay 0.01
  --actor.lr_scheduler constant
  --actor.lr_warmup_ratio 0
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
sdpo=(
  --sdpo.preset paper_rich_feedback
  # Rewards and feedback: the right number in the last box, and which written equations do not hold.
  --sdpo.scorer math
  --sdpo.scorer_options '{"check_equations": true}'
)

set -x
exec "${launch[@]}" \
  "${model[@]}" "${devices[@]}" "${dataset[@]}" "${rollouts[@]}" "${training[@]}" "${checkpoints[@]}" "${sdpo[@]}" "$@"
