"""
A small server of the Hub's protocol in memory, for the real clients: `with LocalHub() as hub`, `HF_ENDPOINT=hub.url`.

Large files go to and come from a storage server of its own, on another port, as those of the Hub do: clients must not
send it their token.
"""

import contextlib
import json
import re
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import hub_routes, hub_uploads  # noqa: F401
from .hub_state import File, HubError, Repository, User, is_large

TOKEN = "hf_TheTokenOfTheOwnerOfTheseModels"
OTHER = "hf_TheTokenOfSomebodyElseAltogether"
READER = "hf_TheTokenThatMayOnlyRead"
CUT, LOST, SLOW = "cut", "lost", "slow"


@dataclass
class Request:
    """One line of the log."""

    method: str
    path: str  # with the query
    server: str  # "hub" or "storage"
    authorized: bool  # whether it came with a token, right or wrong
    user: str | None = None
    status: int | None = None  # none where no answer was sent
    fault: str | int | None = None


@dataclass
class Fault:
    """What goes wrong, where, how often."""

    method: str
    path: re.Pattern
    action: int | str
    times: int | None
    after: int
    seconds: float
    fired: int = 0

    def fires(self, request: Request) -> bool:
        if self.method not in ("*", request.method) or not self.path.search(request.path):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.times is not None and self.fired >= self.times:
            return False
        self.fired += 1
        return True


class LocalHub:
    """
    A Hub on 127.0.0.1.

    Attributes:
        url (`str`): what `HF_ENDPOINT` is set to.
        users (`dict[str, User]`): by token. `TOKEN` belongs to "user", who may write for "team" too; `OTHER` to
            "other"; `READER` is a token of "user" that may only read.
        repositories (`dict[str, Repository]`): by "owner/name".
        refused (`set[str]`): further names, without their owner, that are not allowed.
        says (`str`, *optional*): the message of every fault that is a status, instead of the Hub's own.
        deleted (`list[Repository]`): repositories that were deleted.
        objects (`dict[str, bytes]`): every large file that was uploaded, by its SHA-256, in a commit or not.
        requests (`list[Request]`): what was asked, in the order in which it was.
        home (`Path`): an empty folder for the caches of clients.
    """

    def __init__(self) -> None:
        self.users = {TOKEN: User("user", ("team",)), OTHER: User("other"), READER: User("user", writes=False)}
        self.repositories: dict[str, Repository] = {}
        self.says: str | None = None
        self.refused: set[str] = set()
        self.deleted: list[Repository] = []
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.hooks: list[tuple[re.Pattern, Callable[[Request], Any]]] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()

    def __enter__(self) -> "LocalHub":
        self._folder = tempfile.TemporaryDirectory(prefix="local_hub_", ignore_cleanup_errors=True)
        self.home = Path(self._folder.name)
        self._servers = {}
        for name in ("hub", "storage"):
            server = ThreadingHTTPServer(
                ("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self, "server_name": name})
            )
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self._servers[name] = server
        self.url = f"http://127.0.0.1:{self._servers['hub'].server_port}"
        self.storage = (
            f"http://localhost:{self._servers['storage'].server_port}"  # old clients compare hosts, not ports
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        self._folder.cleanup()

    def __getitem__(self, repo_id: str) -> Repository:
        return self.repositories[repo_id]

    def add(self, repo_id: str, files: dict[str, bytes], private: bool = False, message: str = "Upload") -> Repository:
        """A repository with files, made without any request."""
        repository = Repository(repo_id, repo_id.split("/")[0], private)
        stored = dict(repository.commit().files)
        for path, data in files.items():
            stored[path] = File(data, is_large(path, len(data), data[:512]))
            if stored[path].large:
                self.objects[stored[path].sha256] = data
        repository.add("main", message, "", repository.owner, stored)
        self.repositories[repo_id] = repository
        return repository

    def fail(
        self,
        method: str,
        path: str,
        action: int | str,
        times: int | None = 1,
        after: int = 0,
        seconds: float = 0.0,
    ) -> Fault:
        """
        Lets requests fail.

        Args:
            method (`str`): "GET", "PUT", …, or "*".
            path (`str`): a regular expression that is searched for in the path and the query.
            action (`int` or `str`): a status; "cut" closes the connection in the middle of the request, or of the
                answer to one without a body; "lost" does what was asked and closes the connection before it answers;
                "slow" answers late.
            times (`int`, *optional*): how many requests; `None` for all from here on.
            after (`int`): how many requests are let through before.
            seconds (`float`): how late "slow" is; after how many seconds a client may ask again (429).
        """
        fault = Fault(method, re.compile(path), action, times, after, seconds)
        self.faults.append(fault)
        return fault

    def before(self, path: str, call: Callable[[Request], Any]) -> None:
        """Calls a function once, before the first request whose path and query match is answered."""
        self.hooks.append((re.compile(path), call))

    def heal(self) -> None:
        """No fault from here on."""
        self.faults.clear()

    def asked(self, method: str, path: str) -> list[Request]:
        """Requests of a method whose path and query match."""
        return [asked for asked in self.requests if asked.method == method and re.search(path, asked.path)]

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """Every byte that was ever uploaded, with its place: files of all commits, messages, large files, requests."""
        for repository in [*self.repositories.values(), *self.deleted]:
            for commit in repository.commits.values():
                place = f"{repository.id}@{commit.oid[:7]}"
                yield f"{place} message", f"{commit.message}\n{commit.description}\n{commit.author}".encode()
                for path, file in commit.files.items():
                    yield f"{place} {path}", file.data
            yield f"{repository.id} branches", "\n".join(repository.branches).encode()
        for oid, data in self.objects.items():
            yield f"object {oid}", data
        for request in self.requests:
            yield f"{request.method} request", unquote(request.path).encode()


class Handler(BaseHTTPRequestHandler):
    """Reads one request, lets it fail where it is to, and sends what the routes answer."""

    hub: LocalHub
    server_name: str
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        header = self.headers.get("Authorization")
        self.request_line = Request(self.command, self.path, self.server_name, header is not None)
        with self.hub.lock:
            self.hub.requests.append(self.request_line)
            fault = next((fault for fault in self.hub.faults if fault.fires(self.request_line)), None)
            hooks = [hook for hook in self.hub.hooks if hook[0].search(self.path)]
            self.hub.hooks = [hook for hook in self.hub.hooks if hook not in hooks]
        for _, call in hooks:
            call(self.request_line)
        self.fault = fault.action if fault else None
        self.request_line.fault = self.fault
        if self.fault == CUT and self.command not in ("GET", "HEAD"):
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.cut()
            return
        self.body = self.read_body()
        if self.fault == SLOW:
            self.hub.closing.wait(fault.seconds)
        if isinstance(self.fault, int):
            self.refuse(self.fault, fault.seconds)
            return
        try:
            user = hub_routes.user_of(self.hub, header) if self.server_name == "hub" else None
            self.request_line.user = user.name if user else None
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            with self.hub.lock:
                status, headers, data = hub_routes.answer(self.hub, self, user, parts.path, query)
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            headers |= error.body.pop("headers", {})
            status, data = error.status, {"error": error.message, **error.body}
        if self.fault == LOST:
            self.cut()
            return
        self.send(status, headers, data)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def json(self) -> dict[str, Any]:
        return json.loads(self.body) if self.body else {}

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]

    def refuse(self, status: int, seconds: float) -> None:
        """An error of no cause."""
        message = {
            401: "Invalid credentials in Authorization header",
            403: "You don't have the required permissions to perform this action",
            429: "You have exceeded the rate limit for this endpoint",
        }.get(status, "Internal Error - We're working hard to fix this as soon as possible!")
        message = self.hub.says or message
        headers = {"X-Error-Message": message}
        if status == 429:
            wait = int(seconds)
            headers |= {
                "Retry-After": str(wait),
                "RateLimit": f'"api";r=0;t={wait}',
                "RateLimit-Policy": '"fixed window";"api";q=500;w=300',
            }
        self.send(status, headers, {"error": message})

    def send(self, status: int, headers: dict[str, str], data: Any) -> None:
        payload = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.request_line.status = status
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(data, bytes) else "application/json; charset=utf-8"
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(payload))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.fault == CUT:
            self.wfile.write(payload[: len(payload) // 2] if self.command == "GET" else b"")
            self.close_connection = True
            return
        if self.command != "HEAD":
            self.wfile.write(payload)

    def cut(self) -> None:
        """Closes the connection at once, so that the other side sees it reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError):  # cut
            super().finish()
