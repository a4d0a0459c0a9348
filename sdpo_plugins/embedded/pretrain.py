"""Train an embedded checkpoint from nothing: tokenizer, then model, in a few minutes on two cores.

python -m sdpo_plugins.embedded.pretrain --family text --output DIR --seed 0
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo_plugins.embedded.corpus import Conversation
from sdpo_plugins.embedded.families import FAMILIES, PretrainSettings
from sdpo_plugins.embedded.tokenizer import TURN_END, TURN_START, render_prompt, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


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
        ids and labels, both [N, T] int64. The label at t is the token after t where that is part of the
        answer or its end of turn, else -100: the model is not asked to predict what people ask.
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


def answer_losses(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropies of each row's labelled tokens.

    Args:
        model: the model.
        ids: [N, T] token ids, padded on the right (so a causal model needs no attention mask).
        labels: [N, T], -100 where there is nothing to learn.

    Returns:
        [N], in nats.
    """
    import torch

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    rows, columns = (labels >= 0).nonzero(as_tuple=True)
    # Only the answers meet the vocabulary: a third of the time of a step otherwise.
    logits = model.lm_head(hidden[rows, columns])
    losses = torch.nn.functional.cross_entropy(logits, labels[rows, columns], reduction="none")
    return torch.zeros(len(ids)).index_add(0, rows, losses)


def _optimizers(model: Qwen3ForCausalLM, settings: PretrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms; each group remembers its peak rate."""
    import torch

    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(
            f"Pre-training needs torch 2.9 or newer for torch.optim.Muon, this is {torch.__version__}. The shipped "
            "checkpoint needs no training: see `sdpo_plugins.embedded.checkpoint_path`."
        )
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
) -> dict[str, float]:
    """Add the gradients of one step; give the mean loss by kind of question, in nats a token."""
    # Shortest first and cut in four: padding short questions to the longest context costs twice the time.
    ordered = sorted(drawn, key=lambda c: sum(len(m["content"]) for m in c.messages))
    cuts = [len(ordered) * i // buckets for i in range(buckets + 1)]
    parts = [ordered[start:end] for start, end in pairwise(cuts) if end > start]
    batches = [encode(tokenizer, part) for part in parts]
    total = sum(int((labels >= 0).sum()) for _, labels in batches)
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for part, (ids, labels) in zip(parts, batches, strict=True):
        losses = answer_losses(model, ids, labels)
        (losses.sum() / total).backward()
        tokens = (labels >= 0).sum(dim=1).tolist()
        for conversation, loss, count in zip(part, losses.tolist(), tokens, strict=True):
            sums[conversation.kind] += loss
            counts[conversation.kind] += count
    return {kind: sums[kind] / counts[kind] for kind in sums}


def pretrain(
    seed: int = 0, settings: PretrainSettings | None = None, progress: bool = True, family: str = "text"
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Train tokenizer and model.

    Args:
        seed: of the data and the weights; the same seed and number of threads give the same checkpoint.
        settings: None is what the shipped checkpoint was trained with.
        progress: show a progress bar.
        family: ``"text"`` or ``"code"``.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Example:
        >>> model, tokenizer = pretrain(seed=0, settings=PretrainSettings(2, 1), progress=False)
        >>> model.config.model_type
        'qwen3'
    """
    import torch
    from tqdm.auto import tqdm

    kind = FAMILIES[family]
    settings = settings or kind.settings
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(kind.tokenizer_texts())
    corpus = kind.corpus(seed)
    model = build_model(tokenizer).train()
    optimizers = _optimizers(model, settings)
    smooth = dict.fromkeys(kind.watched, 10.0)
    doubt_from: int | None = None
    bar = tqdm(total=settings.learning_steps + settings.doubt_steps, desc="pre-training", disable=not progress)
    for step in itertools.count():
        if doubt_from is None and (max(smooth.values()) < settings.known or step >= settings.learning_steps):
            doubt_from = step
            bar.total = step + settings.doubt_steps
        if doubt_from is not None and step >= doubt_from + settings.doubt_steps:
            break
        rate = settings.rate(step, doubt_from)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        plain = corpus.plain(settings.plain, slips=doubt_from is not None)
        losses = _backward(model, tokenizer, [*plain, *corpus.with_context(settings.contexts)])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        smooth = {watched: 0.9 * mean + 0.1 * losses.get(watched, mean) for watched, mean in smooth.items()}
        bar.update()
        if step % 20 == 0:
            bar.set_postfix({watched: f"{mean:.3f}" for watched, mean in smooth.items()})
    bar.close()
    return model.eval(), tokenizer


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write a checkpoint that every transformers from 4.56 on can load.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        output: the directory; made if missing, files in it replaced.
    """
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # transformers 5 writes names of its own here, which 4 does not know; it still reads the old ones.
    path = output / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = config.pop("extra_special_tokens", [TURN_START])
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (output / "model.safetensors").chmod(0o644)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: train and save a checkpoint.

    Args:
        arguments: None is ``sys.argv[1:]``.
    """
    parser = argparse.ArgumentParser(description="Train an embedded checkpoint from nothing.")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="text", help="which checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="learn for at most so many optimizer steps, for a quick try")
    options = parser.parse_args(arguments)
    settings = FAMILIES[options.family].settings
    if options.steps is not None:
        if options.steps < 1:
            parser.error(f"--steps must be at least 1, not {options.steps}")
        settings = replace(settings, learning_steps=options.steps, doubt_steps=min(options.steps, settings.doubt_steps))
    model, tokenizer = pretrain(options.seed, settings, family=options.family)
    save(model, tokenizer, options.output)
    print(f"saved {sum(p.numel() for p in model.parameters()):,} parameters to {options.output}")


if __name__ == "__main__":
    main()
