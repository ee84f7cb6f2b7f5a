"""``python -m vpgfast.find``."""

import sys

from vpgfast.find.command import main

if __name__ == "__main__":
    sys.exit(main())
