"""The model: its weights, attention and loss."""
