"""Train the embedded checkpoint from nothing: tokenizer, then model, in a few minutes on two cores.

python -m sdpo_plugins.embedded.pretrain --output DIR --seed 0
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo_plugins.embedded.corpus import Conversation, Corpus, Mixture, tokenizer_texts
from sdpo_plugins.embedded.tokenizer import TURN_END, TURN_START, render_prompt, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


_TOKENIZER_MIXTURE = Mixture(plain_sums=0.85, slip=0.45)


@dataclass(frozen=True)
class PretrainSettings:
    """How the checkpoint is trained: first until sums and contexts are known, then some steps of doubt.

    Args:
        learning_steps: at most so many optimizer steps with right sums only.
        doubt_steps: steps with slips after that. With slips from the start, addition takes far longer.
        known: the first part ends when the mean losses of sums and of contexts are below this (nats a
            token). A fixed number of steps would leave the accuracy to chance: addition appears suddenly.
        plain: conversations without a context in a step.
        contexts: conversations with a context in a step.
        muon_rate: peak learning rate of the layers' matrices.
        adamw_rate: peak learning rate of embeddings and norms.
        warmup: warm-up steps.
        mixture: what the conversations are about.
    """

    learning_steps: int = 400
    doubt_steps: int = 240
    known: float = 0.12
    plain: int = 64
    contexts: int = 48
    muon_rate: float = 5e-3
    adamw_rate: float = 3e-3
    warmup: int = 30
    mixture: Mixture = field(default_factory=Mixture)

    def rate(self, step: int, doubt_from: int | None) -> float:
        """The share of the peak learning rates at a step.

        Args:
            step: counted from 0.
            doubt_from: the first step with slips; None while it is not known.

        Returns:
            Warm-up to 1, slow linear decay to 0.4 while learning, then linear decay to nearly 0.
        """

        def learning(at: int) -> float:
            return min(1.0, (at + 1) / self.warmup) * (1 - 0.6 * at / max(1, self.learning_steps))

        if doubt_from is None:
            return learning(step)
        return learning(doubt_from) * max(0.02, 1 - (step - doubt_from) / max(1, self.doubt_steps))


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
        >>> model, tokenizer = pretrain(seed=0, settings=PretrainSettings(2, 1), progress=False)
        >>> model.config.model_type
        'qwen3'
    """
    import torch
    from tqdm.auto import tqdm

    settings = settings or PretrainSettings()
    torch.manual_seed(seed)
    # Its own draws and shares, so that the tokenizer is the same whatever the model is trained on.
    tokenizer = train_tokenizer(tokenizer_texts(Corpus(seed=0, mixture=_TOKENIZER_MIXTURE)))
    corpus = Corpus(seed, settings.mixture)
    model = build_model(tokenizer).train()
    optimizers = _optimizers(model, settings)
    smooth = {"sum": 10.0, "context": 10.0}
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
        smooth = {kind: 0.9 * mean + 0.1 * losses.get(kind, mean) for kind, mean in smooth.items()}
        bar.update()
        if step % 20 == 0:
            bar.set_postfix({kind: f"{mean:.3f}" for kind, mean in smooth.items()})
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
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint from nothing.")
    parser.add_argument("--output", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="learn for at most so many optimizer steps, for a quick try")
    options = parser.parse_args(arguments)
    settings = PretrainSettings()
    if options.steps is not None:
        if options.steps < 1:
            parser.error(f"--steps must be at least 1, not {options.steps}")
        settings = PretrainSettings(learning_steps=options.steps, doubt_steps=min(options.steps, settings.doubt_steps))
    model, tokenizer = pretrain(options.seed, settings)
    save(model, tokenizer, options.output)
    print(f"saved {sum(p.numel() for p in model.parameters()):,} parameters to {options.output}")


if __name__ == "__main__":
    main()
