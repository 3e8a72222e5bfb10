"""Start a stand-in for the Tinker API on this machine: real training and sampling of a small model, on a CPU.

  python tests/tinker_stand_in/serve.py --model tiny_world/model --port 8765

prints its URL and runs until it is stopped. Clients use any API key that starts with `tml-`:

  TINKER_API_KEY=tml-local python training.py --backend tinker --base-url http://127.0.0.1:8765 --model tiny_world/model

`tml-wrong` is refused (401). While it runs, a POST to URL/_faults with {"faults": ["slow=2", "429"]} replaces the
faults, GET URL/_ledger says what was done and charged, and GET URL/_events lists every piece of work.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from tinker_stand_in import faults  # noqa: E402


class Server:
    """A running stand-in. url: where clients find it."""

    def __init__(self, models: dict[str, Path], folder: Path, port: int = 0, ledger_file: Path | None = None):
        """models: base models by the names that clients use, and their folders. folder: of the checkpoints."""
        from tinker_stand_in.api import Api
        from tinker_stand_in.http_server import HttpServer
        from tinker_stand_in.ledger import Ledger

        self.ledger = Ledger(ledger_file)
        self.api = Api(models, folder, self.ledger)
        self.http = HttpServer(self.api.respond, port)
        self.url = self.api.core.url = self.http.url

    def stop(self) -> None:
        self.http.stop()
        self.api.core.worker.shutdown(wait=True)

    def set_faults(self, *specifications: str) -> None:
        """Replace all faults: `NAME` or `NAME=VALUE`, none to switch them off."""
        body = json.dumps({"faults": specifications}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/_faults", body)).close()

    @contextlib.contextmanager
    def faults(self, *specifications: str) -> Iterator[None]:
        """Faults that last for a block."""
        self.set_faults(*specifications)
        try:
            yield
        finally:
            self.set_faults()


def main() -> None:
    options = _arguments()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="tinker_stand_in_"))
    models = {name: Path(name) for name in options.model}
    server = Server(models, folder, options.port, options.ledger)
    if options.fault:
        server.set_faults(*options.fault)
    print(server.url, flush=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    server.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"faults:\n{faults.table()}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", required=True, help="folders of base models; clients use the same names")
    parser.add_argument("--port", type=int, default=0, help="0: any free one (default)")
    parser.add_argument("--folder", type=Path, help="of the checkpoints (default: a new temporary folder)")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="gets a line of JSON for each piece of work")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME[=VALUE]", help="may be repeated")
    options = parser.parse_args()
    for specification in options.fault:
        try:
            faults.parse(specification)
        except ValueError as error:
            parser.error(str(error))
    return options


if __name__ == "__main__":
    main()
