"""``python -m qcheck.device``, and the entry of verify.pyz."""

import sys

from .main import main

sys.exit(main())
