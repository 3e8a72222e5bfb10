"""Run each way of doing a task in its own process, so that they share no memory and no caches."""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MARK = "RESULT "

# A child's peak memory is at least that of the process it was forked from. So a small process starts the command and
# prints its peak.
_PEAK = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, flush=True); sys.exit(code)"
)
TELLS_PEAK = (sys.executable, "-c", _PEAK)  # a prefix for a command


def peak(printed: str) -> float:
    """The peak memory in MiB of a command with the prefix TELLS_PEAK, from its output."""
    return int(re.search(r"^peak (\d+)$", printed, re.MULTILINE)[1]) / 1024


def options(description: str, ways: list[str], add_options: Callable | None = None) -> argparse.Namespace:
    """The command line: folder, ways, and (set by `each`) the way that this process runs.

    add_options: adds a benchmark's own options to the parser.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--alone", choices=ways, help=argparse.SUPPRESS)
    if add_options:
        add_options(parser)
    return parser.parse_args()


def each(
    module: str,
    description: str,
    ways: dict[str, Callable[[Path], dict]],
    limit_s: float | None = None,
    add_options: Callable | None = None,
) -> dict[str, dict]:
    """The results of the chosen ways, by name. In the process of one way: print its result and exit.

    limit_s: a process that takes longer is killed, and its way has failed.
    """
    chosen = options(description, list(ways), add_options)
    if chosen.alone:
        print(MARK + json.dumps(ways[chosen.alone](chosen.folder)), flush=True)
        sys.exit()
    results = {}
    for name in chosen.ways:
        started = time.monotonic()
        command = [sys.executable, "-m", module, *sys.argv[1:], "--alone", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
            lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
            results[name] = (
                json.loads(lines[0].removeprefix(MARK)) if lines else {"failed": done.stderr.strip().split("\n")[-1]}
            )
        except subprocess.TimeoutExpired:
            results[name] = {"failed": f"took longer than {limit_s:.0f} s"}
        shown = {key: value for key, value in results[name].items() if not isinstance(value, list)}
        print(f"{time.monotonic() - started:.0f} s: {name}", json.dumps(shown), file=sys.stderr, flush=True)
    return results
