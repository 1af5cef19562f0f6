"""Durable files: atomic writes, checkpoints, buffers mapped from disk."""
