"""A small hub on loopback, for the hub's own client libraries to talk to: repositories with branches, and faults."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]
GRANTED = "hf_granted"


@dataclass
class Repo:
    """A repository: its files at each of its branches."""

    kind: str
    id: str
    branches: dict[str, Files]
    gated: bool = False
    """Files are only for who shows the token `GRANTED`, as the real hub does it: what there is can be seen by all."""
    commits: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for branch, files in self.branches.items():
            content = b"".join(name.encode() + hashlib.sha1(files[name]).digest() for name in sorted(files))
            self.commits[branch] = hashlib.sha1(f"{self.id}@{branch}".encode() + content).hexdigest()

    def at(self, revision: str) -> tuple[str, Files] | None:
        """Return the commit that a branch or a commit stands for, and its files."""
        for branch, commit in self.commits.items():
            if revision in (branch, commit):
                return commit, self.branches[branch]
        return None


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path matches `pattern`."""

    pattern: str
    how: str
    """500, 429 and the like; reset: the connection breaks before the answer; cut: in the middle of it; silence: there
    is none until `Hub.speak`."""
    times: int


class Hub(ThreadingHTTPServer):
    """The hub. `requests` names what was asked, `fail` says what shall go wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._spoken = threading.Event()
        threading.Thread(target=self.serve_forever, name="hub", daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, kind: str, id: str, branches: dict[str, Files], *, gated: bool = False) -> Repo:  # noqa: A002
        """Put a repository of a kind (model or dataset) in place."""
        repo = self.repos[kind, id] = Repo(kind, id, branches, gated)
        return repo

    def fail(self, pattern: str, how: str, times: int = 1) -> None:
        self.faults.append(Fault(pattern, how, times))

    def keep_silent(self) -> None:
        self._spoken.wait()

    def speak(self) -> None:
        """Let those go that wait for an answer."""
        self._spoken.set()
        self._spoken = threading.Event()

    def handle_error(self, *args: object) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._cut = False
        if fault := self._fault(path):
            if fault.how == "reset":
                return self._break()
            if fault.how == "silence":
                self.server.keep_silent()
                return self._break()
            if fault.how == "cut":
                self._cut = True
            else:
                return self._send(int(fault.how), b"{}", {"X-Error-Message": "a fault of the test"})
        if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/(.*))?)?", path):
            return self._api(match[1], match[2], match[3], match[4] or "", parse_qs(body.decode()))
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file("dataset" if match[1] else "model", match[2], match[3], match[4])
        return self._send(404, b"{}", {})

    def _fault(self, path: str) -> Fault | None:
        for fault in self.server.faults:
            if fault.times > 0 and re.search(fault.pattern, path) and self.command != "HEAD":
                fault.times -= 1
                return fault
        return None

    def _api(self, kind: str, id: str, verb: str | None, rest: str, form: dict[str, list[str]]) -> None:  # noqa: A002
        repo = self.server.repos.get((kind, id))
        if repo is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
        if verb == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in repo.commits.items()
            ]
            return self._json({"branches": branches, "tags": [], "converts": []})
        found = repo.at(rest.split("/", maxsplit=1)[0] or "main")
        if found is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no revision"})
        commit, files = found
        if verb in (None, "revision"):
            siblings = [{"rfilename": name} for name in sorted(files)]
            return self._json({"id": id, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        if verb == "paths-info":
            return self._json([_entry(name, files[name]) for name in form.get("paths", []) if name in files])
        if verb == "tree":
            recursive = "recursive=True" in self.path or "recursive=true" in self.path
            return self._json(_tree(files, rest.partition("/")[2], recursive=recursive))
        return self._send(404, b"{}", {})

    def _file(self, kind: str, id: str, revision: str, name: str) -> None:  # noqa: A002
        repo = self.server.repos.get((kind, id))
        found = repo and repo.at(revision)
        if not found:
            code = "RevisionNotFound" if repo else "RepoNotFound"
            return self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": "not found"})
        shown = self.headers.get("Authorization")
        if repo and repo.gated and shown != f"Bearer {GRANTED}":
            gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {kind} {id} is restricted."}
            return self._send(403 if shown else 401, b"", gated)
        commit, files = found
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name not in files:
            return self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no file"})
        content = files[name]
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self._send(200, content, headers)
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._send(206, content[start:stop], headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self._cut else content)
        if self._cut:
            self._break()

    def _break(self) -> None:
        """Close the connection as one that was reset."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _tree(files: Files, under: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{under}/" if under else ""
    entries, folders = [], set()
    for name in sorted(files):
        if not name.startswith(prefix):
            continue
        head, _, tail = name.removeprefix(prefix).partition("/")
        if tail and f"{prefix}{head}" not in folders:
            folders.add(f"{prefix}{head}")
            entries.append({"type": "directory", "path": f"{prefix}{head}", "size": 0, "oid": "0" * 40})
        if recursive or not tail:
            entries.append(_entry(name, files[name]))
    return entries
