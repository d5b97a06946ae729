"""Measurements of rewarm, each a module with an entry point of its own."""
