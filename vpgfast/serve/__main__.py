"""``python -m vpgfast.serve``."""

import sys

from vpgfast.serve.command import main

if __name__ == "__main__":
    sys.exit(main())
