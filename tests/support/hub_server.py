"""A server on 127.0.0.1 with the part of the Hub protocol that huggingface_hub needs, and a log of requests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_letmein0123456789"  # noqa: S105
STRANGER = "hf_stranger987654321"
OWNER = "alice"
MAX_LIFE_S = 300.0  # the server ends by itself, whatever becomes of the test
_LARGE = (".safetensors",)
_REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    (method, re.compile(pattern.replace("REPO", _REPOSITORY) + "$"), name)
    for method, pattern, name in (
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/repos/create", "create"),
        ("POST", "/api/validate-yaml", "validate_card"),
        ("GET", "/api/models", "list"),
        ("GET", "/api/models/REPO", "info"),
        ("GET", "/api/models/REPO/revision/(?P<rev>[^/]+)", "info"),
        ("GET", "/api/models/REPO/tree/(?P<rev>[^/]+)(/.*)?", "tree"),
        ("POST", "/api/models/REPO/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", "/REPO.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("POST", "/lfs/verify", "lfs_verify"),
        ("POST", "/api/models/REPO/commit/(?P<rev>[^/]+)", "commit"),
        ("GET", "/REPO/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
        ("HEAD", "/REPO/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )
]


@dataclass(frozen=True)
class Request:
    """One entry of the log."""

    method: str
    path: str
    status: int
    num_bytes: int  # of the body that was sent, cut ones as far as they came
    range: str | None
    has_token: bool


@dataclass
class Repository:
    """Commits in order, each a whole tree of files."""

    private: bool
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, tree: dict[str, bytes]) -> str:
        content = repr((len(self.trees), sorted((name, hashlib.sha1(data).hexdigest()) for name, data in tree.items())))  # noqa: S324
        commit = hashlib.sha1(content.encode()).hexdigest()  # noqa: S324
        self.trees[commit] = tree
        self.branches[branch] = commit
        return commit

    def commit_of(self, revision: str) -> str | None:
        if revision in self.branches:
            return self.branches[revision]
        return next((commit for commit in self.trees if len(revision) >= 7 and commit.startswith(revision)), None)


@dataclass
class Fault:
    """A fault of the next requests whose path matches."""

    pattern: re.Pattern[str]
    times: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body after which the connection ends


class HubServer:
    """The state of a hub: repositories, large files, pending faults and the log of requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.connections: set[_Handler] = set()
        self.knows_ranges = True
        self.url = ""
        self.stop: Callable[[], None] = lambda: None  # nobody answers any more

    def fail(self, pattern: str, times: int, status: int, **headers: str) -> None:
        """Answer the next `times` requests whose path matches with an error."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(re.compile(pattern), times, status=status, headers=named))

    def cut(self, pattern: str, times: int, after: int) -> None:
        """End the connection in the middle of the next `times` bodies whose path matches."""
        self.faults.append(Fault(re.compile(pattern), times, cut_after=after))

    def tamper(self, repository: str, path: str, content: bytes) -> str:
        """A commit on main in which one file has other bytes."""
        repo = self.repositories[repository]
        return repo.add("main", {**repo.trees[repo.branches["main"]], path: content})

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repositories[repository]
        return repo.trees[repo.commit_of(revision) or ""]

    def bytes_below(self, part: str) -> int:
        """Bytes of files sent from a folder of any repository."""
        return sum(entry.num_bytes for entry in self.log if f"/{part}/" in entry.path and entry.method == "GET")

    def next_fault(self, path: str, *, cuts: bool) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.pattern.search(path) and (fault.cut_after is not None) == cuts:
                    fault.times -= 1
                    return fault
        return None


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {**({"X-Error-Code": code} if code else {}), "X-Error-Message": message, **headers}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20  # seconds that an idle connection is kept
    hub: HubServer

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self)

    def finish(self) -> None:
        self.hub.connections.discard(self)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """The log is a list, not lines on stderr."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        try:
            self._route(url.path)
        except _RefusedError as refusal:
            self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), refusal.headers)

    def _route(self, path: str) -> None:
        if fault := self.hub.next_fault(path, cuts=False):
            raise _RefusedError(fault.status or 500, message="not now", **fault.headers)
        for method, pattern, name in _ROUTES:
            if method == self.command and (found := pattern.fullmatch(path)):
                groups = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                getattr(self, f"on_{name}")(**groups)
                return
        raise _RefusedError(404, message=f"no route {self.command} {path}")

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        path = urlsplit(self.path).path
        cut = self.hub.next_fault(path, cuts=True) if self.command == "GET" and content else None
        sent = content if cut is None else content[: cut.cut_after]
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        shown = 0 if self.command == "HEAD" else len(sent)
        token = "Authorization" in self.headers
        self.hub.log.append(Request(self.command, path, status, shown, self.headers.get("Range"), token))
        if self.command != "HEAD":
            self.wfile.write(sent)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, tree: Any, status: int = 200) -> None:
        self._send(status, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _repository(self, repo: str, *, writes: bool = False) -> Repository:
        found = self.hub.repositories.get(repo)
        if writes and self._token and self._token != TOKEN:
            raise _RefusedError(403, message=f"you may not write {repo}")
        is_hidden = found is None or ((found.private or writes) and self._token != TOKEN)
        if found is None or is_hidden:
            raise _RefusedError(404 if self._token else 401, "RepoNotFound", "Repository not found")
        return found

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.commit_of(revision)
        if commit is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def on_whoami(self) -> None:
        if self._token not in (TOKEN, STRANGER):
            raise _RefusedError(401, message="Invalid credentials in Authorization header")
        self._json({"type": "user", "name": OWNER if self._token == TOKEN else "mallory", "orgs": []})

    def on_create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization'] or OWNER}/{asked['name']}"
        if self._token != TOKEN:
            raise _RefusedError(403 if self._token else 401, message="you may not create here")
        if name in self.hub.repositories:
            raise _RefusedError(409, message="You already created this model repo")
        repository = Repository(private=asked.get("visibility") == "private")
        repository.add("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[name] = repository
        self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def on_validate_card(self) -> None:
        head = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            tree = yaml.safe_load(head[1]) if head else {}
        except yaml.YAMLError as error:
            tree = str(error)
        is_sound = isinstance(tree, dict) and isinstance(tree.get("license", ""), str)
        errors = [] if is_sound else [{"message": f"no mapping with a license: {tree}"}]
        self._json({"errors": errors, "warnings": []}, status=200 if is_sound else 400)

    def on_list(self) -> None:
        author, wanted = self.query.get("author", [""])[0], self.query.get("filter", [""])[0]
        shown = []
        for name, repository in self.hub.repositories.items():
            card = self.hub.files(name).get("README.md", b"").decode()
            if name.startswith(f"{author}/") and wanted in card and (self._token == TOKEN or not repository.private):
                shown.append({"id": name, "modelId": name, "private": repository.private, "tags": [wanted]})
        self._json(shown)

    def on_info(self, repo: str, rev: str = "main") -> None:
        repository = self._repository(repo)
        commit = self._commit(repository, rev)
        siblings = [{"rfilename": name} for name in repository.trees[commit]]
        self._json(
            {
                "id": repo,
                "modelId": repo,
                "sha": commit,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def on_tree(self, repo: str, rev: str) -> None:
        repository = self._repository(repo)
        tree = repository.trees[self._commit(repository, rev)]
        self._json(
            [{"type": "file", "path": name, "size": len(data), "oid": _etag(name, data)} for name, data in tree.items()]
        )

    def on_preupload(self, repo: str, rev: str) -> None:
        repository = self._repository(repo, writes=True)
        tree = repository.trees[self._commit(repository, rev)]
        modes = []
        for asked in json.loads(self.body)["files"]:
            name = asked["path"]
            mode = "lfs" if name.endswith(_LARGE) else "regular"
            known = _etag(name, tree[name]) if name in tree else None
            modes.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self._json({"files": modes})

    def on_lfs_batch(self, repo: str) -> None:
        self._repository(repo, writes=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large:
                upload = {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify", "header": {}}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def on_lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(400, message="the content is not what its name says")
        self.hub.large[oid] = self.body
        self._send(200, b"")

    def on_lfs_verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.hub.large.get(asked["oid"], b"")) != asked["size"]:
            raise _RefusedError(404, message="the large file is not here")
        self._json({})

    def on_commit(self, repo: str, rev: str) -> None:
        repository = self._repository(repo, writes=True)
        head = self._commit(repository, rev)
        tree = dict(repository.trees[head])
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header" and value.get("parentCommit", head) != head:
                raise _RefusedError(412, message="the branch has moved on")
            if entry["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                tree[value["path"]] = self.hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del tree[value["path"]]
        commit = repository.add(rev, tree)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True})

    def on_resolve(self, repo: str, rev: str, path: str) -> None:
        repository = self._repository(repo)
        commit = self._commit(repository, rev)
        if path not in repository.trees[commit]:
            raise _RefusedError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        content = repository.trees[commit][path]
        headers = {"ETag": f'"{_etag(path, content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked or not self.hub.knows_ranges:
            self._send(200, content, headers)
            return
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        if first >= len(content):
            raise _RefusedError(416, message="no such range", **{"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers)


def _etag(name: str, content: bytes) -> str:
    """SHA-256 of a large file; git hash of any other file."""
    if name.endswith(_LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


@contextmanager
def serving() -> Iterator[HubServer]:
    """A hub on a free port of 127.0.0.1, for as long as the block lasts and never longer than MAX_LIFE_S."""
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    ending = threading.Timer(MAX_LIFE_S, server.shutdown)
    ending.daemon = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    ending.start()

    def stop() -> None:
        ending.cancel()
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
        for connection in list(hub.connections):
            connection.close_connection = True
            with suppress(OSError):
                connection.connection.shutdown(socket.SHUT_RDWR)

    hub.stop = stop
    try:
        yield hub
    finally:
        stop()
