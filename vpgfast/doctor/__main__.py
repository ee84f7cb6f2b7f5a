"""``python -m vpgfast.doctor``."""

import sys

from vpgfast.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
