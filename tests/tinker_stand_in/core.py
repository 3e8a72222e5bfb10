"""What all calls of the API share: faults, ledger, sessions, base models, and the results that clients wait for."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tinker_stand_in import learner
from tinker_stand_in.checkpoint_store import Checkpoint, CheckpointStore
from tinker_stand_in.faults import Faults
from tinker_stand_in.http_server import Answer
from tinker_stand_in.learner import BaseModel, RequestError
from tinker_stand_in.ledger import Ledger

PROTOBUF = "application/x-protobuf"
POLL_SECONDS = 20  # a poll for a result that is not ready is held so long; the client gives up after 45


@dataclass
class Result:
    """What a client asks for with retrieve_future: JSON, or bytes of protobuf. ready: seconds since 1970."""

    request: str
    done: asyncio.Event = field(default_factory=asyncio.Event)
    content: dict | bytes | None = None
    ready: float = 0.0


class Core:
    """models: base models by the names that clients use, and their folders. folder: of the checkpoints."""

    def __init__(self, models: dict[str, Path], folder: Path, ledger: Ledger):
        self.folders, self.bases = models, {}
        self.store, self.ledger, self.faults = CheckpointStore(folder), ledger, Faults()
        self.sessions: dict[str, float] = {}  # the time of the last heartbeat
        self.results: dict[str, Result] = {}
        self.samplers: dict[str, tuple[str | None, str]] = {}  # sampling session: path of the weights, base model
        self.worker = ThreadPoolExecutor(1)  # computes: one call or batch at a time
        self.url = ""

    def check_session(self, owner: str) -> None:
        """owner: an id that starts with a session's id. Raises RequestError if the session has ended."""
        session = owner.split(":")[0]
        if session not in self.sessions:
            raise RequestError(f"session {session} has ended")

    def base(self, name: str) -> BaseModel:
        """A base model, loaded when it is first needed."""
        if name not in self.bases:
            self.bases[name] = BaseModel(self.folders[name])
        self.bases[name].alpha = self.faults["alpha"] or learner.ALPHA
        return self.bases[name]

    def checkpoint(self, path: str) -> Checkpoint | None:
        """None if it does not exist or has expired."""
        checkpoint = self.store.get(path)
        if checkpoint and self.faults.hits("expired", path) and checkpoint.created < self.faults.since["expired"]:
            return None
        return checkpoint

    # ---- results ----

    def new_result(self, request: str) -> Result | None:
        """A result to be filled; None for a repeated request, which gets the result of the first."""
        if request in self.results:
            self.ledger.add("repeated", request=request)
            return None
        self.results[request] = Result(request)
        return self.results[request]

    async def compute(self, work: Callable):
        """Run in the thread that computes. A failure is the result that the API has for it."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.worker, work)
        except RequestError as error:
            return {"error": str(error), "category": error.category}
        except Exception as error:
            return {"error": f"the stand-in failed: {type(error).__name__}: {error}", "category": "server"}

    def finish(self, result: Result, content: dict | bytes) -> None:
        """Give a result to the clients that wait for it."""

        def fill() -> None:
            result.content, result.ready = content, time.time()
            result.done.set()

        if self.faults.is_on("slow"):
            asyncio.get_running_loop().call_later(float(self.faults["slow"]), fill)
        else:
            fill()

    async def retrieve_future(self, body: dict) -> Answer:
        result = self.results.get(body["request_id"])
        if result is None:
            return Answer({"detail": f"unknown request {body['request_id']}"}, 404)
        again = {"type": "try_again", "request_id": result.request, "queue_state": "active"}
        end = time.time() + POLL_SECONDS
        while self.faults.lasts("paused", time.time()):
            if time.time() > end - POLL_SECONDS / 2:
                reason = "the stand-in was told to pause"
                return Answer(again | {"queue_state": "paused_capacity", "queue_state_reason": reason}, 408)
            await asyncio.sleep(0.1)
        try:
            await asyncio.wait_for(result.done.wait(), max(0.1, end - time.time()))
        except TimeoutError:
            return Answer(again, 408)
        if self.faults.is_on("forget") and time.time() > result.ready + float(self.faults["forget"]):
            return Answer({"detail": "the result is gone"}, 410)
        if ":sample:" in result.request:
            self.ledger.add("fetched", request=result.request)
        if isinstance(result.content, bytes):
            return Answer(result.content, kind=PROTOBUF)
        return Answer(result.content)

    ROUTES = {"POST retrieve_future": retrieve_future}
