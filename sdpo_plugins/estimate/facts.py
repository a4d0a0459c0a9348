"""What an estimate starts from: facts of a model, and facts of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from sdpo_plugins._options import option, problems_of
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError

__all__ = ["ALL_LINEAR", "PEFT_DEFAULT", "Linear", "ModelFacts", "RunFacts", "defaults_of"]

ALL_LINEAR = "all-linear"
PEFT_DEFAULT = "default"
_DTYPES = ("float32", "bfloat16", "float16")
_HOST_DEFAULTS = {
    # weights as loaded, sharding, who generates: what each host does where nothing is said
    "trl": {"dtype": "float32", "sharding": "none", "generation": "transformers"},
    "verl": {"dtype": "float32", "sharding": "fsdp2", "generation": "vllm"},
    "openrlhf": {"dtype": "bfloat16", "sharding": "zero2", "generation": "vllm"},
}


@dataclass(frozen=True)
class Linear:
    """Linear layers of one name and shape in the decoder; the head is none of them.

    Args:
        name: Last part of the module's name, "q_proj".
        inputs: Width of what goes in.
        outputs: Width of what comes out.
        count: How many there are in the model.
    """

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def weights(self) -> int:
        """Entries of all their matrices."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder-only language model, see `read_model`.

    Args:
        name: What it is called.
        kind: `model_type` of its configuration.
        parameters: All of them, tied ones once.
        vocabulary: V, rows of the head.
        width: H of the hidden states.
        intermediate: F of a layer's MLP; of a mixture, of the experts that a token goes through.
        layers: L.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        tied: Whether head and input embeddings are one matrix.
        qk_norm: Whether queries and keys are normalised.
        linears: Linear layers of the decoder.
    """

    name: str
    kind: str
    parameters: int
    vocabulary: int
    width: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    qk_norm: bool
    linears: tuple[Linear, ...] = field(default=())

    @property
    def queries(self) -> int:
        """Q = heads · head_dim."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """K = kv_heads · head_dim."""
        return self.kv_heads * self.head_dim

    @property
    def head_entries(self) -> int:
        """Entries of the head's matrix, V · H."""
        return self.vocabulary * self.width

    @property
    def linear_weights(self) -> int:
        """Entries of the matrices of all linear layers, without the head."""
        return sum(linear.weights for linear in self.linears)


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run that decide about memory; names and defaults of SDPO's options are `SDPOConfig`'s.

    What is None takes the host's default, see `defaults_of`.

    Example:
        >>> RunFacts(host="verl").sharding
        'fsdp2'
        >>> RunFacts(load_in_4bit=True)
        Traceback (most recent call last):
        ...
        sdpo_plugins.errors.ConfigError: `load_in_4bit` needs LoRA: ... Give `lora_rank` (16, say).
    """

    host: str = option("trl", "Host whose way of holding weights is meant.", choices=tuple(_HOST_DEFAULTS))
    sdpo: SDPOConfig = field(default_factory=SDPOConfig)
    lora_rank: int | None = option(None, "Rank of LoRA adapters; null: all weights are trained.", low=1)
    lora_targets: tuple[str, ...] = option(
        (ALL_LINEAR,),
        "Names of the linear layers with an adapter; all-linear: every one but the head; default: PEFT's choice.",
    )
    load_in_4bit: bool = option(False, "Hold the linear layers in 4 bits (NF4 of bitsandbytes), adapters above.")
    double_quant: bool = option(False, "Quantise the constants of 4-bit weights too.")
    dtype: str | None = option(None, "Weights as loaded.", choices=_DTYPES)
    bf16: bool = option(True, "Compute in bfloat16 (autocast where weights are float32).")
    optimizer: str = option("adamw", "Optimizer.", choices=("adamw", "adamw_8bit", "lion", "sgd"))
    gradient_checkpointing: bool = option(True, "Keep each layer's input alone and compute the rest again.")
    attention: str = option("sdpa", "Implementation of attention.", choices=("eager", "sdpa", "flash"))
    padding: bool = option(True, "Whether rows of a micro-batch are padded to one length (a mask for sdpa).")
    batch_size: int = option(8, "Answers of a micro-batch on each GPU.", low=1)
    generation_batch: int | None = option(
        None, "Answers generated at once on each GPU; null: those of an optimizer step.", low=1
    )
    gradient_accumulation: int = option(1, "Micro-batches of an optimizer step.", low=1)
    prompt_length: int = option(512, "Tokens of a prompt.", low=1)
    completion_length: int = option(512, "Tokens of an answer.", low=1)
    teacher_prompt_length: int | None = option(
        None, "Tokens of a teacher prompt; null: prompt, one answer and 64, at most max_reprompt_len.", low=1
    )
    reference: bool = option(False, "A KL to a reference model (beta > 0).")
    ranks: int = option(1, "GPUs that train together.", low=1)
    sharding: str | None = option(
        None, "How ranks share weights.", choices=("none", "zero1", "zero2", "zero3", "fsdp2")
    )
    generation: str | None = option(
        None,
        "Who generates: the model itself, vLLM on the same GPU, or others.",
        choices=("transformers", "vllm", "elsewhere"),
    )
    vllm_gpu_memory_utilization: float = option(0.3, "vLLM's share of the GPU.", low=0.0, high=1.0, exclusive=True)
    vllm_sleep: bool = option(False, "vLLM gives its memory back while training (verl: always).")
    device: str = option(
        "cuda", "Where it runs: decides about the default of chunk_memory_mb.", choices=("cuda", "cpu")
    )
    allowance_gib: float = option(1.0, "What CUDA, its libraries and the allocator take besides, in GiB.", low=0.0)

    def __post_init__(self) -> None:
        problems: list[str] = []
        for item in dataclasses.fields(self):
            if item.name == "sdpo":
                continue
            value, found = problems_of(item, getattr(self, item.name), type(self))
            problems += found
            object.__setattr__(self, item.name, value)
        if not problems:
            for name, value in _HOST_DEFAULTS[self.host].items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, "bfloat16" if name == "dtype" and self.load_in_4bit else value)
            problems = list(_contradictions(self))
        if problems:
            raise ConfigError(problems)

    @property
    def teacher_prompt(self) -> int:
        """Tokens of a teacher prompt: given, or the question, one answer and 64, at most `max_reprompt_len`."""
        usual = self.prompt_length + self.completion_length + 64
        return min(self.teacher_prompt_length or usual, self.sdpo.max_reprompt_len)

    def replace(self, **changes: object) -> RunFacts:
        """Return a copy with some facts changed and everything checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def defaults_of(host: str) -> dict[str, str]:
    """Return weights' dtype, sharding and generation of a host where nothing is said.

    Example:
        >>> defaults_of("openrlhf")["dtype"]
        'bfloat16'
    """
    return dict(_HOST_DEFAULTS[host])


def _contradictions(run: RunFacts) -> Iterator[str]:
    teacher, lora = run.sdpo.teacher, run.lora_rank is not None
    if teacher == "lora_ema" and not lora:
        yield "the teacher 'lora_ema' holds an adapter, and none is trained. Give `lora_rank`, or teacher 'ema'."
    if run.load_in_4bit and not lora:
        yield "`load_in_4bit` needs LoRA: weights of 4 bits cannot be trained. Give `lora_rank` (16, say)."
    if run.double_quant and not run.load_in_4bit:
        yield "`double_quant` is one of 4-bit weights. Give `load_in_4bit` too, or leave it out."
    if run.load_in_4bit and run.host != "trl":
        yield f"`load_in_4bit`: the host {run.host!r} trains no adapters on 4-bit weights. Take host 'trl'."
    if run.load_in_4bit and run.sharding in ("zero3", "fsdp2"):
        yield f"`load_in_4bit` with `sharding={run.sharding!r}`: shards of 4 bits are not estimated. Take 'none'."
    if not lora and run.lora_targets != (ALL_LINEAR,):
        yield f"`lora_targets={list(run.lora_targets)!r}` without LoRA. Give `lora_rank` too, or leave it out."
    valid = {"trl": ("none", "zero1", "zero2", "zero3", "fsdp2"), "verl": ("fsdp2",)}.get(
        run.host, ("none", "zero1", "zero2", "zero3")
    )
    if run.sharding not in valid:
        listing = ", ".join(map(repr, valid))
        yield f"`sharding={run.sharding!r}` is not the host {run.host!r}'s; valid are {listing}."
    if run.host == "openrlhf" and lora and run.sharding == "zero3":
        yield "OpenRLHF refuses LoRA with ZeRO-3. Take sharding 'zero2', or train all weights."
    if run.host != "trl" and run.generation == "transformers":
        yield f"the host {run.host!r} generates with vLLM. Take generation 'vllm', or 'elsewhere' for other GPUs."
    if run.host != "trl" and run.sdpo.loss_path == "logits":
        yield f"`loss_path='logits'`: the adapter of {run.host!r} has the fused path alone. Take 'auto' or 'fused'."
    if run.sharding not in ("none", "fsdp2") and run.optimizer != "adamw":
        yield f"`optimizer={run.optimizer!r}` with DeepSpeed is not estimated. Take 'adamw'."
    if run.host == "trl" and run.sharding == "zero3" and run.sdpo.loss_path == "fused":
        yield "`loss_path='fused'` does not work with ZeRO-3 in TRL: its head lies in shards. Take 'auto' or 'logits'."
    if run.dtype == "float16" and run.bf16:
        yield "`dtype='float16'` and `bf16=True` contradict each other. Turn `bf16` off, or take bfloat16."
