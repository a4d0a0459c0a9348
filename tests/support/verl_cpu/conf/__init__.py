"""Hydra's file `cpu.yaml`: stock verl on a CPU, with one server for all ranks and as few processes as it can have."""
