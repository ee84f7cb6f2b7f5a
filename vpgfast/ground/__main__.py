"""``python -m vpgfast.ground``."""

import sys

from vpgfast.ground.command import main

if __name__ == "__main__":
    sys.exit(main())
