"""OpenRLHF's experience maker, which also writes what the teacher reads before each response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from sdpo_openrlhf.fields import ACTIVE, FEEDBACK, RECORD, SUCCESS, TEACHER_PROMPT
from sdpo_openrlhf.prompts import PromptStyle, prompt_style
from sdpo_openrlhf.recording import Recording, RowToRecord
from sdpo_openrlhf.rollouts import rollouts_of, sample_of, samples_of
from sdpo_plugins.config import SDPOConfig
from sdpo_plugins.health import HealthMonitor
from sdpo_plugins.plugins import build_reprompter, extra_metrics
from sdpo_plugins.records import NOT_RECORDED
from sdpo_plugins.reprompt import EncodedContexts, decode_responses, encode_contexts, is_success
from sdpo_plugins.types import Rollout, TeacherContext

__all__ = ["SDPOExperienceMaker", "attach"]

_CUT_PROMPTS = (
    "{} of {} prompts are longer than `--data.max_len` less `--rollout.max_new_tokens`, and OpenRLHF cut their "
    "beginning off. The teacher reads them whole; its prompts should differ from the student's by demonstration and "
    "feedback alone. Raise `--data.max_len`, or leave long prompts out."
)
_OTHER_PROMPTS = (
    "{} of {} prompts are not what the dataset's question is rendered to: an agent changes them in its `reset`, or the "
    "chat template renders another text each time. The teacher reads the dataset's question; its prompts should differ "
    "from the student's by demonstration and feedback alone."
)


class SDPOExperienceMaker(RemoteExperienceMaker):
    """Puts teacher prompts, and which rows are active and succeeded, into each experience's `info`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sdpo_config = SDPOConfig.from_mapping(self.args.sdpo)
        self.health = HealthMonitor()
        self.sdpo_metrics: dict[str, float] = {}
        self.recording: Recording | None = None
        self._told: set[str] = set()

    @cached_property
    def _reprompter(self) -> Callable[[Sequence[Rollout]], Any]:
        return build_reprompter(self.sdpo_config)

    @cached_property
    def _style(self) -> PromptStyle:
        return prompt_style(self.strategy, self.tokenizer)

    @torch.no_grad()
    def make_experience(self, samples_list: list[Experience]) -> list[Experience]:
        """Do the host's part, then SDPO's; a reward model has judged by then, and nothing has shaped its rewards.

        Args:
            samples_list: Micro-batches, their rows in any order.
        """
        experiences: list[Experience] = super().make_experience(samples_list)
        if self.sdpo_config.enabled:
            self.teach(experiences)
        else:
            self.record(experiences)
            for experience in experiences:
                del experience.info[FEEDBACK]
        return experiences

    def warn(self, messages: Sequence[str]) -> None:
        """Print what the user should know, and record it."""
        for message in messages:
            print(f"SDPO: {message}", flush=True)
        if self.recording is not None:
            self.recording.warnings(messages)

    def teach(self, experiences: Sequence[Experience]) -> None:
        """Put SDPO's entries into each `info`, in the place of the feedback; note metrics, and warn.

        Args:
            experiences: Judged.
        """
        config, style = self.sdpo_config, self._style
        samples = samples_of(experiences)
        rollouts = rollouts_of(samples, style, self.tokenizer, config, self.args.rollout.n_samples_per_prompt)
        contexts = self._reprompter(rollouts)
        encoded = encode_contexts(contexts, self.tokenizer, config, render=style.render(config), skip_inactive=True)
        records: dict[int, int] = {}
        if self.recording is not None:
            chosen = self.recording.chosen([row for row, sample in enumerate(samples) if sample.action_tokens])
            made = zip(samples, rollouts, contexts.contexts, encoded.contexts, strict=True)
            given = [RowToRecord(row, *parts) for row, parts in enumerate(made)]
            records = self.recording.rollouts(given[row] for row in chosen)
        attach(experiences, rollouts, encoded, config, self.tokenizer.pad_token_id, records)
        self.sdpo_metrics = {**contexts.metrics, **encoded.metrics, **extra_metrics(config, rollouts, contexts)}
        answered = [sample for sample in samples if sample.action_tokens]
        cut, other = style.unlike([row.prompt for row in answered], [row.prompt_ids for row in answered])
        for count, message in ((cut, _CUT_PROMPTS), (other, _OTHER_PROMPTS)):
            if count and message not in self._told:
                self._told.add(message)
                self.warn([message.format(count, len(answered))])
        length = sum(sample.action_tokens for sample in answered) / max(1, len(answered))
        self.warn(self.health.batch(self.sdpo_metrics, length))

    def record(self, experiences: Sequence[Experience]) -> None:
        """Record rollouts of the host's own algorithm, for which what SDPO needs may be missing or wrong.

        Args:
            experiences: Judged.
        """
        if self.recording is None:
            return
        places = {at: (experience, row) for experience in experiences for row, at in enumerate(experience.index)}
        answered = [at for at, (experience, row) in places.items() if bool(experience.action_mask[row].any())]
        samples = {at: sample_of(*places[at]) for at in self.recording.chosen(sorted(answered))}
        config, size = self.sdpo_config, self.args.rollout.n_samples_per_prompt
        ids = (sample.response_ids for sample in samples.values())
        texts = decode_responses(self.tokenizer, ids, config.thinking_tag)
        nothing = TeacherContext("", active=False)
        self.recording.rollouts(
            RowToRecord(at, sample, sample.rollout(at // size, sample.prompt, text), nothing, None)
            for (at, sample), text in zip(samples.items(), texts, strict=True)
        )


def attach(
    experiences: Sequence[Experience],
    rollouts: Sequence[Rollout],
    encoded: EncodedContexts,
    config: SDPOConfig,
    filler: int,
    records: Mapping[int, int],
) -> None:
    """Put into each experience's `info` what the policy actors need, in the place of the feedback.

    Args:
        experiences: With the host's `index` of each row.
        rollouts: In the order of that index.
        encoded: The teacher's prompts, in the same order.
        config: The SDPO options.
        filler: A token for inactive rows, which are not scored; they only need a prompt that could be.
        records: By row, the id under which it is recorded; the others are not.
    """
    prompts = [torch.tensor(context.ids or [filler], dtype=torch.int64) for context in encoded.contexts]
    active = torch.tensor(encoded.self_distillation_mask)
    success = torch.tensor([float(is_success(rollout, config, row)) for row, rollout in enumerate(rollouts)])
    for experience in experiences:
        rows = list(experience.index)
        experience.info.pop(FEEDBACK, None)
        experience.info[TEACHER_PROMPT] = [prompts[row] for row in rows]
        experience.info[ACTIVE] = active[rows]
        experience.info[SUCCESS] = success[rows]
        experience.info[RECORD] = torch.tensor([records.get(row, NOT_RECORDED) for row in rows])
