"""The validator: holds the model and the only optimizer, and runs the round."""
