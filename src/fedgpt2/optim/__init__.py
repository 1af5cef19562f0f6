"""The validator's optimizer and its learning rate; miners never import this room."""
