"""How a miner turns weights and windows into a gradient."""
