"""``python -m vpgfast.annotations``."""

import sys

from vpgfast.annotations.command import main

if __name__ == "__main__":
    sys.exit(main())
