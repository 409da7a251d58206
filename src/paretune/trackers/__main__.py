"""`python -m paretune.trackers RUN NAME SETTINGS`: the process of one tracker, started by the run."""

import os
import sys

from paretune.trackers.process import main

code = main(sys.argv[1:])
sys.stdout.flush()
# Threads of a library that never end would keep the process.
os._exit(code)
