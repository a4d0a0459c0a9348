"""Records of a run: metrics of each step, and sampled rollouts with what student and teacher think of each token.

Every adapter writes the same files; `sdpo report` and `sdpo plot` read them. `sdpo_plugins.records.capture`, which
computes the token values, alone needs torch.
"""

from sdpo_plugins.records.files import BoundedLines, read_lines
from sdpo_plugins.records.lines import (
    FORMAT,
    NOT_RECORDED,
    TokenValues,
    chosen_rows,
    record_id,
    rollout_line,
    token_line,
)
from sdpo_plugins.records.pieces import Pieces
from sdpo_plugins.records.reading import (
    FOLDER,
    RecordedRollout,
    RunRecords,
    Step,
    find_runs,
    fingerprint,
    read_run,
)
from sdpo_plugins.records.recorder import RunRecorder, record_folder
from sdpo_plugins.records.sections import marked_prompt, plain_text

__all__ = [
    "FOLDER",
    "FORMAT",
    "NOT_RECORDED",
    "BoundedLines",
    "Pieces",
    "RecordedRollout",
    "RunRecorder",
    "RunRecords",
    "Step",
    "TokenValues",
    "chosen_rows",
    "find_runs",
    "fingerprint",
    "marked_prompt",
    "plain_text",
    "read_lines",
    "read_run",
    "record_folder",
    "record_id",
    "rollout_line",
    "token_line",
]
