"""`python -m rewarm` is the `rewarm` command."""

from rewarm.cli import main

if __name__ == "__main__":
    main()
