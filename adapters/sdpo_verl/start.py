"""The check that Hydra runs in the launching process, before verl starts Ray."""

from __future__ import annotations

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from sdpo_plugins.errors import SDPOError
from sdpo_verl.installation import check_loaded, check_version

__all__ = ["CheckBeforeStart"]


class CheckBeforeStart(Callback):
    """Checks verl and settles the configuration before anything starts: `hydra.callbacks` of our files."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check and settle, or end the program with the list of problems.

        Args:
            config: Hydra's and verl's; the run gets a copy of it.
            kwargs: Hydra's others.

        Raises:
            SystemExit: There are problems. Hydra turns any other error of a callback into a warning.
        """
        try:
            check_version()
            # Only now: it imports names that another verl may not have.
            from sdpo_verl.config import settle

            settle(config)
            if OmegaConf.select(config, "trainer.v1.trainer_mode") == "sdpo":
                check_loaded()
        except SDPOError as error:
            sys.exit(f"SDPO: {error}")
        except Exception as error:
            # Hydra would warn of this and go on to start Ray, without a check.
            raise SystemExit(f"SDPO: the check before the start failed: {type(error).__name__}: {error}") from error
