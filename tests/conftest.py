"""Set before any test imports torch."""

import os

# as the command line does: idle threads that spin make tests slow where other work runs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
