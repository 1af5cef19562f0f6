"""The miner: takes signed work orders, answers each with a gradient, and keeps no optimizer."""
