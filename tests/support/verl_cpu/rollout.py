"""A rollout server on plain transformers, `hf_cpu`, and what hands it the trainer's weights.

Requests that arrive together are generated together. What is sampled depends on the seed, the step of the weights, the
prompt and how often that prompt was asked before with these weights, and on nothing else: neither on the order of
requests of different prompts nor on how they are grouped.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

__all__ = ["NAME", "HFReplica", "HFServer", "HFServerAdapter", "Request", "sample"]

NAME = "hf_cpu"

# Requests are waited for as long as each of these spans brings a new one.
_QUIET_SECONDS = 0.01
_LARGEST_BATCH = 512


@dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Args:
        prompt: Token ids.
        max_tokens: Longest answer.
        temperature: 0 is greedy.
        top_k: Number of tokens to choose from; -1 or 0: all.
        top_p: Probability mass to choose from.
        seed: Of this answer's draws.
    """

    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int = 0


def sample(model: Any, requests: Sequence[Request], end: frozenset[int]) -> list[tuple[list[int], list[float]]]:
    """Answer requests as one batch.

    Args:
        model: A causal language model of transformers.
        requests: The prompts.
        end: Token ids that end an answer; the ending one is part of it.

    Returns:
        For each request the answer's token ids and their log-probabilities under the policy at its temperature,
        before top-k and top-p: what a trainer computes from the same tokens.
    """
    width, rows = max(len(request.prompt) for request in requests), len(requests)
    ids, mask = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.long)
    for row, request in enumerate(requests):
        ids[row, width - len(request.prompt) :] = torch.tensor(list(request.prompt))
        mask[row, width - len(request.prompt) :] = 1
    longest = max(request.max_tokens for request in requests)
    draws = torch.stack(
        [torch.rand(longest, generator=torch.Generator().manual_seed(r.seed), dtype=torch.float64) for r in requests]
    )
    answers: list[tuple[list[int], list[float]]] = [([], []) for _ in requests]
    open_rows = list(range(rows))
    cache: Any = None
    with torch.no_grad():
        for step in range(longest):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            tokens, log_probs = _draw(output.logits[:, -1].double(), requests, draws[:, step])
            for row in open_rows:
                answers[row][0].append(int(tokens[row]))
                answers[row][1].append(float(log_probs[row]))
            open_rows = [
                row
                for row in open_rows
                if answers[row][0][-1] not in end and len(answers[row][0]) < requests[row].max_tokens
            ]
            if not open_rows:
                break
            ids = tokens[:, None]
            mask = torch.cat([mask, torch.ones(rows, 1, dtype=torch.long)], 1)
    return answers


def _draw(logits: Tensor, requests: Sequence[Request], draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row by the inverse of the cumulative distribution; return tokens and log-probabilities."""
    temperatures = torch.tensor([request.temperature for request in requests], dtype=torch.float64)
    greedy = temperatures <= 0
    log_probs = torch.log_softmax(logits / torch.where(greedy, 1.0, temperatures)[:, None], -1)
    allowed = log_probs.clone()
    for row, request in enumerate(requests):
        if 0 < request.top_k < allowed.shape[1]:
            allowed[row, allowed[row] < allowed[row].topk(request.top_k).values[-1]] = -torch.inf
        if request.top_p < 1:
            ordered, order = allowed[row].softmax(-1).sort(descending=True)
            allowed[row, order[ordered.cumsum(0) - ordered > request.top_p]] = -torch.inf
    cumulative = allowed.softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)[:, 0]
    tokens = torch.where(greedy, log_probs.argmax(-1), drawn.clamp(max=logits.shape[1] - 1))
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0]


class HFServer:
    """The server, an actor of Ray.

    Args:
        path: Folder of the model.
        config: verl's rollout configuration.
        seed: Of everything this server samples.
    """

    def __init__(self, path: str, config: Any, seed: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        # In float32 an answer's log-probabilities would depend on those that it is generated with, by the last digits:
        # how requests fall together differs from run to run, and one seed has to give one run.
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
        end = self._model.generation_config.eos_token_id
        self._end = frozenset([end] if isinstance(end, int) else end or [])
        self._config, self._seed = config, seed
        self._global_steps: int | None = 0
        self._asked: Counter[tuple[int, ...]] = Counter()
        self._waiting: list[tuple[Request, asyncio.Future[TokenOutput]]] = []
        self._generating: asyncio.Task[None] | None = None
        self._weights = asyncio.Lock()

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], sampling_params: Mapping[str, Any], **_: Any
    ) -> TokenOutput:
        """Answer one prompt, together with those that arrive at the same time.

        Args:
            request_id: Not used.
            prompt_ids: The prompt.
            sampling_params: `temperature`, `top_k`, `top_p`, `max_tokens`; others are not known here.

        Returns:
            Answer, log-probabilities and the step of the weights.
        """
        prompt = tuple(int(token) for token in prompt_ids)
        settings = self._config
        room = settings.prompt_length + settings.response_length - len(prompt)
        limit = sampling_params.get("max_tokens") or min(settings.response_length, room)
        request = Request(
            prompt=prompt,
            max_tokens=max(1, limit),
            temperature=sampling_params.get("temperature", 1.0),
            top_k=sampling_params.get("top_k", -1),
            top_p=sampling_params.get("top_p", 1.0),
            seed=_seed_of(self._seed, self._global_steps, self._asked[prompt], prompt),
        )
        self._asked[prompt] += 1
        answer: asyncio.Future[TokenOutput] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._generating is None or self._generating.done():
            self._generating = asyncio.create_task(self._answer_all())
        return await answer

    async def _answer_all(self) -> None:
        while self._waiting:
            seen = -1
            while len(self._waiting) != seen and len(self._waiting) < _LARGEST_BATCH:
                seen = len(self._waiting)
                await asyncio.sleep(_QUIET_SECONDS)
            batch, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
            try:
                async with self._weights:
                    steps = self._global_steps
                    answers = await asyncio.to_thread(sample, self._model, [r for r, _ in batch], self._end)
            except Exception as error:
                # Each caller gets it; this task has nobody who would look.
                for _, answer in batch:
                    answer.set_exception(RuntimeError(f"the rollout server {NAME} could not generate: {error!r}"))
                continue
            for (_, answer), (tokens, log_probs) in zip(batch, answers, strict=True):
                answer.set_result(
                    TokenOutput(
                        token_ids=tokens,
                        log_probs=log_probs,
                        stop_reason="completed",
                        extra_fields={"global_steps": steps},
                    )
                )

    async def load_weights(self, weights: Mapping[str, Tensor], global_steps: int | None) -> None:
        """Take the trainer's weights.

        Args:
            weights: All of them by name; a tied head may be left out.
            global_steps: Step they belong to; None: as before.

        Raises:
            ValueError: Names that the model lacks, or that were not sent.
        """
        async with self._weights:
            missing, unexpected = self._model.load_state_dict(weights, strict=False)
            untied = set(missing) - set(self._model._tied_weights_keys or ())
            if untied or unexpected:
                raise ValueError(
                    f"the trainer's weights do not fit the rollout model: not sent {sorted(untied)}, "
                    f"unknown {sorted(unexpected)}; start both from one `actor_rollout_ref.model.path`."
                )
            if global_steps is not None:
                self._global_steps = global_steps
            self._asked.clear()

    async def restart_draws(self) -> None:
        """Sample from now on as if nothing had been asked since the weights came."""
        self._asked.clear()

    async def set_global_steps(self, global_steps: int) -> None:
        """Note the step of the weights."""
        self._global_steps = global_steps

    async def _nothing(self, *args: Any, **kwargs: Any) -> None:
        """There is no memory to free, no profiler and no request to abort."""

    wake_up = sleep = abort_all_requests = resume_generation = clear_kv_cache = release_kv_cache = resume_kv_cache = (
        start_profile
    ) = stop_profile = _nothing


class HFReplica(RolloutReplica):
    """Starts the server of a replica."""

    async def launch_servers(self) -> None:
        """Start one server, whatever the number of ranks that a replica has."""
        model = self.model_config
        path = model.get("local_path") or model["path"]
        server = (
            ray.remote(HFServer)
            .options(name=_server_name(self.replica_rank), num_cpus=0, max_concurrency=self.max_concurrency)
            .remote(path, self.config, seed=_seed_of(self.config.seed, self.replica_rank))
        )
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"{NAME}:{self.replica_rank}"


class HFServerAdapter(BaseRollout):
    """In the trainer's process: hands the server new weights."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1, **_: Any) -> None:
        super().__init__(config, model_config, device_mesh)
        ranks = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        rank = int(os.environ["RANK"])
        self._replica = rank // ranks if replica_rank == -1 else replica_rank
        self._leads = rank % ranks == 0
        self._server: Any = None

    async def resume(self, tags: list[str]) -> None:
        """There is nothing to wake up."""

    async def release(self) -> None:
        """There is nothing to free."""

    async def update_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        peft_config: Any = None,
        **_: Any,
    ) -> None:
        """Send weights to the server.

        Args:
            weights: Names and tensors; every rank reads all of them, since gathering one is a collective.
            wire_format: Only whole tensors are known here.
            global_steps: Step of the weights.
            peft_config: Only None is known here.
        """
        if peft_config is not None:
            raise ValueError(f"{NAME} takes no LoRA adapters; set actor_rollout_ref.model.lora.merge=True")
        if wire_format != "named_tensors":
            raise ValueError(f"{NAME} takes weights as 'named_tensors', not as {wire_format!r}")
        whole = {name: tensor.detach().cpu().float() for name, tensor in weights}
        if self._leads:
            self._server = self._server or ray.get_actor(_server_name(self._replica))
            await self._server.load_weights.remote(whole, global_steps)


def _server_name(replica: int) -> str:
    return f"{NAME}_server_{replica}"


def _seed_of(*parts: Any) -> int:
    """A seed that differs with every part, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


RolloutReplicaRegistry.register(NAME, lambda: HFReplica)
# verl has no function for this table.
_ROLLOUT_REGISTRY[(NAME, "async")] = f"{__name__}.{HFServerAdapter.__name__}"
