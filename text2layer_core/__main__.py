"""`python -m text2layer_core PROMPT`: from a prompt to layers (the paper's figure 1, in a terminal)."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
