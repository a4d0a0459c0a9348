"""`python -m openrlhf_cpu.driver MODULE FLAGS…`: start Ray on the loopback device, then run a module as Python would.

OpenRLHF takes a Ray that runs already as it is.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback

import ray

from sdpo_openrlhf.train import RAY_VARIABLES

# Slots, not processors: Ray hands out as many places as it is told there are.
_CPUS, _GPUS = 16, 8
_OBJECT_STORE_BYTES = 2**27


def main() -> int:
    """Run the module that the command line names, in a Ray of its own.

    Returns:
        The exit code that Python would give.
    """
    module = sys.argv[1]
    for name, value in RAY_VARIABLES.items():  # as the launcher does for the Ray that it starts itself
        os.environ.setdefault(name, value)
    ray.init(
        num_cpus=_CPUS,
        num_gpus=_GPUS,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ["OPENRLHF_CPU_RAY_FOLDER"],
    )
    del sys.argv[0]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # What Python itself would still do takes it ten seconds and more, with these libraries.
    os._exit(code)
