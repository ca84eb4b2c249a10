"""`python -m dist_train` is `dist-train`."""

import sys

from dist_train.cli import main

sys.exit(main())
