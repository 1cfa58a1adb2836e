"""The command line with the result formats of these tests."""

from tests.node.world import add_formats
from volseg.cli import main

if __name__ == "__main__":
    add_formats()
    main()
