"""What a process that works on a cluster says by its exit code, ``dd_core.jobs.pod`` above all."""

from typing import Final

TASKS_FAILED: Final = 42  # and their outcomes say why
TRY_AGAIN: Final = 75  # other machines of the same job are gone
NO_JOB_FILE: Final = 78  # on the data root; so it is for every other machine
KILLED: Final = 137  # by SIGKILL: for want of memory, unless somebody says otherwise
TOLD_TO_END: Final = 143  # by SIGTERM
# Those would come again on every machine: of Python, an exception or a wrong command line; of bash, a program that
# cannot be executed, or is not there.
DEFECTS: Final = (1, 2)
NOT_STARTED: Final = (126, 127)
