"""``python -m vpgfast.search``."""

import sys

from vpgfast.search.command import main

if __name__ == "__main__":
    sys.exit(main())
