"""Makes .venv: which packages of requirements.lock a machine needs, how they get there, and how far it is.

This runs before anything is installed, so the standard library suffices; only writing the lock file needs more.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever has an older one gets a sentence
    sys.exit("Python 3.11 or newer is needed; set PYTHON=...")
