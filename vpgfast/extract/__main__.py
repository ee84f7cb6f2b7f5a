"""``python -m vpgfast.extract``."""

import sys

from vpgfast.extract.command import main

if __name__ == "__main__":
    sys.exit(main())
