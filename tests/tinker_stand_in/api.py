"""The API: which call answers a request, API keys, sessions, and faults that concern all calls."""

import asyncio
import re
import time
import uuid
from pathlib import Path

import zstandard
from tinker.proto import tinker_public_pb2 as pb

from tinker_stand_in.checkpoint_calls import CheckpointCalls
from tinker_stand_in.core import Core
from tinker_stand_in.http_server import Answer, Dropped, Request
from tinker_stand_in.learner import RequestError
from tinker_stand_in.ledger import Ledger
from tinker_stand_in.sampling_calls import SamplingCalls
from tinker_stand_in.training_calls import TrainingCalls

PAID = re.compile(r"/api/v1/(create_model|forward_backward|optim_step|asample|save_\w+|load_weights)")


class Api:
    """models: base models by the names that clients use, and their folders. folder: of the checkpoints."""

    def __init__(self, models: dict[str, Path], folder: Path, ledger: Ledger):
        self.core = Core(models, folder, ledger)
        self.faults, self.ledger = self.core.faults, ledger
        self.training, self.checkpoints = TrainingCalls(self.core), CheckpointCalls(self.core)
        parts = (self, self.core, self.training, SamplingCalls(self.core), self.checkpoints)
        self.routes = [(route.split(" "), part, call) for part in parts for route, call in part.ROUTES.items()]

    # ---- answers ----

    async def respond(self, request: Request) -> Answer:
        if request.path.startswith("/_"):
            return self._control(request)
        while self.faults.lasts("hang", time.time()):
            await asyncio.sleep(0.1)
        self._end_silent_sessions()
        if refusal := self._refusal(request):
            return refusal
        loses_answer = PAID.match(request.path) and self.faults.every("lost_answer")
        try:
            answer = await self._route(request)
        except RequestError as error:
            answer = Answer({"detail": str(error)}, 400)
        if loses_answer:
            self.ledger.add("fault", name="lost_answer", path=request.path)
            raise Dropped
        return answer if isinstance(answer, Answer) else Answer(answer)

    def _refusal(self, request: Request) -> Answer | None:
        key = request.headers.get("x-api-key", "")
        if not key.startswith("tml-") or key == "tml-wrong" or self.faults.is_on("401"):
            return Answer({"detail": "Invalid API key"}, 401)
        if not PAID.match(request.path):
            return None
        if self.faults.is_on("402"):
            return Answer({"detail": "Your account has no credit left"}, 402)
        if self.faults.every("500"):
            self.ledger.add("fault", name="500", path=request.path)
            return Answer({"detail": "Internal server error"}, 500)
        return None

    async def _route(self, request: Request):
        path = request.path.removeprefix("/api/v1/")
        if path == "forward_backward":
            return self.training.forward_backward(_protobuf(request))
        for (method, pattern), part, call in self.routes:
            match = method == request.method and re.fullmatch(pattern, path)
            if match:
                answer = call(part, request.json(), *match.groups())
                return await answer if asyncio.iscoroutine(answer) else answer
        return Answer({"detail": f"Not Found: {request.method} {request.path}"}, 404)

    def _control(self, request: Request) -> Answer:
        """By tests. /_faults (POST: replace them), /_ledger (GET: sums), /_events, and the files of signed URLs."""
        if request.path == "/_faults":
            try:
                self.faults.set(request.json()["faults"], time.time())
            except ValueError as error:
                return Answer({"detail": str(error)}, 400)
            return Answer({"faults": self.faults.active})
        if request.path == "/_ledger":
            return Answer(self.ledger.summary())
        if request.path == "/_events":
            return Answer(self.ledger.events)
        return self.checkpoints.file(*request.path.split("/")[2:])

    # ---- sessions ----

    def client_config(self, body: dict):
        if self.faults.is_on("chunk_order"):
            return {"fwdbwd_max_chunk_len": int(self.faults["chunk_order"])}
        return {}

    def capabilities(self, body: dict):
        offered = {"max_context_length": 1024, "trainable": True, "sampleable": True}
        return {"supported_models": [{"model_name": name, **offered} for name in self.core.folders]}

    def create_session(self, body: dict):
        session = str(uuid.uuid4())
        self.core.sessions[session] = time.time()
        self.ledger.add("session", session=session, metadata=body.get("user_metadata"))
        return {"type": "create_session", "session_id": session}

    def heartbeat(self, body: dict):
        if body["session_id"] not in self.core.sessions:
            return Answer({"detail": "the session has ended"}, 410)
        self.core.sessions[body["session_id"]] = time.time()
        return {"type": "session_heartbeat"}

    def finish_session(self, body: dict, session: str):
        self._end_session(session)
        return {}

    def _end_silent_sessions(self) -> None:
        if self.faults.is_on("no_heartbeat"):
            for session, beat in list(self.core.sessions.items()):
                if time.time() > beat + float(self.faults["no_heartbeat"]):
                    self._end_session(session)

    def _end_session(self, session: str) -> None:
        """Its models are gone, and nothing more is accepted for it. Results stay."""
        self.core.sessions.pop(session, None)
        self.training.drop_models(session)
        self.ledger.add("session_end", session=session)

    ROUTES = {
        "POST client/config": client_config,
        "POST client/dynamic_config": lambda self, body: {},
        "GET healthz": lambda self, body: {"status": "ok"},
        "POST telemetry": lambda self, body: {"status": "accepted"},
        "GET get_server_capabilities": capabilities,
        "POST create_session": create_session,
        "POST session_heartbeat": heartbeat,
        "POST sessions/([^/]+)/finish": finish_session,
    }


def _protobuf(request: Request):
    body = request.body
    if request.headers.get("content-encoding") == "zstd":
        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return pb.ForwardBackwardRequest.FromString(body)
