"""The typed configuration: what may be asked for, what it means in steps."""
