"""The Hub of the tests answers the real client as the real one does."""

import hashlib
import urllib.request

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.testing.loopback_store import READ_TOKEN, TOKEN


WEIGHTS = bytes(range(256)) * 5000


@pytest.fixture
def api(loopback_hub):
    return HfApi(endpoint=loopback_hub.url, token=TOKEN)


def upload(api: HfApi, repo_id: str, files: dict[str, bytes], message: str = "files"):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message=message)


def test_upload_list_and_download(loopback_hub, api, tmp_path):
    assert api.whoami()["name"] == "tester"
    assert api.create_repo("org/model", private=True).repo_id == "org/model"
    assert loopback_hub.is_private("org/model")
    files = {"config.json": b"{}\n", "model.safetensors": WEIGHTS, "teacher/model.safetensors": WEIGHTS + b"!"}
    upload(api, "org/model", files, "first")
    assert loopback_hub.files("org/model") == files and loopback_hub.uploads == 2

    folder = api.snapshot_download("org/model", cache_dir=tmp_path)
    for path, content in files.items():
        with open(f"{folder}/{path}", "rb") as file:
            assert file.read() == content
    assert sorted(api.list_repo_files("org/model")) == sorted([".gitattributes", *files])
    top = {entry.path: entry for entry in api.list_repo_tree("org/model")}
    assert set(top) == {".gitattributes", "config.json", "model.safetensors", "teacher"}
    assert top["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert top["config.json"].lfs is None and top["config.json"].size == 3
    assert [entry.path for entry in api.get_paths_info("org/model", ["config.json", "none"])] == ["config.json"]

    # What has not changed is not sent again; what is not there can neither be deleted nor loaded.
    operations = [
        CommitOperationAdd("model.safetensors", WEIGHTS),
        CommitOperationAdd("config.json", b"[]\n"),
        CommitOperationDelete("teacher/"),
    ]
    api.create_commit("org/model", operations, commit_message="second")
    assert loopback_hub.uploads == 2
    assert loopback_hub.files("org/model") == {"config.json": b"[]\n", "model.safetensors": WEIGHTS}
    commits = api.list_repo_commits("org/model")
    assert [commit.title for commit in commits] == ["second", "first", "initial commit"]
    assert api.list_repo_refs("org/model").branches[0].target_commit == commits[0].commit_id
    old = api.hf_hub_download("org/model", "config.json", revision=commits[1].commit_id, cache_dir=tmp_path)
    with open(old) as file:
        assert file.read() == "{}\n"
    api.delete_repo("org/model")
    assert not api.repo_exists("org/model")


def test_part_of_a_file(loopback_hub, api):
    api.create_repo("org/model")
    upload(api, "org/model", {"model.safetensors": WEIGHTS})
    request = urllib.request.Request(
        f"{loopback_hub.url}/org/model/resolve/main/model.safetensors", headers={"Range": "bytes=1000-"}
    )
    with urllib.request.urlopen(request) as response:
        assert response.status == 206 and response.read() == WEIGHTS[1000:]
        assert response.headers["Content-Range"] == f"bytes 1000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"


def test_errors(loopback_hub, api, tmp_path):
    api.create_repo("org/model")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("org/model")
    assert api.create_repo("org/model", exist_ok=True).repo_id == "org/model"
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/other")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/model", revision="v1")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("org/model", "config.json", cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("others/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("org/mine", token=READ_TOKEN)
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        upload(api, "org/model", {"README.md": b"---\nlicense: [\n---\n"})

    api.create_repo("org/hidden", private=True)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/hidden", token=False)


def test_card(loopback_hub, api):
    api.create_repo("org/model")
    card = ModelCard("---\nlicense: mit\npipeline_tag: image-feature-extraction\ntags: [a]\n---\nText.\n")
    upload(api, "org/model", {"README.md": str(card).encode()})
    info = api.model_info("org/model")
    assert (info.pipeline_tag, info.tags, info.card_data.license) == ("image-feature-extraction", ["a"], "mit")


def test_what_goes_wrong_on_purpose(loopback_hub, api):
    api.create_repo("org/model")
    loopback_hub.refuse_uploads_from = 2
    files = {"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS + b"!"}
    with pytest.raises(RuntimeError, match="Error while uploading"):
        upload(api, "org/model", files)
    assert loopback_hub.files("org/model") == {}
    loopback_hub.refuse_uploads_from, loopback_hub.cut_uploads = None, {3}
    upload(api, "org/model", files)
    assert loopback_hub.files("org/model") == files
    # One came through before, one was cut and sent again.
    assert loopback_hub.uploads == 4

    loopback_hub.refuse_commits = True
    with pytest.raises(HfHubHTTPError, match="403"):
        upload(api, "org/model", {"config.json": b"{}"})
