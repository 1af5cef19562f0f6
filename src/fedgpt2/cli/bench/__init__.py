"""Measurements against baselines; each module has `run(preset, repeats, as_json) -> int`."""
