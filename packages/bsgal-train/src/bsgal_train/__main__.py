"""Run the command line as `python -m bsgal_train`."""

import sys

from bsgal_train.cli import main

sys.exit(main())
