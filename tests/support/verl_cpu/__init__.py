"""What stock verl lacks to run on a machine without accelerators. For tests and the CPU demo; no part of the adapter.

verl loads `verl_cpu.cpu_platform` itself, before anything asks for a platform: `VERL_PLATFORM=cpu` and
`VERL_USE_EXTERNAL_MODULES=verl_cpu.cpu_platform`. Engines are registered by importing `verl_cpu.engine`.

A whole run, with Ray, goes through `verl_cpu.run.run`, which also names `verl_cpu.hooks` to verl: the modes `sync` and
`sdpo` then run on a CPU, with the rollout server `hf_cpu`. `verl_cpu.data` writes the embedded tasks as verl's parquet,
`verl_cpu.reward` grades them.
"""
