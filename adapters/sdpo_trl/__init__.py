"""SDPO for TRL: a drop-in for `GRPOTrainer`.

Example:
    >>> from sdpo_trl import SDPOConfig, SDPOTrainer, SDPOTrainingArguments
"""

from sdpo_plugins.config import SDPOConfig
from sdpo_trl.arguments import SDPOTrainingArguments
from sdpo_trl.records import RecordCallback
from sdpo_trl.trainer import SDPOTrainer

__all__ = ["RecordCallback", "SDPOConfig", "SDPOTrainer", "SDPOTrainingArguments"]
