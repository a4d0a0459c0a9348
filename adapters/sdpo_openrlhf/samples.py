"""OpenRLHF's sample generator, which also carries feedback texts from rewards to the experience maker."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from sdpo_openrlhf.feedback import checked_response
from sdpo_openrlhf.fields import FEEDBACK

__all__ = ["SDPOSamplesGenerator"]


class SDPOSamplesGenerator(SamplesGenerator):
    """Takes `feedback` out of what a reward function or an agent returns, before the host makes tensors of the rest."""

    def _process_response_into_experience(self, response: Any, **generate_kwargs: Any) -> Experience:
        # The host names an agent as its reward URL too.
        checked, text = checked_response(response, judged=bool(self.args.reward.remote_url))
        experience = super()._process_response_into_experience(checked, **generate_kwargs)
        experience.info[FEEDBACK] = [text]
        return experience
