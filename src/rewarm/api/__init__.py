"""What Python programs use: our learning rates in any loop, our scores in a Trainer, our runs as a table."""
