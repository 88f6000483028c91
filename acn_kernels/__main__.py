"""``python -m acn_kernels``: the command acn-kernels."""

import sys

from acn_kernels.cli import main

sys.exit(main())
