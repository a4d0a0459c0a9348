"""Hydra's files: `sdpo.yaml` for `--config-name sdpo`, and `sdpo/<name>.yaml` for `+sdpo=<name>`.

They are written by `python -m sdpo_verl.conf.files` from `SDPOConfig` and the presets, where the values stand.
"""
