"""Ways of doing a thing, each in a process of its own, so that none leaves memory or warmth to the next."""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MARK = "RESULT "

# A child process counts as large as the one that it was forked from, until it is larger: so a small process starts the
# command whose peak is wanted, and tells it.
_PEAK = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, flush=True); sys.exit(code)"
)
TELLS_PEAK = (sys.executable, "-c", _PEAK)  # before a command


def peak(printed: str) -> float:
    """The peak memory in MiB of a command behind TELLS_PEAK, from what it printed."""
    return int(re.search(r"^peak (\d+)$", printed, re.MULTILINE)[1]) / 1024


def options(description: str, ways: list[str]) -> argparse.Namespace:
    """The command line: folder, ways, and (for `each` alone) the one way that this process is for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--alone", choices=ways, help=argparse.SUPPRESS)
    return parser.parse_args()


def each(module: str, description: str, ways: dict[str, Callable[[Path], dict]]) -> dict[str, dict]:
    """The results of the ways asked for, by name. In a process that is for one way, prints its result and ends."""
    asked = options(description, list(ways))
    if asked.alone:
        print(MARK + json.dumps(ways[asked.alone](asked.folder)), flush=True)
        sys.exit()
    results = {}
    for name in asked.ways:
        started = time.monotonic()
        command = [sys.executable, "-m", module, str(asked.folder), "--alone", name]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        results[name] = json.loads(lines[0].removeprefix(MARK)) if lines else {"failed": done.stderr[-1500:]}
        told = {key: value for key, value in results[name].items() if not isinstance(value, list)}
        print(f"{time.monotonic() - started:.0f} s: {name}", json.dumps(told), file=sys.stderr, flush=True)
    return results
