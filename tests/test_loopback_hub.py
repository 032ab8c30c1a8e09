"""The loopback Hub is a Hub for `huggingface_hub` and `datasets`: what they push comes back, and what they must notice they notice."""

import hashlib
import inspect
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
from huggingface_hub import (
    HfApi,
    HfFileSystem,
    ModelCard,
    get_token,
    hf_hub_download,
    metadata_update,
    repocard,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

NAME = "user/flow"
FILES = {
    "README.md": b"---\nlicense: mit\ntags:\n- flow-matching\n---\n# A flow\n",
    "model/config.json": b'{"width": 8}',
    "model/weights.safetensors": bytes(range(256)) * 40,
    "picture.png": b"\x89PNG\r\n" + b"p" * 3000,
    "empty.txt": b"",
}
LARGE = {path: content for path, content in FILES.items() if path.endswith((".safetensors", ".png"))}


def write(folder, files):
    """Put files into a folder."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def read(folder):
    """The files of a folder, without those that huggingface_hub keeps beside them."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts
    }


def sha256(content):
    """The name of a large file."""
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def api(hub):
    """A client with the token of the user."""
    return HfApi()


@pytest.fixture
def folder(tmp_path):
    """A folder with small and large files."""
    return write(tmp_path / "folder", FILES)


# Uploads


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_round_trip(hub, api, folder, tmp_path, repo_type):
    """A folder comes back as it was pushed, large files through LFS, whatever the type of the repository."""
    url = api.create_repo(NAME, repo_type=repo_type, **({"space_sdk": "static"} if repo_type == "space" else {}))
    assert (url.repo_id, url.repo_type) == (NAME, repo_type)
    commit = api.upload_folder(folder_path=folder, repo_id=NAME, repo_type=repo_type)
    assert hub.files(NAME, repo_type=repo_type) == FILES
    assert {path.rsplit("/")[-1] for path in hub.matching("PUT ")} == {sha256(content) for content in LARGE.values()}
    assert read_back(tmp_path, repo_type) == FILES
    info = api.repo_info(NAME, repo_type=repo_type, files_metadata=True)
    assert info.sha == commit.oid
    assert {s.rfilename: s.size for s in info.siblings} == {path: len(content) for path, content in FILES.items()}
    assert {s.rfilename: s.lfs.sha256 for s in info.siblings if s.lfs} == {p: sha256(c) for p, c in LARGE.items()}
    assert info.card_data["license"] == "mit"


def read_back(tmp_path, repo_type="model"):
    """What snapshot_download makes of the repository."""
    target = tmp_path / "back"
    snapshot_download(NAME, repo_type=repo_type, local_dir=target)
    return read(target)


def test_hashes_are_those_of_git(hub, api, folder):
    """The tree gives the hash `git hash-object` gives, and the sha256 of large files."""
    hub.create(NAME, FILES)
    tree = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True)}
    config = tree["model/config.json"]
    assert config.blob_id == hashlib.sha1(b"blob 12\0" + FILES["model/config.json"]).hexdigest()
    assert tree["picture.png"].lfs.sha256 == sha256(FILES["picture.png"])
    assert {entry.path for entry in api.list_repo_tree(NAME)} == {"README.md", "model", "picture.png", "empty.txt"}
    assert [e.path for e in api.list_repo_tree(NAME, "model")] == ["model/config.json", "model/weights.safetensors"]
    found = api.get_paths_info(NAME, ["model", "picture.png", "nowhere"])
    assert {entry.path for entry in found} == {"model", "picture.png"}


def test_an_unchanged_folder_is_not_uploaded_again(hub, api, folder):
    """The second push sends no file and makes no commit."""
    api.create_repo(NAME)
    first = api.upload_folder(folder_path=folder, repo_id=NAME)
    hub.requests.clear()
    second = api.upload_folder(folder_path=folder, repo_id=NAME)
    assert second.oid == first.oid
    assert not hub.matching("PUT ")
    assert not hub.matching("/commit/")


def test_an_interrupted_upload_sends_only_what_is_missing_when_repeated(hub, api, folder):
    """While one large file can't get through nothing is committed; the repeated push sends this one and not the other."""
    api.create_repo(NAME)
    missing = sha256(FILES["picture.png"])
    hub.fail(f"upload/{missing}", after_bytes=1000, times=None)
    with pytest.raises(Exception, match=r"picture\.png"):
        api.upload_folder(folder_path=folder, repo_id=NAME)
    assert hub.files(NAME) == {}
    hub.heal()
    hub.requests.clear()
    api.upload_folder(folder_path=folder, repo_id=NAME)
    assert [path.rsplit("/")[-1] for path in hub.matching("PUT ")] == [missing]
    assert hub.files(NAME) == FILES


def test_a_connection_lost_once_is_survived_by_the_client(hub, api, folder):
    """A single drop of an upload is repeated by huggingface_hub itself."""
    api.create_repo(NAME)
    hub.fail("PUT ", after_bytes=10)
    api.upload_folder(folder_path=folder, repo_id=NAME)
    assert hub.files(NAME) == FILES
    assert len(hub.matching("PUT ")) == len(LARGE) + 1


def test_content_with_a_wrong_hash_is_refused(hub, api):
    """An LFS object must be what its address says."""
    from huggingface_hub.utils import get_session

    api.create_repo(NAME)
    url = f"{hub.url}/lfs/models/{NAME}/upload/{sha256(b'right')}"
    assert get_session().put(url, data=b"wrong").status_code == 400
    assert hub.repo(NAME).objects == {}


def test_a_commit_that_dies_changes_nothing(hub, api, folder):
    """The connection is lost within the commit: the branch is what it was."""
    before = hub.create(NAME, {"config.json": "{}"})
    hub.fail(f"/api/models/{NAME}/commit/", after_bytes=30, times=None)
    with pytest.raises(Exception, match=r"(?i)disconnect|reset|abort|broken"):
        api.upload_folder(folder_path=folder, repo_id=NAME)
    assert api.model_info(NAME).sha == before


def test_commits_delete_and_check_their_parent(hub, api, folder):
    """Files and folders are deleted; a commit on a parent that is not the last one is refused."""
    first = hub.create(NAME, FILES)
    api.delete_folder("model", NAME)
    api.delete_file("picture.png", NAME)
    assert set(hub.files(NAME)) == {"README.md", "empty.txt"}
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=NAME, parent_commit=first)
    assert [commit.commit_id for commit in api.list_repo_commits(NAME)][-1] == first


def test_pull_requests(hub, api, folder):
    """A push with create_pr leaves the branch alone; a further push to the request's own reference goes there."""
    hub.create(NAME, {"config.json": "{}"})
    commit = api.upload_folder(folder_path=folder, repo_id=NAME, create_pr=True)
    assert commit.pr_revision == "refs/pr/1"
    api.upload_file(path_or_fileobj=b"more", path_in_repo="more.txt", repo_id=NAME, revision="refs/pr/1")
    assert hub.files(NAME) == {"config.json": b"{}"}
    assert hub.files(NAME, "refs/pr/1") == {"config.json": b"{}", "more.txt": b"more", **FILES}
    assert [ref.name for ref in api.list_repo_refs(NAME, include_pull_requests=True).pull_requests] == ["refs/pr/1"]
    assert api.model_info(NAME, revision="refs/pr/1").sha == hub.repo(NAME).find("refs/pr/1").sha


# Downloads


def test_revisions_by_branch_tag_and_hash(hub, api):
    """Each name of a state gives this state, and a load from the cache by hash is the same file."""
    old = hub.create(NAME, {"config.json": "old"})
    api.create_branch(NAME, branch="feature/x")
    api.create_tag(NAME, tag="v1")
    new = hub.commit(NAME, {"config.json": "new"})
    api.upload_file(path_or_fileobj=b"branch", path_in_repo="config.json", repo_id=NAME, revision="feature/x")
    expected = {None: "new", "main": "new", new: "new", old: "old", old[:8]: "old", "v1": "old", "feature/x": "branch"}
    for revision, content in expected.items():
        with open(hf_hub_download(NAME, "config.json", revision=revision)) as file:
            assert file.read() == content
    refs = api.list_repo_refs(NAME)
    assert {ref.name for ref in refs.branches} == {"main", "feature/x"}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": old}
    api.delete_branch(NAME, branch="feature/x")
    api.delete_tag(NAME, tag="v1")
    for revision in ("feature/x", "v1", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(NAME, revision=revision)


def test_an_interrupted_download_leaves_nothing_that_looks_complete(hub, tmp_path):
    """The file does not appear in the snapshot until it is whole, and the repeated load has every byte."""
    hub.create(NAME, FILES)
    hub.fail("GET /user/flow/resolve", after_bytes=100, times=None)
    with pytest.raises(Exception, match=r"(?i)closed|incomplete|broken|disconnect|consistency|without sending"):
        hf_hub_download(NAME, "model/weights.safetensors")
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(NAME, "model/weights.safetensors", local_files_only=True)
    hub.heal()
    with open(hf_hub_download(NAME, "model/weights.safetensors"), "rb") as file:
        assert file.read() == FILES["model/weights.safetensors"]


def test_a_download_interrupted_once_is_resumed(hub):
    """The client (older ones when they are called again) asks for the rest of the file, and gets it from this byte on."""
    hub.create(NAME, FILES)
    hub.fail("GET /user/flow/resolve", after_bytes=100)
    with suppress(OSError):
        hf_hub_download(NAME, "model/weights.safetensors")
    with open(hf_hub_download(NAME, "model/weights.safetensors"), "rb") as file:
        assert file.read() == FILES["model/weights.safetensors"]
    assert len(hub.matching("GET /user/flow/resolve")) == 2


@pytest.mark.parametrize("asked", ["bytes=10-19", "bytes=10-", "bytes=10-99999", "bytes=99999-"])
def test_ranges(hub, asked):
    """A range of bytes is the slice of the file; beyond its end there is nothing to give."""
    from huggingface_hub.utils import get_session

    hub.create(NAME, FILES)
    answer = get_session().get(f"{hub.url}/{NAME}/resolve/main/model/weights.safetensors", headers={"Range": asked})
    first, last = asked.removeprefix("bytes=").split("-")
    expected = FILES["model/weights.safetensors"][int(first) : int(last or 99999) + 1]
    assert answer.status_code == (206 if expected else 416)
    assert not expected or answer.content == expected


def test_offline_after_one_load(hub, offline):
    """The second load, offline, asks for nothing; of what was never loaded it says that it is not there."""
    hub.create(NAME, FILES)
    hub.create("user/second", FILES)
    loaded = snapshot_download(NAME)
    assert hub.requests
    hub.requests.clear()
    with offline():
        assert snapshot_download(NAME) == loaded
        with pytest.raises(LocalEntryNotFoundError):
            snapshot_download("user/second")
    assert hub.requests == []
    snapshot_download("user/second")


def test_offline_in_a_fresh_process(hub, hub_env):
    """The environment of hub_env reaches this Hub, with a cache of its own that serves the offline process after it."""
    hub.create(NAME, FILES, private=True)
    code = f"from huggingface_hub import snapshot_download; print(snapshot_download({NAME!r}))"
    online = subprocess.run([sys.executable, "-c", code], env=hub_env, capture_output=True, text=True, check=True)
    assert online.stdout.startswith(hub_env["HF_HOME"])
    hub.requests.clear()
    env = {**hub_env, "HF_HUB_OFFLINE": "1"}
    again = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (again.stdout, hub.requests) == (online.stdout, [])


# Refusals


def test_who_may_see_a_private_repository(hub, api):
    """The owner does; for others and for nobody it does not exist; a token nobody has is refused as such, public or not."""
    hub.create(NAME, FILES, private=True)
    hub.create("user/public", FILES)
    assert api.model_info(NAME).private
    for token in (False, "hf_other"):
        for call in (api.model_info, lambda name, token: hf_hub_download(name, "README.md", token=token)):
            with pytest.raises(RepositoryNotFoundError):
                call(NAME, token=token)
        assert hf_hub_download("user/public", "README.md", token=token)
    for name in (NAME, "user/public"):
        with pytest.raises(HfHubHTTPError, match=r"401[\s\S]*Invalid credentials"):
            api.model_info(name, token="hf_wrong")
    with pytest.raises(OSError, match=r"(?i)invalid user token"):
        api.whoami(token="hf_wrong")
    assert api.whoami()["name"] == "user"


def test_who_may_write(hub, api):
    """The owner does, others are refused, and nothing has changed."""
    hub.create(NAME, FILES)
    for token, status in ((False, 401), ("hf_other", 403), ("hf_wrong", 401)):
        with pytest.raises(HfHubHTTPError, match=str(status)):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=NAME, token=token)
        with pytest.raises(HfHubHTTPError, match=str(status)):
            api.create_repo("user/new", token=token)
    assert hub.files(NAME) == FILES
    assert list(hub.repos) == [("model", NAME)]


def test_gated(hub, api):
    """A gated repository is known to all and its files are given to its owner."""
    hub.create(NAME, FILES, gated=True)
    assert api.model_info(NAME, token="hf_other").gated == "manual"
    with pytest.raises(GatedRepoError):
        hf_hub_download(NAME, "README.md", token="hf_other")
    assert hf_hub_download(NAME, "README.md")


def test_what_is_not_there(hub, api):
    """Repositories, files, folders, revisions and branches to commit to: each has its own error."""
    hub.create(NAME, FILES)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/nothing")
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("nothing")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info(NAME)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(NAME, "nothing.json")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(NAME, "nothing"))
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(NAME, "README.md", revision="nothing")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=NAME, revision="nothing")
    assert not api.repo_exists("user/nothing")
    assert api.file_exists(NAME, "README.md")


def test_repositories_are_made_once_and_deleted(hub, api):
    """A second creation is a conflict unless it is allowed for."""
    api.create_repo("flow", private=True)
    assert hub.repo(NAME).private
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(NAME)
    assert api.create_repo(NAME, exist_ok=True).repo_id == NAME
    api.create_tag(NAME, tag="v1")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(NAME, tag="v1")
    api.delete_repo(NAME)
    assert not api.repo_exists(NAME)


def test_faults_answer_a_status_as_often_as_asked(hub, api):
    """A status that is not worth repeating is seen at once, and the next request is answered."""
    hub.create(NAME, FILES)
    hub.fail(lambda line: line.startswith("GET /api/models"), status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.model_info(NAME)
    assert api.model_info(NAME).id == NAME
    with pytest.raises(ValueError, match="one of them"):
        hub.fail("GET")


# Cards


def test_cards_are_found_and_broken_ones_refused(hub, api):
    """The metadata of the card is that of the repository; broken YAML and a Space's wrong sdk are refused before anything is sent."""
    hub.create(NAME, FILES)
    assert ModelCard.load(NAME).data.license == "mit"
    assert api.model_info(NAME).tags == ["flow-matching"]
    before = hub.files(NAME)
    for broken in (b"---\nlicense: [mit\n---\n", b"---\n- a list\n---\n"):
        with pytest.raises((BadRequestError, ValueError), match=r"(?i)metadata"):
            api.upload_file(path_or_fileobj=broken, path_in_repo="README.md", repo_id=NAME)
    assert hub.files(NAME) == before
    api.create_repo(NAME, repo_type="space", space_sdk="gradio")
    readme = b"---\nsdk: gradioo\ncolorFrom: pinkish\n---\n"
    with pytest.raises((BadRequestError, ValueError), match=r"sdk[\s\S]*colorFrom"):
        api.upload_file(path_or_fileobj=readme, path_in_repo="README.md", repo_id=NAME, repo_type="space")


@pytest.mark.skipif(
    "huggingface.co/api/validate-yaml" in inspect.getsource(repocard),
    reason="this huggingface_hub asks the real Hub, whatever HF_ENDPOINT says",
)
def test_cards_are_validated_and_pushed(hub, api):
    """ModelCard's own validation and push, and a change of the metadata alone."""
    api.create_repo(NAME)
    card = ModelCard(FILES["README.md"].decode())
    card.validate()
    card.push_to_hub(NAME)
    assert hub.files(NAME)["README.md"].decode().strip() == str(card).strip()
    metadata_update(NAME, {"pipeline_tag": "other"})
    assert ModelCard.load(NAME).data.pipeline_tag == "other"
    assert api.model_info(NAME).pipeline_tag == "other"


# Data sets


def test_data_sets_come_back(hub, tmp_path):
    """Dataset.push_to_hub and load_dataset: rows and splits, at a revision, and streamed."""
    from datasets import Dataset, DatasetDict, load_dataset

    rows = {"x": [[float(i), float(-i)] for i in range(12)], "label": [i % 3 for i in range(12)]}
    data = DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(rows).select(range(5))})
    first = data.push_to_hub("user/points").oid
    assert {path.split("-")[0] for path in hub.files("user/points", repo_type="dataset")} == {
        "README.md",
        "data/train",
        "data/test",
    }
    data["train"].select(range(2)).push_to_hub("user/points")
    assert load_dataset("user/points", split="train", revision=first).to_dict() == rows
    assert load_dataset("user/points", split="train").num_rows == 2
    streamed = load_dataset("user/points", split="test", streaming=True)
    assert [row["label"] for row in streamed] == rows["label"][:5]


def test_files_of_a_data_set_are_read_by_path(hub):
    """The hf:// file system lists and reads them."""
    hub.create("user/points", {"data/train.csv": "x,y\n1,2\n"}, repo_type="dataset")
    files = HfFileSystem()
    assert files.glob("datasets/user/points/**/*.csv") == ["datasets/user/points/data/train.csv"]
    assert files.read_text("datasets/user/points/data/train.csv") == "x,y\n1,2\n"


# Isolation


def test_every_test_has_a_hub_and_a_cache_of_its_own(hub):
    """What other tests have made and loaded is not here."""
    assert hub.repos == {}
    assert hub.requests == []
    assert get_token() == "hf_good"
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(NAME, local_files_only=True)


def test_without_the_fixture_there_is_no_network():
    """Tests that do not ask for the Hub are offline, and so are the processes they start; the real Hub is nobody's endpoint."""
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    assert constants.ENDPOINT.startswith("http://127.0.0.1:")
    assert get_token() is None
    with pytest.raises(socket.gaierror, match="huggingface"):
        socket.create_connection(("huggingface.co", 443))
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(NAME)
    names = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET")
    code = f"import json, os; print(json.dumps([os.environ[name] for name in {names}]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == [constants.ENDPOINT, "1", "1"]
    assert os.environ["HF_HOME"] == constants.HF_HOME
