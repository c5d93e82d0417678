"""`python -m keras_private`: the same as the command keras-private."""

from __future__ import annotations

import sys

from keras_private.cli import main

if __name__ == "__main__":
    sys.exit(main())
