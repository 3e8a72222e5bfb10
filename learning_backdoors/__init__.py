"""Learning Backdoors: train, sample, judge and evaluate checkpoints of narrow fine-tuning runs.

The scripts in the project's root are the user interface. This package holds their parts, one folder per stage.
"""

import os
import signal
import sys
from pathlib import Path


def _exit_on_interrupt(*_) -> None:
    """Ctrl-C while a script imports libraries: end without a traceback. run_script handles later interruptions."""
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


# Only in a script of the project, and only if Ctrl-C would raise an exception: `nohup` ignores it.
_script = getattr(sys.modules["__main__"], "__file__", None)
_in_project = _script is not None and Path(_script).resolve().parent == Path(__file__).resolve().parents[1]
if _in_project and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _exit_on_interrupt)
