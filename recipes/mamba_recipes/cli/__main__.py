"""`python -m mamba_recipes.cli` is `mamba-apps`."""

import sys

from mamba_recipes.cli.front import main

if __name__ == "__main__":
    sys.exit(main())
