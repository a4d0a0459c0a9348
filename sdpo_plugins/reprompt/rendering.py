"""From messages or a string to token ids, leaving the user's tokenizer exactly as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.errors import ConfigError, DataError

__all__ = ["Render", "check_chat_template", "make_render", "rendered_text", "tokenizer_unchanged"]

Render = Callable[[Any], "list[int]"]
"""`render(messages_or_string) -> ids`, the generation prompt included."""

_OURS = ("conversation", "tokenize", "return_dict", "return_tensors", "add_generation_prompt", "continue_final_message")


def make_render(
    tokenizer: Any,
    config: SDPOConfig,
    *,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_special_tokens: bool = True,
) -> Render:
    """Return the function that tokenises one teacher prompt.

    Chat messages go through the chat template with a generation prompt, strings through the tokenizer as they are.
    Nothing is padded or truncated, no attribute of the tokenizer is set, and its length warning stays silent.

    Args:
        tokenizer: A tokenizer of transformers (4.5x to 5.x), or a processor.
        config: `apply_chat_template_kwargs` is read.
        tools: Tool schemas for the chat template.
        chat_template: A template to use in the place of the tokenizer's.
        chat_template_kwargs: The host's own template arguments; `config.apply_chat_template_kwargs` wins over them.
        add_special_tokens: For plain strings: whether the tokenizer adds its own (as it did for the student).

    Returns:
        `render(messages_or_string) -> list of token ids`.

    Raises:
        ConfigError: The template arguments contain one that SDPO sets itself.

    Example:
        >>> def tokenizer(text, add_special_tokens):
        ...     return {"input_ids": list(text.encode())}
        >>> make_render(tokenizer, SDPOConfig())("2+2?")
        [50, 43, 50, 63]
    """
    keywords = {**(chat_template_kwargs or {}), **config.apply_chat_template_kwargs}
    reserved = [name for name in keywords if name in _OURS]
    if reserved:
        raise ConfigError(
            f"The arguments of the chat template hold {', '.join(map(repr, reserved))}, which SDPO sets itself. Remove "
            "them from `apply_chat_template_kwargs`."
        )
    quiet = _quiet(tokenizer)
    if quiet:
        keywords["tokenizer_kwargs"] = {**keywords.get("tokenizer_kwargs", {}), **quiet}

    def render(prompt: Any) -> list[int]:
        with tokenizer_unchanged(tokenizer):
            if isinstance(prompt, str):
                encoded = tokenizer(text=prompt, add_special_tokens=add_special_tokens, **quiet)
            else:
                encoded = _apply(
                    tokenizer,
                    prompt,
                    tools=tools or None,  # Some templates write a tool section for an empty list.
                    chat_template=chat_template,
                    tokenize=True,
                    return_dict=True,
                    **keywords,
                )
            return _flat_ids(encoded)

    return render


def rendered_text(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    config: SDPOConfig,
    *,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a prompt with its generation prompt, e.g. for `opens_thinking`.

    Args:
        tokenizer: As in `make_render`.
        messages: Chat messages.
        config: As in `make_render`.
        tools: As in `make_render`.
        chat_template: As in `make_render`.
        chat_template_kwargs: As in `make_render`.

    Returns:
        The text.

    Raises:
        DataError: There is no chat template, or it refuses the messages.
    """
    keywords = {**(chat_template_kwargs or {}), **config.apply_chat_template_kwargs}
    keywords.pop("tokenizer_kwargs", None)
    text = _apply(tokenizer, messages, tools=tools or None, chat_template=chat_template, tokenize=False, **keywords)
    return str(text[0] if isinstance(text, list) else text)


def check_chat_template(tokenizer: Any, chat_template: str | None = None) -> None:
    """Raise if chat prompts cannot be rendered.

    Args:
        tokenizer: As in `make_render`.
        chat_template: A template to use in the place of the tokenizer's.

    Raises:
        DataError: The tokenizer has no chat template.
    """
    has_method = hasattr(tokenizer, "apply_chat_template")
    # Some tokenizers render chats without a template text and have no such attribute.
    if has_method and (chat_template is not None or getattr(tokenizer, "chat_template", "") is not None):
        return
    raise DataError(
        f"The prompts are chat messages, but the tokenizer ({type(tokenizer).__name__}) has no chat template. Use an "
        "instruction-tuned model's tokenizer, set `tokenizer.chat_template`, or give the prompts as plain strings."
    )


@contextmanager
def tokenizer_unchanged(tokenizer: Any) -> Iterator[None]:
    """Put the Rust backend's truncation and padding back, which every call of a fast tokenizer resets.

    Args:
        tokenizer: A tokenizer or a processor that holds one.

    Yields:
        Nothing.
    """
    backend = getattr(getattr(tokenizer, "tokenizer", tokenizer), "backend_tokenizer", None)
    truncation = getattr(backend, "truncation", None)
    padding = getattr(backend, "padding", None)
    try:
        yield
    finally:
        if backend is not None and truncation is not None and backend.truncation != truncation:
            backend.enable_truncation(**truncation)
        if backend is not None and padding is not None and backend.padding != padding:
            backend.enable_padding(**padding)


def _apply(tokenizer: Any, messages: Any, *, chat_template: str | None, **keywords: Any) -> Any:
    check_chat_template(tokenizer, chat_template)
    if chat_template is not None:
        keywords["chat_template"] = chat_template
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **keywords)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "jinja2":
            raise
        roles = [message.get("role") for message in messages]
        raise DataError(
            f"The chat template refuses a prompt with the roles {roles}: {error}. Make the prompts fit the template, "
            "or give another `chat_template`."
        ) from error


def _quiet(tokenizer: Any) -> dict[str, Any]:
    # Tokenizers warn of lengths beyond `model_max_length`, and note it in this attribute. Processors and tokenizers of
    # other makes do neither, and refuse the argument.
    return {"verbose": False} if hasattr(tokenizer, "deprecation_warnings") else {}


def _flat_ids(encoded: Any) -> list[int]:
    ids = encoded["input_ids"] if isinstance(encoded, Mapping) else encoded
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    # A processor answers with a batch of one.
    return ids[0] if ids and isinstance(ids[0], list) else ids
