"""What OpenRLHF lacks to run on a machine without accelerators. For tests and the CPU demo; no part of the adapter.

A whole run, with Ray, vLLM and DeepSpeed, goes through `openrlhf_cpu.run.run`. It puts the folder `site` on the path of
every process, whose `sitecustomize` calls `openrlhf_cpu.hooks.install`. A test that uses OpenRLHF's modules in its own
process calls that function itself, before it imports any of them.

`openrlhf_cpu.data` writes the embedded tasks as OpenRLHF's data files, `openrlhf_cpu.reward` grades them.
"""
