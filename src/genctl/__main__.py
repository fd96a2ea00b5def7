"""`python -m genctl` is `genctl`."""

import sys

from genctl.cli import main

sys.exit(main())
