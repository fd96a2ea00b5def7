"""`python widths_program.py COMMAND...`: a command of genctl, once for each width of its terminal."""

import os
import sys

from genctl import cli

WIDTHS = (80, 120, 200)

if __name__ == "__main__":
    for columns in WIDTHS:
        os.environ["COLUMNS"] = str(columns)
        code = cli.main(sys.argv[1:])
        sys.stdout.write(f"\f{code}\f")
        sys.stdout.flush()
