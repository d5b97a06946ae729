"""One file for each verb, and what sweeps add to them."""
