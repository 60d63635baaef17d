"""An in-memory server for as much of the Hub's HTTP protocol as publishing and loading models and datasets need.
Nothing leaves the machine, nothing is written to disk."""

import base64
import hashlib
import json
import os
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

USER = "ada"
LICENSES = ("apache-2.0", "cc-by-4.0", "mit", "unknown")
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet")
Files = dict[str, bytes]


class HubError(Exception):
    """An error reply; `code` is what the Hub's clients turn into their own exceptions."""

    def __init__(self, status: int, code: str, **headers: str):
        super().__init__(code)
        self.status, self.headers = status, {"X-Error-Code": code, **headers}


@dataclass
class Repository:
    """One repository: every commit is a complete snapshot of the files, so old revisions stay readable."""

    snapshots: dict[str, Files] = field(default_factory=lambda: {"0" * 40: {}})
    private: bool = False
    read_only: bool = False

    @property
    def head(self) -> str:
        """Hash of the last commit."""
        return next(reversed(self.snapshots))

    def commit(self, files: Files) -> str:
        """Make `files` the new content of the main branch and return the hash of the commit."""
        contents = [f"{path} {_sha1(content)}" for path, content in sorted(files.items())]
        oid = _sha1("\n".join([self.head, *contents]).encode())
        self.snapshots[oid] = files
        return oid

    def resolve(self, revision: str) -> str:
        """Hash of the commit that a branch or a hash stands for."""
        if revision == "main":
            return self.head
        if revision not in self.snapshots:
            raise HubError(404, "RevisionNotFound")
        return revision


class HubStore:
    """All repositories, by kind ("models" or "datasets") and name, and the large files by their SHA-256."""

    def __init__(self):
        self.large_files: dict[str, bytes] = {}
        self._repositories: dict[tuple[str, str], Repository] = {}

    def create(self, kind: str, name: str, private: bool = False) -> bool:
        """Add an empty repository; False if there is one already."""
        if (kind, name) in self._repositories:
            return False
        self._repositories[kind, name] = Repository(private=private)
        return True

    def get(self, kind: str, name: str) -> Repository:
        """The repository, or the error that clients expect when there is none."""
        try:
            return self._repositories[kind, name]
        except KeyError:
            raise HubError(404, "RepoNotFound") from None

    def publish(self, folder: Path, name: str, kind: str = "models") -> str:
        """Put a folder's files into a repository without any HTTP and return the hash of the commit."""
        self.create(kind, name)
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        return self.get(kind, name).commit(files)


class HubRequestHandler(BaseHTTPRequestHandler):
    """Answers one connection. `ROUTES` maps method and path to a handler; groups of the pattern are its arguments."""

    protocol_version = "HTTP/1.1"

    _REPO = r"(?P<name>[^/]+/[^/]+)"
    _API = rf"/api/(?P<kind>models|datasets|spaces)/{_REPO}"
    _PAGE = rf"/(?:(?P<kind>datasets|spaces)/)?{_REPO}"
    _REVISION = r"(?P<revision>[^/]+)"
    ROUTES = {
        rf"GET {_API}(?:/revision/{_REVISION})?": "repository_info",
        rf"GET {_API}/auth-check/write": "check_permission",
        rf"GET {_API}/refs": "list_refs",
        rf"GET {_API}/tree/{_REVISION}(?:/(?P<folder>.+))?": "list_tree",
        rf"POST {_API}/paths-info/{_REVISION}": "paths_info",
        rf"(?:HEAD|GET) {_PAGE}/resolve/{_REVISION}/(?P<path>.+)": "send_file",
        r"GET /api/whoami-v2": "whoami",
        r"POST /api/repos/create": "create_repository",
        r"POST /api/validate-yaml": "validate_card",
        rf"POST {_API}/preupload/{_REVISION}": "choose_upload_mode",
        rf"POST {_PAGE}\.git/info/lfs/objects/batch": "offer_large_file_uploads",
        r"PUT /large-files/(?P<oid>\w+)": "receive_large_file",
        rf"POST {_API}/commit/{_REVISION}": "commit",
    }

    # Reading

    def repository_info(self, kind: str, name: str, revision: str | None) -> None:
        """`model_info` and `dataset_info`."""
        repository = self.store.get(kind, name)
        oid = repository.resolve(revision or "main")
        files = [{"rfilename": path} for path in sorted(repository.snapshots[oid])]
        self.send_json(
            {"id": name, "sha": oid, "private": repository.private, "siblings": files, "tags": [], "downloads": 0}
        )

    def check_permission(self, kind: str, name: str) -> None:
        """`auth_check(write=True)`."""
        self.require_writable(kind, name)
        self.send_json({})

    def list_refs(self, kind: str, name: str) -> None:
        """Branches: there is only main."""
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.store.get(kind, name).head}
        self.send_json({"branches": [main], "tags": [], "converts": []})

    def list_tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        """Entries of a folder, or everything below it with `?recursive=true`."""
        repository = self.store.get(kind, name)
        files = repository.snapshots[repository.resolve(revision)]
        start = f"{folder}/" if folder else ""
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        entries = {}
        for path in (path for path in sorted(files) if path.startswith(start)):
            parents = [str(parent) for parent in reversed(Path(path[len(start) :]).parents[:-1])]
            if recursive or not parents:
                entries[path] = _file_entry(path, files[path])
            for parent in parents if recursive else parents[:1]:
                entries[start + parent] = {"type": "directory", "path": start + parent, "size": 0, "oid": "0" * 40}
        if folder and not entries:
            raise HubError(404, "EntryNotFound")
        self.send_json(list(entries.values()))

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        """The entries of those paths that exist; the body is a form or JSON."""
        repository = self.store.get(kind, name)
        files = repository.snapshots[repository.resolve(revision)]
        is_json = "json" in self.headers.get("Content-Type", "")
        request = json.loads(self.body) if is_json else urllib.parse.parse_qs(self.body.decode())
        self.send_json([_file_entry(path, files[path]) for path in request.get("paths", []) if path in files])

    def send_file(self, kind: str | None, name: str, revision: str, path: str) -> None:
        """A file or, for a `Range` request, a part of it."""
        repository = self.store.get(kind or "models", name)
        oid = repository.resolve(revision)
        content = repository.snapshots[oid].get(path)
        if content is None:
            raise HubError(404, "EntryNotFound", **{"X-Repo-Commit": oid})
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_sha256(content)}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.send(200, content, **headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.send(206, content[first : last + 1], **headers)

    # Publishing

    def whoami(self) -> None:
        """Every token belongs to the same user."""
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self.send_json({"type": "user", "id": "1", "name": USER, "fullname": USER, "orgs": [], "auth": token})

    def create_repository(self) -> None:
        """`create_repo`; 409 tells the client that it exists, which `exist_ok=True` accepts."""
        request = json.loads(self.body)
        kind = (request.get("type") or "model") + "s"
        name = f"{request.get('organization') or USER}/{request['name']}"
        created = self.store.create(kind, name, request.get("visibility") == "private")
        self.send_json({"url": self.page_url(kind, name), "name": name, "id": name}, 200 if created else 409)

    def validate_card(self) -> None:
        """Metadata of a card: YAML without nulls and with a license that is known here."""
        metadata = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
        if metadata.get("license", "unknown") not in LICENSES or "null" in json.dumps(metadata):
            raise HubError(400, "BadMetadata")
        self.send_json({"errors": [], "warnings": []})

    def choose_upload_mode(self, kind: str, name: str, revision: str) -> None:
        """Weights and tables travel as large files, all others inside the commit."""
        self.store.get(kind, name).resolve(revision)
        paths = [item["path"] for item in json.loads(self.body)["files"]]
        modes = ["lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths]
        common = {"shouldIgnore": False, "oid": None}
        self.send_json(
            {"files": [{"path": path, "uploadMode": mode, **common} for path, mode in zip(paths, modes, strict=True)]}
        )

    def offer_large_file_uploads(self, kind: str | None, name: str) -> None:
        """The LFS batch call: an upload address for each large file that is not stored yet."""
        self.store.get(kind or "models", name)
        objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(self.body)["objects"]]
        for item in objects:
            if item["oid"] not in self.store.large_files:
                item["actions"] = {"upload": {"href": f"{self.root_url}/large-files/{item['oid']}", "header": {}}}
        self.send_json({"transfer": "basic", "objects": objects})

    def receive_large_file(self, oid: str) -> None:
        """The upload itself."""
        if _sha256(self.body) != oid:
            raise HubError(400, "BadRequest")
        self.store.large_files[oid] = self.body
        self.send(200, b"")

    def commit(self, kind: str, name: str, revision: str) -> None:
        """A commit on the main branch: one JSON object per line, after a header."""
        repository = self.require_writable(kind, name)
        files = dict(repository.snapshots[repository.resolve(revision)])
        for operation in map(json.loads, self.body.splitlines()):
            self.apply(operation["key"], operation["value"], files)
        oid = repository.commit(files)
        url = f"{self.page_url(kind, name)}/commit/{oid}"
        self.send_json({"success": True, "commitOid": oid, "commitUrl": url})

    def require_writable(self, kind: str, name: str) -> Repository:
        """The repository, or the refusal when it was made read-only."""
        repository = self.store.get(kind, name)
        if repository.read_only:
            raise HubError(403, "Forbidden")
        return repository

    def apply(self, key: str, value: dict, files: Files) -> None:
        """Apply one operation of a commit to `files`."""
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.store.large_files[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
        elif key != "header":
            raise HubError(400, "BadRequest")

    # HTTP

    def dispatch(self) -> None:
        """Find the route of a request and run its handler."""
        url = urllib.parse.urlsplit(self.path)
        self.query, self.body = urllib.parse.parse_qs(url.query), self.read_body()
        try:
            for pattern, handler in self.ROUTES.items():
                if match := re.fullmatch(pattern, f"{self.command} {url.path}"):
                    groups = match.groupdict()
                    return getattr(self, handler)(
                        **{key: value and urllib.parse.unquote(value) for key, value in groups.items()}
                    )
            raise HubError(404, "NoSuchRoute")
        except HubError as error:
            return self.send(error.status, json.dumps({"error": str(error)}).encode(), **error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def read_body(self) -> bytes:
        """The body of a request, sent whole or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_json(self, value: dict | list, status: int = 200) -> None:
        """Reply with JSON."""
        self.send(status, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, **headers: str) -> None:
        """Reply with bytes, or with their headers alone to a HEAD request."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def page_url(self, kind: str, name: str) -> str:
        """Address of a repository's page, from which clients read its kind and name."""
        return f"{self.root_url}/{name}" if kind == "models" else f"{self.root_url}/{kind}/{name}"

    @property
    def root_url(self) -> str:
        return f"http://{self.headers['Host']}"

    @property
    def store(self) -> HubStore:
        return self.server.store

    def log_message(self, *args) -> None:
        """Stay silent."""


class HubServer(ThreadingHTTPServer):
    """A running Hub on a free local port; a context manager that stops it at the end."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubRequestHandler)
        self.store = HubStore()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *args) -> None:
        self.shutdown()
        self.server_close()


def hub_environment(url: str, home: Path) -> dict[str, str]:
    """Environment of a fresh interpreter that takes the server at `url` for the Hub and keeps its cache in `home`.

    The libraries read these variables when they are imported, so setting them later has no effect.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
    return {
        **inherited,
        "HF_ENDPOINT": url,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",  # large files would otherwise go to a second service with its own protocol
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _file_entry(path: str, content: bytes) -> dict:
    return {"type": "file", "path": path, "size": len(content), "oid": _sha1(content)}


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
