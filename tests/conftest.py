"""The fixtures, where tests run: not in the process that deals them out to others (`-n`), which would import all
libraries before those begin to."""

import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ or not any(word.startswith("-n") for word in sys.argv):
    from fixtures import *  # noqa: F403
