"""How a miner computes a gradient from weights and windows."""
