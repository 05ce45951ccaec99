"""`python -m modeling_htsat` is the command `htsat`."""

import sys

from .cli import main

sys.exit(main())
