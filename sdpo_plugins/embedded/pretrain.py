"""Train the embedded checkpoint from nothing: tokenizer, then model, in under two minutes on two cores.

python -m sdpo_plugins.embedded.pretrain --output DIR --seed 0
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo_plugins.embedded.corpus import Conversation, Corpus, Mixture, tokenizer_texts
from sdpo_plugins.embedded.tokenizer import TURN_END, render_prompt, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


@dataclass(frozen=True)
class PretrainSettings:
    """How the checkpoint is trained.

    Args:
        steps: optimizer steps.
        plain: conversations without a context in a step.
        contexts: conversations with a context in a step.
        muon_rate: peak learning rate of the layers' matrices; linear warm-up, cosine decay to a twentieth.
        adamw_rate: peak learning rate of embeddings and norms; likewise.
        warmup: warm-up steps.
        mixture: what the conversations are about.
    """

    steps: int = 500
    plain: int = 48
    contexts: int = 32
    muon_rate: float = 5e-3
    adamw_rate: float = 3e-3
    warmup: int = 50
    mixture: Mixture = field(default_factory=Mixture)


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A fresh model of about half a million parameters; its weights come from torch's global random state.

    Args:
        tokenizer: gives the size of the vocabulary and the special tokens.

    Returns:
        A Qwen3 model in float32.
    """
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def encode(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn conversations into token ids and labels, padded on the right.

    Args:
        tokenizer: the tokenizer.
        conversations: N conversations.

    Returns:
        ids and labels, both [N, T] int64. The label at t is the token after t where that is part of the answer or
        its end of turn, else -100: the model is not asked to predict what people ask.
    """
    import torch

    prompts = tokenizer([render_prompt(c.messages) for c in conversations])["input_ids"]
    answers = tokenizer([c.answer + TURN_END for c in conversations])["input_ids"]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(prompts), length), tokenizer.pad_token_id)
    labels = torch.full((len(prompts), length), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) - 1 : end - 1] = torch.tensor(answer)
    return ids, labels


def answer_loss(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropies of the labelled tokens.

    Args:
        model: the model.
        ids: [N, T] token ids, padded on the right (so a causal model needs no attention mask).
        labels: [N, T], -100 where there is nothing to learn.

    Returns:
        A scalar in nats.
    """
    import torch

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    learn = labels >= 0
    # Only the answers' rows meet the vocabulary: a third of the time of a step otherwise.
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learn]), labels[learn], reduction="sum")


def _rate(step: int, settings: PretrainSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _optimizers(model: Qwen3ForCausalLM, settings: PretrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms; each group remembers its peak rate."""
    import torch

    # With AdamW alone, copying from the context needs three times as many steps to appear.
    named = list(model.named_parameters())
    inner = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in named if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(inner, lr=settings.muon_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=settings.adamw_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _backward(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    drawn: Sequence[Conversation],
    buckets: int = 4,
) -> tuple[float, float]:
    """Add the gradients of one step; give the mean losses of the shorter and of the longer half, in nats a token."""
    # Shortest first and cut in four: padding short questions to the longest context costs twice the time.
    ordered = sorted(drawn, key=lambda c: sum(len(m["content"]) for m in c.messages))
    cuts = [len(ordered) * i // buckets for i in range(buckets + 1)]
    batches = [encode(tokenizer, ordered[start:end]) for start, end in pairwise(cuts) if end > start]
    counts = [int((labels >= 0).sum()) for _, labels in batches]
    sums = []
    for ids, labels in batches:
        loss = answer_loss(model, ids, labels)
        (loss / sum(counts)).backward()
        sums.append(float(loss.detach()))
    half = (len(sums) + 1) // 2
    return sum(sums[:half]) / sum(counts[:half]), sum(sums[half:]) / max(1, sum(counts[half:]))


def pretrain(
    seed: int = 0, settings: PretrainSettings | None = None, progress: bool = True
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Train tokenizer and model.

    Args:
        seed: of the data and the weights; the same seed and number of threads give the same checkpoint.
        settings: None is what the shipped checkpoint was trained with.
        progress: show a progress bar.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Example:
        >>> model, tokenizer = pretrain(seed=0, settings=PretrainSettings(steps=2), progress=False)
        >>> model.config.model_type
        'qwen3'
    """
    import torch
    from tqdm.auto import tqdm

    settings = settings or PretrainSettings()
    torch.manual_seed(seed)
    # Its own draws, so that the tokenizer is the same whatever the model is trained on.
    tokenizer = train_tokenizer(tokenizer_texts(Corpus(seed=0)))
    corpus = Corpus(seed, settings.mixture)
    model = build_model(tokenizer).train()
    optimizers = _optimizers(model, settings)
    bar = tqdm(range(settings.steps), desc="pre-training", unit="step", disable=not progress)
    for step in bar:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _rate(step, settings)
        drawn = [*corpus.plain(settings.plain), *corpus.with_context(settings.contexts)]
        losses = _backward(model, tokenizer, drawn)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            bar.set_postfix(plain=f"{losses[0]:.3f}", context=f"{losses[1]:.3f}")
    return model.eval(), tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: train and save a checkpoint.

    Args:
        arguments: None is ``sys.argv[1:]``.
    """
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint from nothing.")
    parser.add_argument("--output", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=PretrainSettings.steps, help="optimizer steps")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, not {options.steps}")
    model, tokenizer = pretrain(options.seed, PretrainSettings(steps=options.steps))
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    print(f"saved {sum(p.numel() for p in model.parameters()):,} parameters to {options.output}")


if __name__ == "__main__":
    main()
