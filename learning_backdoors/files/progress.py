"""Progress bars."""

import sys


def progress_bar(title: str, total: int, done: int, unit: str):
    """A tqdm bar that updates every second on a terminal and every 20 seconds in a log file."""
    from tqdm import tqdm

    seconds = 1 if sys.stderr.isatty() else 20
    return tqdm(desc=title, total=total, initial=done, unit=unit, mininterval=seconds, dynamic_ncols=True)
