"""The same work done by other trainers, each a script that needs nothing of rewarm.

Each takes a file of windows (int64, of shape (steps, batch, context + 1), as `numpy.save` writes it), trains a
GPT-NeoX of the same shape on them with AdamW and gradient clip 1.0, one batch a step, and prints one line of JSON:
`tokens_per_second` over the steps after the first few, and `losses`, one a step.
"""
