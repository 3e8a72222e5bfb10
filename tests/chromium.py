"""Headless Chromium, driven through the pipes of its debugging protocol. Needs no package besides Chromium."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--remote-debugging-pipe"]


class Chromium:
    """One page. `errors` collects console errors, uncaught exceptions, and requests to a network."""

    def __enter__(self) -> "Chromium":
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (browser_in, self.out), (self.answers, browser_out) = os.pipe(), os.pipe()
        command = f'exec "$0" "$@" 3<&{browser_in} 4>&{browser_out}'
        arguments = [BINARY, *SWITCHES, f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", command, *arguments], pass_fds=(browser_in, browser_out), stderr=subprocess.DEVNULL
        )
        os.close(browser_in)
        os.close(browser_out)
        self.buffer, self.number, self.errors, self.session = b"", 0, [], None
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *exception) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.answers)
        self.profile.cleanup()

    def call(self, method: str, **parameters) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(self.out, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self.buffer:
            read = os.read(self.answers, 1 << 20)
            assert read, "Chromium ended"
            self.buffer += read
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict) -> None:
        kind, details = event.get("method"), event.get("params", {})
        console_error = kind == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning")
        log_error = kind == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning")
        url = details.get("request", {}).get("url", "") if kind == "Network.requestWillBeSent" else ""
        if console_error or log_error or kind == "Runtime.exceptionThrown" or url.startswith("http"):
            self.errors.append(details)

    def open(self, path: Path, view: str = "") -> None:
        """Load a report from disk and wait until its browser of responses is ready."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.resolve().as_uri() + view)
        ready = "document.body?.dataset.ready ? done() : setTimeout(look, 20)"
        self.run(f"new Promise((done) => {{ const look = () => {ready}; look(); }})")

    def run(self, script: str):
        """The value of a JavaScript expression. Waits for promises."""
        outcome = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in outcome, outcome["exceptionDetails"]
        return outcome["result"].get("value")

    def choose(self, field: str, value: str) -> None:
        self.run(
            f"(() => {{ const f = document.getElementById('f-{field}'); f.value = {json.dumps(value)};"
            "f.dispatchEvent(new Event(f.type === 'search' ? 'input' : 'change')); })()"
        )

    def press(self, key: str) -> None:
        self.run(
            f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{ key: {json.dumps(key)}, bubbles: true }}))"
        )

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
