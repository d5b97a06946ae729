"""The training loop and what it stands on: precision, state, checkpoints."""
