"""How many samples may be in flight at a server: as many as make it faster."""

import time

START = 32
GAIN = 1.1  # in tokens per second, for which doubling is worth it
PAUSE = 5  # seconds between two halvings: requests sent before the first say nothing about the new number


class ConcurrencyLimit:
    """`now` samples may be in flight, at most `most`.

    `now` doubles as long as that makes tokens arrive faster. When the server first says that there are too many (429),
    `now` is halved, and from then on grows by 5% per round. A round ends when `now` samples have arrived.
    """

    def __init__(self, most: int):
        self.now, self.most = min(START, most), most
        self._fastest, self._halved_at = 0.0, None
        self._start_round()

    def arrived(self, tokens: int) -> None:
        """Count a sample with so many tokens."""
        self._samples, self._tokens = self._samples + 1, self._tokens + tokens
        if self._samples < self.now:
            return
        rate = self._tokens / max(1e-9, time.monotonic() - self._started)
        if self._halved_at is not None:
            self.now = min(self.most, self.now + max(1, self.now // 20))
        elif rate > GAIN * self._fastest:
            self._fastest, self.now = rate, min(self.most, 2 * self.now)
        self._start_round()

    def overloaded(self) -> None:
        """The server refused a request."""
        if self._halved_at is None or time.monotonic() > self._halved_at + PAUSE:
            self.now, self._halved_at = max(1, self.now // 2), time.monotonic()
            self._start_round()

    def _start_round(self) -> None:
        self._samples, self._tokens, self._started = 0, 0, time.monotonic()
