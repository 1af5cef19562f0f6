"""The only optimizer, and its learning rate; only a validator imports this room."""
