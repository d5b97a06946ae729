"""Documents become tokens, tokens become batches."""
