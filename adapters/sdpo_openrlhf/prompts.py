"""From OpenRLHF's templated prompts back to their questions, and teacher prompts rendered as the host renders them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf.datasets.prompts_dataset import preprocess_data
from openrlhf.datasets.utils import blending_datasets

from sdpo_openrlhf.feedback import shortened
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import DataError
from sdpo_plugins.reprompt import make_render, rendered_text
from sdpo_plugins.reprompt.rendering import Render

__all__ = ["PromptStyle", "prompt_style", "questions_of"]


@dataclass(frozen=True)
class PromptStyle:
    """How a run turns questions into prompts, and which question each prompt was made of.

    Args:
        tokenizer: Only read.
        questions: Chat messages, or a text, by the prompt that the host made of them.
        input_template: The text with `{}` into which the host puts a question that is a text; None: there is none.
    """

    tokenizer: Any
    questions: Mapping[str, Any]
    input_template: str | None = None

    def question(self, prompt: str) -> Any:
        """Return the chat messages, or the text, that a prompt was made of.

        Args:
            prompt: The host's text of it.

        Raises:
            DataError: The dataset holds no such prompt.
        """
        if prompt not in self.questions:
            raise DataError(
                f"The prompt {shortened(prompt)} is none of those in `--data.prompt_dataset`, so its question is not "
                "known and the teacher's prompt cannot be written. An `AgentExecutor` of your own must return as "
                "`prompt` the text that it was given; what it changes belongs into `observation_tokens`."
            )
        return self.questions[prompt]

    def render(self, config: SDPOConfig) -> Render:
        """Return the function that tokenises a prompt as the host does: first the text, then its tokens.

        Args:
            config: The SDPO options; their template arguments are added to the chat template's.
        """
        encode = make_render(self.tokenizer, config, add_special_tokens=False)

        def render(prompt: Any) -> list[int]:
            if not isinstance(prompt, str):
                return encode(rendered_text(self.tokenizer, prompt, config))
            return encode(self.input_template.format(prompt) if self.input_template else prompt)

        return render

    def unlike(self, prompts: Sequence[str], ids: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Count prompts that the student did not read as they are rendered here.

        Args:
            prompts: The host's texts.
            ids: What the student read before its answer.

        Returns:
            How many have lost their beginning, and how many differ in another way.
        """
        render = self.render(SDPOConfig())
        known: dict[str, list[int]] = {}
        cut = other = 0
        for prompt, seen in zip(prompts, ids, strict=True):
            if prompt not in known:
                known[prompt] = render(self.question(prompt))
            whole, read = known[prompt], list(seen)
            if read == whole:
                continue
            if len(read) < len(whole) and read == whole[len(whole) - len(read) :]:
                cut += 1
            else:
                other += 1
        return cut, other


def prompt_style(strategy: Any, tokenizer: Any) -> PromptStyle:
    """Read a run's prompts, and the way in which they are rendered, from the host's arguments.

    The host keeps of its dataset only the templated prompts; so the dataset is read again.

    Args:
        strategy: The host's.
        tokenizer: The controller's.
    """
    args = strategy.args
    rows = blending_datasets(
        args.data.prompt_dataset,
        args.data.prompt_probs,
        strategy,
        args.train.seed,
        max_count=args.data.max_samples,
        dataset_split=args.data.prompt_split,
    )
    rows = rows.select(range(min(args.data.max_samples, len(rows))))
    chat = tokenizer.apply_chat_template if args.data.apply_chat_template else None
    template = None if chat else args.data.input_template
    return PromptStyle(tokenizer, questions_of(rows, args.data.input_key, template, chat), template)


def questions_of(rows: Iterable[Any], key: str, template: str | None, chat: Any) -> dict[str, Any]:
    """Return each row's question by the prompt that the host makes of it.

    Args:
        rows: Of the dataset.
        key: Of the question (`--data.input_key`).
        template: The host's `--data.input_template`, or None.
        chat: The tokenizer's `apply_chat_template` where the host uses it, else None.

    Returns:
        Chat messages where the host uses a chat template, else texts.

    Raises:
        DataError: A question is of the wrong type.
    """
    found: dict[str, Any] = {}
    for number, row in enumerate(rows):
        given = row[key]
        if not isinstance(given, str) and (chat is None or not isinstance(given, list)):
            raise DataError(
                f"Row {number} of `--data.prompt_dataset`: {key!r} must be a text"
                + (" or a list of chat messages" if chat else "")
                + f", got {shortened(given)} ({type(given).__name__})."
                + ("" if chat else " For chat messages add `--data.apply_chat_template`.")
            )
        prompt, _ = preprocess_data(row, template, key, None, chat)
        question = [{"role": "user", "content": given}] if chat and isinstance(given, str) else given
        # Of two questions with the same prompt either will do.
        found.setdefault(prompt, question)
    return found
