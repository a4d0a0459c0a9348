"""Names under which SDPO's values travel in the `info` of OpenRLHF's experiences, the one part that all steps keep."""

from __future__ import annotations

__all__ = ["ACTIVE", "FEEDBACK", "OWN_FIELDS", "RECORD", "SUCCESS", "TEACHER_PROMPT"]

FEEDBACK = "sdpo_feedback"
"""Texts, "" for none: from the sample generator to the experience maker."""

TEACHER_PROMPT = "sdpo_teacher_prompt"
"""What the teacher reads before a response: a list of B int64 tensors, of one token for an inactive row."""

ACTIVE = "sdpo_active"
"""1.0 where the teacher knows more than the student, `[B]`."""

SUCCESS = "sdpo_success"
"""1.0 where the rollout succeeded, `[B]`."""

RECORD = "sdpo_record"
"""The id under which the rollout is recorded, or `NOT_RECORDED`, int64 `[B]`."""

OWN_FIELDS = (TEACHER_PROMPT, ACTIVE, SUCCESS, RECORD)
"""What the experience maker gives to the actor; the host must not take them for metrics."""
