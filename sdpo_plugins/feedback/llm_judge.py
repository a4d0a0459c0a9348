"""The scorer `llm_judge`: a language model behind an OpenAI-compatible server gives the reward and the feedback.

A judge is no test. It can be talked into a good score by the answer it judges, it errs in its own way, and a policy
that is trained on it learns what it likes. Where something can be tested, test it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdpo_plugins._options import option
from sdpo_plugins.errors import ConfigError, DataError, SDPOError
from sdpo_plugins.feedback._judge_texts import PROMPT, SYSTEM, Unreadable, filled, read_verdict, template_problems
from sdpo_plugins.feedback._slots import Slots
from sdpo_plugins.feedback.rows import was_truncated
from sdpo_plugins.types import Score

if TYPE_CHECKING:
    from sdpo_plugins.config import SDPOConfig

__all__ = ["PROMPT", "JudgeError", "LLMJudgeOptions", "build_llm_judge"]

_REFUSALS = (401, 403, 404)


class JudgeError(SDPOError):
    """The judge's server refuses, fails, or gives replies that cannot be read."""


class _RefusedError(JudgeError):
    """It will refuse every request: no answer gets a neutral score for that."""


@dataclass(frozen=True)
class LLMJudgeOptions:
    """Options of the scorer `llm_judge`."""

    model: str | None = option(None, "The judge's name on its server; must be given.")
    base_url: str | None = option(
        None, "Address of an OpenAI-compatible server, such as http://localhost:8000/v1; null: OpenAI's own."
    )
    api_key_env: str | None = option(
        None, "Environment variable that holds the key, never the key itself; null: no key, as for a local server."
    )
    prompt: str | None = option(
        None,
        "What the judge is asked: a template with {response} and, where wanted, {question}, {truth} and {scale}; null: "
        "`PROMPT`, which has all of them.",
    )
    question_field: str = option("prompt", "Field of the row with the question: a text, or chat messages.")
    truth_field: str = option("ground_truth", "Field of the row with the right answer.")
    scale: float = option(
        1.0, "The judge's highest score; the reward is its score divided by this.", low=0, exclusive=True
    )
    reveal_truth: bool = option(False, "Let the feedback name the right answer; otherwise it is blotted out.")
    temperature: float = option(0.0, "Of the judge.", low=0)
    max_tokens: int = option(1024, "Tokens of a reply at most.", low=1)
    max_chars: int = option(2000, "Characters of the feedback at most.", low=1)
    max_response_chars: int = option(40000, "Characters of an answer that the judge is shown at most.", low=100)
    json_mode: bool = option(True, "Ask the server for JSON, unless it turns out not to know `response_format`.")
    seconds: float = option(30.0, "Time for one request.", low=0, exclusive=True)
    max_retries: int = option(
        3, "How often a request is sent again after a time-out, an error of the server or an unreadable reply.", low=0
    )
    max_concurrent: int = option(8, "Requests at once, over all processes of this user on this machine.", low=1)
    on_failure: str = option(
        "error",
        "What happens when the retries are used up: the run ends, or the answer gets `neutral_score` and no feedback.",
        choices=("error", "neutral"),
    )
    neutral_score: float = option(0.0, "Reward of an answer that could not be judged, with `on_failure: neutral`.")

    def __post_init__(self) -> None:
        problems = [] if self.prompt is None else template_problems(self.prompt)
        if not self.model:
            problems.append("`model` is missing: name the judge's model as its server calls it.")
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            problems.append(
                f"`api_key_env` names the environment variable {self.api_key_env[:40]!r}, which is not set. Set it to "
                "the key in the environment of the run; the option never holds the key itself."
            )
        if problems:
            raise ConfigError(problems)


def build_llm_judge(config: SDPOConfig, options: LLMJudgeOptions) -> Callable[[str, Mapping[str, Any]], Score]:
    """Return score(response, sample) → `Score`.

    Args:
        config: Not needed.
        options: Of the scorer.

    Raises:
        ConfigError: The package `openai` is not installed.
    """
    return _Judge(options)


class _Judge:
    def __init__(self, options: LLMJudgeOptions) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError(
                "The scorer 'llm_judge' needs the package `openai`: pip install 'sdpo-plugins[judge]'."
            ) from error
        self._options = options
        self._prompt = PROMPT if options.prompt is None else options.prompt
        self._openai: Any = openai
        # The client sends a request again after 408, 409, 429 and 5xx, after time-outs and broken connections, and
        # waits as long as the server's Retry-After asks for.
        self._client = openai.OpenAI(
            api_key=os.environ[options.api_key_env] if options.api_key_env else "none",
            base_url=options.base_url,
            timeout=options.seconds,
            max_retries=options.max_retries,
        )
        self._json = options.json_mode
        self._slots = Slots(str(self._client.base_url), options.max_concurrent)

    def __call__(self, response: str, sample: Mapping[str, Any]) -> Score:
        options = self._options
        messages = self._messages(response, sample)
        failed = 0.0
        try:
            score, text = self._ask(messages)
            reward = score / options.scale
        except JudgeError as error:
            if options.on_failure == "error" or isinstance(error, _RefusedError):
                raise
            reward, text, failed = options.neutral_score, "", 1.0
        if text and not options.reveal_truth:
            text = blotted(text, sample.get(options.truth_field))
        text = text if len(text) <= options.max_chars else text[: options.max_chars - 1].rstrip() + "…"
        details = {"acc": reward, "judge_failed": failed, "truncated": float(was_truncated(sample))}
        return Score(reward, text or None, details)

    def _messages(self, response: str, sample: Mapping[str, Any]) -> list[dict[str, str]]:
        options = self._options
        response = response.encode("utf-8", "replace").decode("utf-8")  # half a character cannot be sent
        half = options.max_response_chars // 2
        if len(response) > options.max_response_chars:
            response = f"{response[:half]}\n[… {len(response) - 2 * half} characters left out …]\n{response[-half:]}"
        # No answer can hold the digest of itself, and so none can write the mark that ends it.
        mark = "ANSWER-" + hashlib.sha256(response.encode("utf-8")).hexdigest()[:16]
        values = {"response": f"<{mark}>\n{response}\n</{mark}>", "scale": f"{options.scale:g}"}
        for name, field in (("question", options.question_field), ("truth", options.truth_field)):
            if "{" + name + "}" in self._prompt:
                if sample.get(field) is None:
                    raise DataError(
                        f"The judge's prompt shows {{{name}}}, but the row has no field {field!r}; it has "
                        f"{', '.join(map(repr, sample)) or 'none'}. Set `{name}_field`, or leave it out of `prompt`."
                    )
                values[name] = text_of(sample[field])
        hush = "" if options.reveal_truth else " Never write the right answer in the feedback."
        return [
            {"role": "system", "content": SYSTEM + hush},
            {"role": "user", "content": filled(self._prompt, values)},
        ]

    def _ask(self, messages: list[dict[str, str]]) -> tuple[float, str]:
        """Return the judge's score and text; ask again while its reply cannot be read."""
        options = self._options
        problem = ""
        for _ in range(options.max_retries + 1):
            reply = self._reply(messages)
            try:
                return read_verdict(reply, options.scale)
            except Unreadable as error:
                problem = str(error)
        raise JudgeError(
            f"The judge {options.model!r} gave {options.max_retries + 1} replies that cannot be read, the last: "
            f"{problem}. Ask for the JSON in `prompt`, raise `max_tokens`, or set `on_failure: neutral`."
        )

    def _reply(self, messages: list[dict[str, str]]) -> str:
        options, openai = self._options, self._openai
        request: dict[str, Any] = {
            "model": options.model,
            "messages": messages,
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
        }
        try:
            with self._slots.one():
                done = self._completion(request)
        except openai.APITimeoutError as error:
            raise self._failure(f"did not answer within {options.seconds:g} s") from error
        except openai.APIConnectionError as error:
            raise self._failure(f"cannot be reached ({error.__cause__ or error})") from error
        except openai.APIStatusError as error:
            said = f"answered with status {error.status_code}: {error.message[:300]}"
            kind = _RefusedError if error.status_code in _REFUSALS else JudgeError
            raise self._failure(said, kind) from error
        except openai.OpenAIError as error:
            raise self._failure(f"gave something that is no chat completion: {error}") from error
        except json.JSONDecodeError:
            return ""  # a page of a proxy, for example: no verdict, so ask again
        choices = getattr(done, "choices", None)
        return str(getattr(choices[0].message, "content", None) or "") if choices else ""

    def _completion(self, request: dict[str, Any]) -> Any:
        create: Any = self._client.chat.completions.create
        if self._json:
            try:
                return create(**request, response_format={"type": "json_object"})
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
                if "response_format" not in str(error):
                    raise
                self._json = False
        return create(**request)

    def _failure(self, what: str, kind: type[JudgeError] = JudgeError) -> JudgeError:
        return kind(
            f"The judge's server {self._client.base_url} {what}. See that it runs, and that `model` and `api_key_env` "
            "are right."
        )


def text_of(value: Any) -> str:
    """Return the text of a question or truth: a text itself, or chat messages one after another.

    Example:
        >>> text_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}])
        'Be brief.\\n\\n2 + 2?'
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, Mapping) for each in value):
        contents = [each.get("content") for each in value]
        if all(isinstance(content, str) for content in contents):
            return "\n\n".join(str(content) for content in contents)
    return value if isinstance(value, str) else str(value)


def blotted(text: str, truth: Any) -> str:
    """Blot out the right answer where it stands in a text as a word of its own.

    Example:
        >>> blotted("It is 42, not 421.", "42")
        'It is […], not 421.'
    """
    word = "" if truth is None else text_of(truth).strip()
    if not word:
        return text
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "[…]", text, flags=re.IGNORECASE)
