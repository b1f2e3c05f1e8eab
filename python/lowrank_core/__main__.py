"""`python -m lowrank_core` is the command line `lowrank-core`."""

import sys

from lowrank_core.cli import main

sys.exit(main())
