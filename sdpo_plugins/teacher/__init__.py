"""Teachers: the weights that re-score the student's answers, how they follow the student, and their
checkpoints."""

from sdpo_plugins.teacher.base import Teacher
from sdpo_plugins.teacher.checkpoint import check_holds_teacher, load_teacher, save_teacher
from sdpo_plugins.teacher.named import Distance, check_same_names, copy_named, distance, lerp_named_
from sdpo_plugins.teacher.passes import Pass, mix_passes
from sdpo_plugins.teacher.strategies import Ema, Frozen, Live, LoraEma, TrustRegion
from sdpo_plugins.teacher.tensors import LocalTensors, clean_name, local_tensors, release_gathered, swapped

__all__ = [
    "Distance",
    "Ema",
    "Frozen",
    "Live",
    "LocalTensors",
    "LoraEma",
    "Pass",
    "Teacher",
    "TrustRegion",
    "check_holds_teacher",
    "check_same_names",
    "clean_name",
    "copy_named",
    "distance",
    "lerp_named_",
    "load_teacher",
    "local_tensors",
    "mix_passes",
    "release_gathered",
    "save_teacher",
    "swapped",
]
