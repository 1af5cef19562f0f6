"""Miners that lie, to see what becomes of it."""
