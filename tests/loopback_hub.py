"""A Hub in memory for tests: repositories, commits, LFS objects and faults; `loopback_http` puts it on a port.

It answers what `huggingface_hub`, `diffusers` and `datasets` ask for, with the status codes and error headers of the real
Hub. That a client is satisfied here does not prove that the real Hub accepts the metadata.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".npy", ".parquet", ".arrow", ".png", ".jpg", ".gif", ".zip")
FRONT_MATTER = re.compile(r"^\s*---[\r\n]+([\S\s]*?)[\r\n]+---(?:\r?\n|$)")
SPACE_SDKS = ("gradio", "streamlit", "docker", "static")
SPACE_COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
Files = Mapping[str, bytes | str]


class HubError(Exception):
    """A refusal: HTTP status, the code of `X-Error-Code` ("" for none), a message, and further headers."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


def wants_lfs(path: str, sample: bytes) -> bool:
    """Whether a file goes to large-file storage: by its suffix, or because its beginning (bytes) is binary."""
    return path.endswith(LFS_SUFFIXES) or b"\0" in sample


@dataclass(frozen=True)
class Blob:
    """The content of a file, and whether it is kept in large-file storage."""

    content: bytes
    lfs: bool

    @classmethod
    def of(cls, path: str, content: bytes | str) -> Blob:
        """The blob a push of this file would make."""
        data = content.encode() if isinstance(content, str) else content
        return cls(data, bool(data) and wants_lfs(path, data[:512]))

    @cached_property
    def sha256(self) -> str:
        """The hash that names an LFS object."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The text git stores in place of an LFS object."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        )

    @cached_property
    def oid(self) -> str:
        """The git hash of what git stores: the content, or the pointer."""
        data = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        """What the real Hub gives as ETag, and as `oid` of preupload: sha256 of LFS objects, git hash of others."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A state of all files, and the title it was given."""

    sha: str
    title: str
    date: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A repository; branches (pull requests are branches named refs/pr/N) are lists of commits, the newest last."""

    id: str
    type: str = "model"
    private: bool = False
    gated: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def find(self, revision: str) -> Commit:
        """The commit a branch, tag or hash (7 digits at least) means.  Raises: HubError(404, RevisionNotFound)."""
        if revision in self.branches:
            return self.branches[revision][-1]
        sha = self.tags.get(revision, revision)
        for commit in (commit for history in self.branches.values() for commit in history):
            if len(sha) >= 7 and commit.sha.startswith(sha):
                return commit
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def history(self, revision: str) -> list[Commit]:
        """The commits up to a revision, the newest first."""
        last = self.find(revision)
        history = next(commits for commits in self.branches.values() if last in commits)
        return history[: history.index(last) + 1][::-1]


@dataclass
class Fault:
    """What goes wrong with the next requests that match; `left` is None for as long as the test runs."""

    matches: Callable[[str], bool]
    after_bytes: int | None
    status: int | None
    left: int | None


class LoopbackHub:
    """The Hub of one test: repositories, users, the log of requests and the faults to come."""

    def __init__(self, url: str) -> None:
        """A Hub without repositories that is reached at `url`."""
        self.url = url
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens = {"hf_good": "user", "hf_other": "other"}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.clock = 0

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """A repository that is there.  Raises: KeyError."""
        return self.repos[repo_type, repo_id]

    def create(
        self,
        repo_id: str,
        files: Files | None = None,
        repo_type: str = "model",
        *,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """A new repository with one commit; its hash."""
        with self.lock:
            repo = Repo(repo_id, repo_type, private, gated)
            self.repos[repo_type, repo_id] = repo
            blobs = {path: Blob.of(path, content) for path, content in (files or {}).items()}
            return self.append(repo, "main", blobs, "initial commit").sha

    def commit(
        self,
        repo_id: str,
        files: Files,
        repo_type: str = "model",
        *,
        revision: str = "main",
        delete: Iterable[str] = (),
        title: str = "change",
    ) -> str:
        """A further commit on a branch, as if somebody else had pushed; its hash."""
        with self.lock:
            repo = self.repo(repo_id, repo_type)
            tree = {path: blob for path, blob in repo.find(revision).files.items() if path not in set(delete)}
            tree |= {path: Blob.of(path, content) for path, content in files.items()}
            return self.append(repo, revision, tree, title).sha

    def append(self, repo: Repo, branch: str, tree: dict[str, Blob], title: str) -> Commit:
        """Put a commit of these files at the end of a branch (new branches included)."""
        self.clock += 1
        text = f"{repo.type} {repo.id} {branch} {self.clock} " + " ".join(
            f"{p} {b.oid}" for p, b in sorted(tree.items())
        )
        date = f"2026-01-01T{self.clock // 3600:02d}:{self.clock // 60 % 60:02d}:{self.clock % 60:02d}.000Z"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), title, date, tree)
        repo.branches.setdefault(branch, []).append(commit)
        repo.objects |= {blob.sha256: blob.content for blob in tree.values() if blob.lfs}
        return commit

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """The content of every file at a revision."""
        return {path: blob.content for path, blob in self.repo(repo_id, repo_type).find(revision).files.items()}

    def fail(
        self,
        match: str | Callable[[str], bool],
        after_bytes: int | None = None,
        status: int | None = None,
        times: int | None = 1,
    ) -> None:
        """Let the next `times` requests (None: all) go wrong whose "METHOD /path" contains, or satisfies, `match`.

        With `status` they get this answer. With `after_bytes` the connection dies: a download is promised whole and stops at
        this byte of the file (so resuming there gives nothing more); of an upload this many bytes are read, then the socket
        closes and nothing is kept. Raises: ValueError unless one of the two is given.
        """
        if (after_bytes is None) == (status is None):
            raise ValueError("give after_bytes or status, one of them.")
        matches = match if callable(match) else lambda line: match in line
        self.faults.append(Fault(matches, after_bytes, status, times))

    def heal(self) -> None:
        """Forget all faults."""
        self.faults.clear()

    def matching(self, match: str) -> list[str]:
        """The requests so far, as "METHOD /path" without the query, that contain `match`."""
        return [line for method, path in self.requests if match in (line := f"{method} {path}")]

    def arrived(self, method: str, path: str) -> Fault | None:
        """Log a request and say what is to go wrong with it; the registry of agents, asked once a process, is no Hub traffic."""
        if path == "/api/agent-harnesses":
            return None
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.left != 0 and fault.matches(f"{method} {path}"):
                    fault.left = None if fault.left is None else fault.left - 1
                    return fault
        return None

    def owns(self, user: str | None, repo_id: str) -> bool:
        """Whether a user may write a repository: the namespace is the user's name."""
        return user is not None and repo_id.split("/")[0] == user

    def visible(self, repo_type: str, repo_id: str, user: str | None, *, content: bool = False) -> Repo:
        """A repository as a user sees it; `content` asks for files, which gated repositories keep back.

        Raises: HubError 401 without, 404 with a token when it is missing or hidden; 401 or 403 (GatedRepo) when gated.
        """
        repo = self.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and not self.owns(user, repo_id)):
            raise HubError(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if content and repo.gated and not self.owns(user, repo_id):
            raise HubError(401 if user is None else 403, "GatedRepo", f"Access to {repo_type} {repo_id} is restricted.")
        return repo

    def writable(self, repo_type: str, repo_id: str, user: str | None) -> Repo:
        """A repository a user may write.  Raises: HubError 401, 404 or 403."""
        repo = self.visible(repo_type, repo_id, user)
        if user is None:
            raise HubError(401, "", "Invalid username or password.")
        if not self.owns(user, repo_id):
            raise HubError(403, "", "Forbidden: you must use a write token of the owner to upload to a repository.")
        return repo


def card_metadata(text: str) -> tuple[dict[str, Any], str]:
    """The YAML at the top of a README, and what is wrong with it ("" for nothing)."""
    found = FRONT_MATTER.match(text)
    if found is None:
        return {}, ""
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return {}, f"YAML Metadata Error: {' '.join(str(error).split())}"
    if data is not None and not isinstance(data, dict):
        return {}, "YAML Metadata Error: the metadata must be an object"
    return data or {}, ""


def card_errors(text: str, repo_type: str) -> list[str]:
    """What a README is refused for: broken YAML, and of a Space an unknown sdk or colour or a long description."""
    data, error = card_metadata(text)
    if error or repo_type != "space":
        return [error] if error else []
    choices = {"sdk": SPACE_SDKS, "colorFrom": SPACE_COLOURS, "colorTo": SPACE_COLOURS}
    wrong = [f'"{key}" must be one of {list(c)}' for key, c in choices.items() if key in data and data[key] not in c]
    long = len(str(data.get("short_description", ""))) > 60
    return wrong + (['"short_description" must be less than or equal to 60 characters long'] if long else [])
