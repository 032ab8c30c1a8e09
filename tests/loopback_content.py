"""What the loopback Hub answers where files are concerned: uploads, commits and downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from loopback_hub import Blob, Commit, HubError, LoopbackHub, Repo, card_errors, wants_lfs


@dataclass
class Request:
    """What was asked; `path` is still quoted, `user` is whose token was sent."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    user: str | None

    def json(self) -> dict[str, Any]:
        """The body as JSON, or as the form that some calls send."""
        if "json" in (self.headers["Content-Type"] or ""):
            return json.loads(self.body)
        return parse_qs(self.body.decode())


@dataclass
class Answer:
    """What is answered; `offset` is the first byte of the file that the body holds."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    offset: int = 0


def json_answer(data: Any, status: int = 200) -> Answer:
    """An answer in JSON."""
    return Answer(json.dumps(data).encode(), status, {"Content-Type": "application/json"})


def kind(parts: Mapping[str, str]) -> str:
    """model, dataset or space, from the first word of the path."""
    return (parts["type"] or "models").removesuffix("s")


def no_entry(path: str, commit: Commit) -> HubError:
    """The refusal for a file that is not there, with the revision that was looked at."""
    return HubError(404, "EntryNotFound", f"{path} does not exist", {"X-Repo-Commit": commit.sha})


def preupload(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """How each file is to be sent, and the hash of what is there under its name."""
    there = hub.writable(kind(parts), parts["id"], request.user).find(parts["revision"]).files
    files = []
    for asked in request.json()["files"]:
        path = asked["path"]
        mode = "lfs" if wants_lfs(path, base64.b64decode(asked["sample"])) else "regular"
        oid = there[path].etag if path in there else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return json_answer({"files": files})


def lfs_batch(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Where to send large files; those that are stored need not be sent."""
    repo = hub.writable(kind(parts), parts["id"], request.user)
    objects = []
    for asked in request.json()["objects"]:
        where = f"{hub.url}/lfs/{repo.type}s/{repo.id}"
        entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in repo.objects:
            actions = {"upload": f"{where}/upload/{asked['oid']}", "verify": f"{where}/verify/{asked['oid']}"}
            entry["actions"] = {name: {"href": href} for name, href in actions.items()}
        objects.append(entry)
    return json_answer({"transfer": "basic", "objects": objects})


def lfs_upload(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Store a large file, if its content has the hash it claims (the address is secret, there is no token)."""
    repo = hub.repos[kind(parts), parts["id"]]
    if hashlib.sha256(request.body).hexdigest() != parts["oid"]:
        raise HubError(400, "", "the content does not have the hash of its address")
    repo.objects[parts["oid"]] = request.body
    return Answer(headers={"ETag": f'"{parts["oid"]}"'})


def lfs_verify(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Whether a large file has arrived whole."""
    repo, asked = hub.writable(kind(parts), parts["id"], request.user), request.json()
    if len(repo.objects.get(asked["oid"], b"")) != asked["size"]:
        raise HubError(404, "", f"LFS object {asked['oid']} is not stored")
    return json_answer({})


def commit(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Apply a list of operations to a branch, or to a new pull request."""
    repo = hub.writable(kind(parts), parts["id"], request.user)
    last = repo.find(parts["revision"])
    if parts["revision"] not in repo.branches:
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {parts['revision']}, commits go to branches")
    operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(op["value"] for op in operations if op["key"] == "header")
    if header.get("parentCommit", last.sha) != last.sha:
        raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
    files = dict(last.files)
    for operation in operations:
        apply(repo, last, files, operation["key"], operation["value"])
    errors = card_errors(files.get("README.md", Blob(b"", False)).content.decode("utf-8", "replace"), repo.type)
    if errors:
        raise HubError(400, "", errors[0])
    name, number = parts["revision"], sum(branch.startswith("refs/pr/") for branch in repo.branches) + 1
    pull = request.query.get("create_pr") == ["1"]
    if pull:
        name = f"refs/pr/{number}"
        repo.branches[name] = list(repo.branches[parts["revision"]])
    made = hub.append(repo, name, files, header["summary"])
    page = hub.url + ("/" if repo.type == "model" else f"/{repo.type}s/") + repo.id
    data = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}"}
    return json_answer(data | ({"pullRequestUrl": f"{page}/discussions/{number}"} if pull else {}))


def apply(repo: Repo, last: Commit, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
    """One operation of a commit on the files so far.  Raises: HubError for what the real Hub refuses."""
    path = value.get("path", "")
    if path.startswith("/") or ".." in path.split("/") or ".git" in path.split("/"):
        raise HubError(400, "", f"invalid path {path}")
    if key == "file":
        files[path] = Blob(base64.b64decode(value["content"]), False)
    elif key == "lfsFile":
        if value["oid"] not in repo.objects:
            raise HubError(400, "", f"LFS pointer {path} points to an object that was not uploaded")
        files[path] = Blob(repo.objects[value["oid"]], True)
    elif key == "deletedFile":
        if path not in files:
            raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        del files[path]
    elif key == "deletedFolder":
        for inside in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[inside]
    elif key != "header":
        raise HubError(400, "", f"unknown operation {key}")


def resolve(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """A file, or from a byte on when a range is asked for."""
    found = hub.visible(kind(parts), parts["id"], request.user, content=True).find(parts["revision"])
    blob = found.files.get(parts["path"])
    if blob is None:
        raise no_entry(parts["path"], found)
    size = len(blob.content)
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": found.sha, "Accept-Ranges": "bytes"}
    headers["Content-Type"] = "application/octet-stream"
    if blob.lfs:
        headers |= {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{blob.sha256}"'}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers["Range"] or "")
    if asked is None:
        return Answer(blob.content, 200, headers)
    first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
    if first > last:
        raise HubError(416, "", "range not satisfiable", {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Answer(blob.content[first : last + 1], 206, headers, offset=first)
