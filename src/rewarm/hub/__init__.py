"""The hub: commits, listings and files of model and dataset repositories, through the hub's own libraries."""
