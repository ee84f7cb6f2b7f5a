"""``python -m vpgfast.ablate``."""

import sys

from vpgfast.ablate.command import main

if __name__ == "__main__":
    sys.exit(main())
