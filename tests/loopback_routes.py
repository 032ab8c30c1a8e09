"""What the loopback Hub answers to each request of `huggingface_hub`, `diffusers` and `datasets`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from loopback_content import (
    Answer,
    Request,
    commit,
    json_answer,
    kind,
    lfs_batch,
    lfs_upload,
    lfs_verify,
    no_entry,
    preupload,
    resolve,
)
from loopback_hub import Blob, Commit, HubError, LoopbackHub, card_errors, card_metadata

PAGES = "revision|tree|paths-info|refs|commits|branch|tag|preupload|commit|resolve"
ID = rf"(?P<id>[^/]+(?:/(?!(?:{PAGES})(?:/|$))[^/]+?)?)"
API = rf"/api/(?P<type>models|datasets|spaces)/{ID}"
WEB = rf"/(?:(?P<type>datasets|spaces)/)?{ID}"


def whoami(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Who a token belongs to."""
    if request.user is None:
        raise HubError(401, "", "Invalid username or password.")
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    return json_answer({"type": "user", "name": request.user, "fullname": request.user, "orgs": [], "auth": auth})


def named(request: Request) -> tuple[dict[str, Any], str, str]:
    """The body of a call that makes or removes a repository, with its type and id."""
    if request.user is None:
        raise HubError(401, "", "Invalid username or password.")
    data = request.json()
    return data, data.get("type") or "model", f"{data.get('organization') or request.user}/{data['name']}"


def create_repo(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Make a repository, in the user's own namespace only."""
    data, repo_type, repo_id = named(request)
    if not hub.owns(request.user, repo_id):
        raise HubError(
            403, "", f'You don\'t have the rights to create a {repo_type} under the namespace "{data["organization"]}"'
        )
    url = hub.url + ("/" if repo_type == "model" else f"/{repo_type}s/") + repo_id
    if (repo_type, repo_id) in hub.repos:
        return json_answer({"error": f"You already created this {repo_type} repo", "url": url}, 409)
    hub.create(repo_id, repo_type=repo_type, private=bool(data.get("private")) or data.get("visibility") == "private")
    return json_answer({"url": url, "name": repo_id, "id": repo_id})


def delete_repo(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Remove a repository."""
    _, repo_type, repo_id = named(request)
    hub.writable(repo_type, repo_id, request.user)
    del hub.repos[repo_type, repo_id]
    return json_answer({})


def validate_yaml(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Whether the metadata of a README would be accepted."""
    data = request.json()
    errors = card_errors(data["content"], data.get("repoType") or "model")
    return json_answer({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)


def file_entry(path: str, blob: Blob, commit: Commit | None = None) -> dict[str, Any]:
    """A file as the tree lists it; with `commit` (the expanded listing) also where it is from."""
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content)}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    if commit is not None:
        entry["lastCommit"] = {"id": commit.sha, "title": commit.title, "date": commit.date}
    return entry


def sibling(path: str, blob: Blob, details: bool) -> dict[str, Any]:
    """A file as the description of a repository lists it."""
    entry = {"rfilename": path}
    if details:
        lfs = {"lfs": {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}}
        entry |= {"size": len(blob.content), "blobId": blob.oid, **(lfs if blob.lfs else {})}
    return entry


def info(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """A repository at a revision: hash, files, metadata of its card."""
    repo = hub.visible(kind(parts), parts["id"], request.user)
    commit = repo.find(parts["revision"] or "main")
    readme = commit.files.get("README.md", Blob(b"", False)).content.decode("utf-8", "replace")
    card, details = card_metadata(readme)[0], request.query.get("blobs", ["false"])[0].lower() == "true"
    data = {"id": repo.id, "author": repo.id.split("/")[0], "sha": commit.sha, "private": repo.private}
    data |= {"gated": "manual" if repo.gated else False, "disabled": False, "downloads": 0, "likes": 0}
    data |= {"createdAt": repo.branches["main"][0].date, "lastModified": commit.date, "tags": card.get("tags") or []}
    data |= {key: card[key] for key in ("library_name", "pipeline_tag", "sdk") if key in card}
    data |= {"cardData": json.loads(json.dumps(card, default=str))} if card else {}
    data["siblings"] = [sibling(path, blob, details) for path, blob in sorted(commit.files.items())]
    return json_answer(data)


def tree(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """The files and folders of a folder, or of all below it."""
    commit = hub.visible(kind(parts), parts["id"], request.user).find(parts["revision"])
    prefix = f"{parts['path'].strip('/')}/" if parts["path"] else ""
    recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
    expanded = commit if request.query.get("expand", ["false"])[0].lower() == "true" else None
    folders, files = set(), []
    for path, blob in sorted(commit.files.items()):
        if path.startswith(prefix):
            inner = path[len(prefix) :].split("/")
            folders |= {prefix + "/".join(inner[:n]) for n in range(1, len(inner)) if recursive or n == 1}
            files += [file_entry(path, blob, expanded)] if recursive or len(inner) == 1 else []
    if prefix and not folders and not files:
        raise no_entry(parts["path"], commit)
    return json_answer([folder_entry(path) for path in sorted(folders)] + files)


def folder_entry(path: str) -> dict[str, Any]:
    """A folder as the tree lists it."""
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def paths_info(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Those of the asked files and folders that are there."""
    commit = hub.visible(kind(parts), parts["id"], request.user).find(parts["revision"])
    asked = [path.strip("/") for path in request.json().get("paths", [])]
    files = [file_entry(path, commit.files[path]) for path in asked if path in commit.files]
    return json_answer(files + [folder_entry(p) for p in asked if any(f.startswith(f"{p}/") for f in commit.files)])


def refs(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Branches, tags and pull requests."""
    repo = hub.visible(kind(parts), parts["id"], request.user)
    heads = [(name, history[-1].sha) for name, history in repo.branches.items()]
    branches = [
        {"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in heads if not n.startswith("refs/pr/")
    ]
    pulls = [{"name": n, "ref": n, "targetCommit": s} for n, s in heads if n.startswith("refs/pr/")]
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repo.tags.items()]
    return json_answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": pulls})


def commits(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """The history of a revision."""
    history = hub.visible(kind(parts), parts["id"], request.user).history(parts["revision"])
    author = [{"user": parts["id"].split("/")[0]}]
    return json_answer(
        [{"id": c.sha, "title": c.title, "message": "", "date": c.date, "authors": author} for c in history]
    )


def branch(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Make or remove a branch."""
    repo, name = hub.writable(kind(parts), parts["id"], request.user), parts["name"]
    if request.method == "DELETE":
        repo.find(name)
        del repo.branches[name]
    elif name in repo.branches:
        raise HubError(409, "", f"Reference refs/heads/{name} already exists")
    else:
        start = request.json().get("startingPoint") or "main"
        repo.branches[name] = repo.history(start)[::-1]
    return json_answer({})


def tag(hub: LoopbackHub, request: Request, parts: dict[str, str]) -> Answer:
    """Make a tag of the revision in the path, or remove the tag in the path."""
    repo = hub.writable(kind(parts), parts["id"], request.user)
    if request.method == "DELETE":
        repo.find(parts["name"])
        del repo.tags[parts["name"]]
        return json_answer({})
    name = request.json()["tag"]
    if name in repo.tags:
        raise HubError(409, "", f"Tag {name} already exists")
    repo.tags[name] = repo.find(parts["name"]).sha
    return json_answer({})


ROUTES: list[tuple[str, re.Pattern[str], Callable[[LoopbackHub, Request, dict[str, str]], Answer]]] = [
    (methods, re.compile(path), route)
    for methods, path, route in (
        ("GET", r"/api/whoami-v2", whoami),
        ("POST", r"/api/repos/create", create_repo),
        ("DELETE", r"/api/repos/delete", delete_repo),
        ("POST", r"/api/validate-yaml", validate_yaml),
        ("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?", info),
        ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", tree),
        ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", paths_info),
        ("GET", rf"{API}/refs", refs),
        ("GET", rf"{API}/commits/(?P<revision>[^/]+)", commits),
        ("POST DELETE", rf"{API}/branch/(?P<name>[^/]+)", branch),
        ("POST DELETE", rf"{API}/tag/(?P<name>[^/]+)", tag),
        ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", preupload),
        ("POST", rf"{API}/commit/(?P<revision>[^/]+)", commit),
        ("POST", rf"{WEB}\.git/info/lfs/objects/batch", lfs_batch),
        ("PUT", r"/lfs/(?P<type>\w+)/(?P<id>.+)/upload/(?P<oid>\w+)", lfs_upload),
        ("POST", r"/lfs/(?P<type>\w+)/(?P<id>.+)/verify/(?P<oid>\w+)", lfs_verify),
        ("GET HEAD", rf"{WEB}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    )
]


def answer_to(hub: LoopbackHub, request: Request) -> Answer:
    """The answer of the route that fits.  Raises: HubError, also 404 where there is none."""
    for methods, pattern, route in ROUTES:
        found = pattern.fullmatch(request.path)
        if found is not None and request.method in methods.split():
            return route(hub, request, {name: unquote(part or "") for name, part in found.groupdict().items()})
    raise HubError(404, "", f"the loopback Hub knows no {request.method} {request.path}")
