"""`python -m volseg` is the command line."""

from volseg.cli import main

# Processes that are spawned import this module again.
if __name__ == "__main__":
    main()
