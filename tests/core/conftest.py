"""Fixtures of the core tests: a real byte-level BPE tokenizer, trained here in a few milliseconds, and plug-ins."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

CHAT_TEMPLATE = (
    "{%- if tools is not none %}{{- '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'critic' %}{{- raise_exception('no critics here') }}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for part in message.content %}"
    "{{- part.text if part.type == 'text' else '<|image|>' }}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)

WORDS = (
    "The quick sum of two numbers is carried digit by digit. Correct solution: Correctly solve the original question. "
    "The following is feedback from your unsuccessful earlier attempt: Runtime Error ZeroDivisionError expected got "
)


@pytest.fixture(scope="session")
def bpe_backend() -> str:
    """JSON of a trained byte-level BPE with ChatML tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>", "<|image|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([WORDS] * 4, trainer)
    return backend.to_str()


@pytest.fixture
def bpe_tokenizer(bpe_backend: str):
    """A fresh fast tokenizer of transformers for each test, with a chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(bpe_backend),
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=64,
        padding_side="right",
        truncation_side="left",
    )


@pytest.fixture(scope="session")
def reprompt_golden() -> dict:
    """Batches of the authors' code with its outputs."""
    path = Path(__file__).parents[1] / "golden" / "reprompt_reference.json"
    return json.loads(path.read_text(encoding="utf-8"))


# A plug-in manager is kept for each set of names, so no two tests may use the same name.
_PLUGIN_NUMBERS = itertools.count()


@pytest.fixture
def plugin(monkeypatch):
    """make(**functions): put a plug-in at an import path, as a worker would find it, and return its name."""

    def make(**functions):
        name = f"sdpo_test_plugin_{next(_PLUGIN_NUMBERS)}"
        module = ModuleType(name)
        for hook, function in functions.items():
            setattr(module, hook, function)
        module.__spec__ = SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
        return name

    return make
