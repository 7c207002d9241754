"""Set before any test imports torch."""

import os
import signal

# as the command line does: idle threads that spin make tests slow where other work runs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    # what tests compute is small, and threads of several processes would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell starts background jobs with Ctrl-C ignored, and what tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
