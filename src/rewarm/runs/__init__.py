"""Runs that were made: their folders and what they came to."""
