"""``python -m vpgfast.evaluate``."""

import sys

from vpgfast.evaluate.command import main

if __name__ == "__main__":
    sys.exit(main())
