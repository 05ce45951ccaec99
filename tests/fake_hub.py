"""A Hub on this machine, for tests: what huggingface_hub, transformers and datasets ask of it, kept in memory.

Point a fresh interpreter at `FakeHub.endpoint` by `HF_ENDPOINT`; `conftest.py` has interpreters that are set up so.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, READ_TOKEN, USER = "hf_fake_token", "hf_may_only_read", "me"
GIT_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits by their hash, each with all its files, and the branches that point at them."""

    repo_id: str
    is_private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)  # of what was pushed
    num_pull_requests: int = 0

    def commit(self, branch: str, files: Files) -> str:
        oid = hashlib.sha1(f"{self.repo_id} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def oid(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.oid(revision) or ""]

    def json(self, name: str, revision: str = "main") -> Any:
        return json.loads(self.files(revision)[name])


class HubError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class FakeHub:
    """The server; `repositories` by (kind, name) is what it has, `log` what it was asked.

    `breaks_at` is a pattern of "METHOD path": there the connection is closed without an answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: Files = {}  # what was uploaded by LFS, by its hash
        self.log: list[str] = []
        self.breaks_at: str | None = None
        handler = type("HandlerOfThisHub", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def make(self, kind: str, repo_id: str, files: Files | None = None, is_private: bool = False) -> Repository:
        repository = self.repositories[kind, repo_id] = Repository(repo_id, is_private)
        repository.commit("main", {**GIT_FILES, **(files or {})})
        return repository

    def model(self, repo_id: str) -> Repository:
        return self.repositories["models", repo_id]


class Handler(BaseHTTPRequestHandler):
    """One request: found in `ROUTES`, answered by the method that is named there."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle_request(self) -> None:
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.command in ("POST", "PUT") else b""
        self.hub.log.append(f"{self.command} {path}")
        if self.hub.breaks_at and re.search(self.hub.breaks_at, self.hub.log[-1]):
            self.close_connection = True
            return
        try:
            self.answer("GET" if self.command == "HEAD" else self.command, path, query, body)
        except HubError as error:
            names = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
            self.reply({"error": str(error)}, status=error.status, headers=names)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> None:
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, f"{method} {path}"):
                return answer(self, body, query, **match.groupdict())
        raise HubError(404, f"Nothing is at {path}")

    do_HEAD = do_GET = do_POST = do_PUT = handle_request  # noqa: N815  as http.server has it

    def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ── who asks, and for what ─────────────────────────────────────────────────────────────────────────────────────

    def token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token not in (None, TOKEN, READ_TOKEN):
            raise HubError(401, "Invalid credentials in Authorization header")
        return token

    def check_may_write(self, namespace: str = USER) -> None:
        if self.token() is None:
            raise HubError(401, "Invalid username or password.")
        if self.token() == READ_TOKEN:
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if namespace != USER:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')

    def repository(self, kind: str, repo_id: str) -> Repository:
        token, found = self.token(), self.hub.repositories.get((kind, repo_id))
        if found is None or (found.is_private and token is None):
            raise HubError(404 if token else 401, "Repository not found", "RepoNotFound")
        return found

    def at_revision(self, kind: str | None, repo_id: str, revision: str | None) -> tuple[Repository, str]:
        repository = self.repository(kind or "models", repo_id)
        oid = repository.oid(revision or "main")
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, oid

    # ── answers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def whoami(self, body: bytes, query: Any) -> None:
        if self.token() is None:
            raise HubError(401, "Invalid username or password.")
        self.reply({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self, body: bytes, query: Any) -> None:
        head = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(head[1]) if head else None
        except yaml.YAMLError:
            return self.reply({"warnings": [], "errors": [{"message": "the head is not YAML"}]}, status=400)
        if not isinstance(metadata, dict):
            return self.reply({"warnings": [{"message": "empty or missing yaml metadata in repo card"}], "errors": []})
        return self.reply({"warnings": [], "errors": []})

    def create(self, body: bytes, query: Any) -> None:
        asked = json.loads(body)
        kind, namespace = f"{asked.get('type') or 'model'}s", asked["organization"] or USER
        repo_id = f"{namespace}/{asked['name']}"
        self.check_may_write(namespace)
        is_there = (kind, repo_id) in self.hub.repositories
        if not is_there:
            self.hub.make(kind, repo_id, is_private=asked.get("visibility") == "private")
        self.reply({"url": f"{self.hub.endpoint}/{repo_id}"}, status=409 if is_there else 200)

    def create_branch(self, body: bytes, query: Any, kind: str, repo_id: str, branch: str) -> None:
        repository = self.repository(kind, repo_id)
        self.check_may_write(repo_id.split("/")[0])
        if " " in branch or ".." in branch:
            raise HubError(400, f"Invalid branch name: {branch}")
        if branch in repository.branches:
            raise HubError(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self.reply({})

    def preupload(self, body: bytes, query: Any, kind: str, repo_id: str, revision: str) -> None:
        self.at_revision(kind, repo_id, revision)
        self.check_may_write(repo_id.split("/")[0] if "create_pr" not in query else USER)
        files = [
            {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}
            for path in (file["path"] for file in json.loads(body)["files"])
        ]
        self.reply({"files": files})

    def lfs_batch(self, body: bytes, query: Any, repo_id: str) -> None:
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}", "header": {}}}}
            for asked in json.loads(body)["objects"]
        ]
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, query: Any, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.reply({})

    def commit(self, body: bytes, query: Any, kind: str, repo_id: str, revision: str) -> None:
        repository, oid = self.at_revision(kind, repo_id, revision)
        is_pull_request = "create_pr" in query
        self.check_may_write(repo_id.split("/")[0] if not is_pull_request else USER)
        files = dict(repository.commits[oid])
        for line in map(json.loads, body.splitlines()):
            change = line["value"]
            if line["key"] == "header":
                repository.messages.append(change["summary"])
            elif line["key"] == "file":
                files[change["path"]] = base64.b64decode(change["content"])
            elif line["key"] == "lfsFile":
                files[change["path"]] = self.hub.objects[change["oid"]]
            elif line["key"] == "deletedFile":
                del files[change["path"]]
        repository.num_pull_requests += is_pull_request
        branch = f"refs/pr/{repository.num_pull_requests}" if is_pull_request else revision
        oid, url = repository.commit(branch, files), f"{self.hub.endpoint}/{repo_id}"
        pull_request = {"pullRequestUrl": f"{url}/discussions/{repository.num_pull_requests}"}
        self.reply({"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, **(pull_request if is_pull_request else {})})

    def info(self, body: bytes, query: Any, kind: str, repo_id: str, revision: str | None = None) -> None:
        repository, oid = self.at_revision(kind, repo_id, revision)
        files = repository.commits[oid]
        head = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.DOTALL)
        card = yaml.safe_load(head[1]) if head else {}
        known = {name: card[name] for name in ("pipeline_tag", "library_name", "tags") if name in card}
        siblings = [{"rfilename": path} for path in files]
        about = {"id": repo_id, "sha": oid, "private": repository.is_private, "siblings": siblings, "tags": []}
        self.reply({**about, "disabled": False, "gated": False, "downloads": 0, "likes": 0, "cardData": card, **known})

    def tree(self, body: bytes, query: Any, kind: str, repo_id: str, revision: str, folder: str | None = None) -> None:
        repository, oid = self.at_revision(kind, repo_id, revision)
        start = f"{folder}/" if folder else ""
        inside = {path: data for path, data in repository.commits[oid].items() if path.startswith(start)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        self.reply(entries(inside, start, is_recursive=query.get("recursive") in (["true"], ["True"], ["1"])))

    def paths_info(self, body: bytes, query: Any, kind: str, repo_id: str, revision: str) -> None:
        repository, oid = self.at_revision(kind, repo_id, revision)
        is_json = "json" in self.headers.get("Content-Type", "")
        asked = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
        everything = entries(repository.commits[oid], "", is_recursive=True)
        self.reply([entry for entry in everything if entry["path"] in asked])

    def resolve(self, body: bytes, query: Any, repo_id: str, revision: str, path: str, kind: str | None = None) -> None:
        repository, oid = self.at_revision(kind, repo_id, revision)
        data = repository.commits[oid].get(path)
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if data is None:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.reply(data, headers=headers)
        begin, end = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        return self.reply(data[begin:end], status=206, headers=headers)


def entries(files: Files, start: str, is_recursive: bool) -> list[dict[str, Any]]:
    """Files, and the folders that they make, below a folder; alone what is directly in it, if not recursive."""
    found: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        parts = path.removeprefix(start).split("/")
        for depth in range(1, len(parts)):
            name = start + "/".join(parts[:depth])
            found[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        found[path] = {"type": "file", "path": path, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
    return [entry for path, entry in found.items() if is_recursive or "/" not in path.removeprefix(start)]


API = r"/api/(?P<kind>models|datasets)/(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (r"POST /api/repos/create", Handler.create),
    (rf"POST {API}/branch/(?P<branch>.+)", Handler.create_branch),
    (rf"POST {API}/preupload/{REVISION}", Handler.preupload),
    (r"POST /(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>\w+)", Handler.lfs_upload),
    (rf"POST {API}/commit/{REVISION}", Handler.commit),
    (rf"GET {API}(/revision/{REVISION})?", Handler.info),
    (rf"GET {API}/tree/{REVISION}(/(?P<folder>.+))?", Handler.tree),
    (rf"POST {API}/paths-info/{REVISION}", Handler.paths_info),
    (rf"GET /((?P<kind>datasets)/)?(?P<repo_id>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
