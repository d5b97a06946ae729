"""Recipes for other trainers: their own settings for a run of ours, and how far their learning rate lies from it."""
