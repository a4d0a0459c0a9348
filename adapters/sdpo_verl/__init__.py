"""SDPO in stock verl 0.9: a trainer mode, workers and a training step, loaded through `verl.plugins`."""
