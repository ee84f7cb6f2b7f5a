"""``python -m vpgfast.train``."""

import sys

from vpgfast.train.command import main

if __name__ == "__main__":
    sys.exit(main())
