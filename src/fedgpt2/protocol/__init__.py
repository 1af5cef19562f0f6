"""The wire: messages, their bytes, and the layout of tensors. No sockets, no keys, no torch.

docs/protocol.md is the normative text; this room is its implementation.
"""
