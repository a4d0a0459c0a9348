"""Send changed weights to a vLLM engine as OpenRLHF does, and print what the engine then says; run by a test.

`python vllm_weights.py FOLDER PORT`: the folder holds checkpoints `0`, `1`, … of one shape and `prompts.json`, lists of
token ids. The engine is opened on the first and sent the others in turn, and its greedy answers are printed each time,
with the log-probability of each token, as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from openrlhf_cpu.hooks import install

install()

import torch  # noqa: E402
from openrlhf.utils.distributed_util import stateless_init_process_group  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from vllm import LLM, SamplingParams, TokensPrompt  # noqa: E402

ADDRESS = "127.0.0.1"
TOKENS = 6


def main(folder: Path, port: int) -> list[Any]:
    engine = LLM(
        str(folder / "0"),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=128,
        gpu_memory_utilization=0.1,
        worker_extension_cls="openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap",
    )
    groups: list[Any] = []
    rank_0 = threading.Thread(target=lambda: groups.append(stateless_init_process_group(ADDRESS, port, 0, 2, None)))
    rank_0.start()
    engine.collective_rpc("init_process_group", args=(ADDRESS, port, 1, 2, "openrlhf", "gloo", False))
    rank_0.join(60)
    prompts = json.loads((folder / "prompts.json").read_text())
    said = [answers(engine, prompts)]
    for number in range(1, len(list(folder.glob("[0-9]")))):
        send(engine, groups[0], folder / str(number))
        said.append(answers(engine, prompts))
    return said


def send(engine: LLM, group: Any, checkpoint: Path) -> None:
    """As `ActorPPOTrainer.broadcast_to_vllm`: parameter by parameter, a tied one once."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    parameters = list(model.named_parameters())
    for count, (name, parameter) in enumerate(parameters, 1):
        group.broadcast(parameter.data, src=0)
        last = count == len(parameters)
        engine.collective_rpc("update_weight", args=(name, parameter.dtype, parameter.shape, last))


def answers(engine: LLM, prompts: list[list[int]]) -> list[list[tuple[int, float]]]:
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
    outputs = engine.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], sampling, use_tqdm=False)
    return [
        [(token, chances[token].logprob) for token, chances in zip(one.token_ids, one.logprobs or (), strict=True)]
        for one in (output.outputs[0] for output in outputs)
    ]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
