"""What the teacher reads: who demonstrates, the templates, truncation, and tokenisation. No torch here."""

from sdpo_plugins.reprompt.contexts import build_teacher_contexts, build_template, is_success, reaches
from sdpo_plugins.reprompt.decoding import decode_responses, thinking_opened
from sdpo_plugins.reprompt.encode import (
    EncodedContext,
    EncodedContexts,
    encode_context,
    encode_contexts,
    encoding_metrics,
)
from sdpo_plugins.reprompt.messages import prompt_problem
from sdpo_plugins.reprompt.rendering import check_chat_template, make_render, rendered_text
from sdpo_plugins.reprompt.selectors import build_best_reward, build_first, build_random, build_shortest
from sdpo_plugins.reprompt.thinking import opens_thinking, remove_thinking, thinking_is_unclosed
from sdpo_plugins.reprompt.validate import check_prompts, long_prompts

__all__ = [
    "EncodedContext",
    "EncodedContexts",
    "build_best_reward",
    "build_first",
    "build_random",
    "build_shortest",
    "build_teacher_contexts",
    "build_template",
    "check_chat_template",
    "check_prompts",
    "decode_responses",
    "encode_context",
    "encode_contexts",
    "encoding_metrics",
    "is_success",
    "long_prompts",
    "make_render",
    "opens_thinking",
    "prompt_problem",
    "reaches",
    "remove_thinking",
    "rendered_text",
    "thinking_is_unclosed",
    "thinking_opened",
]
