"""Continual pre-training of language models: re-warm the learning rate, and measure what it costs."""

__version__ = "0.1.0"
