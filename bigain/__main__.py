"""`python -m bigain`."""

import sys

from bigain.cli import main

if __name__ == "__main__":
    sys.exit(main())
