"""Attacks of hostile miners, each registered by name in `registry`."""
