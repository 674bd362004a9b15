"""`hf-mim publish`: what goes to the Hub, what is checked before, and what happens when something is wrong."""

import json
import shutil
from pathlib import Path

import huggingface_hub.hf_api
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load, load_file, save_file

from hf_mim.hub import publish_command
from hf_mim.hub.publish import publish, readable_size
from hf_mim.hub.publish_checks import check_text
from hf_mim.hub.remote_code import add_code
from tests.testing.loopback_requests import Handler
from tests.testing.loopback_store import READ_TOKEN, TOKEN
from tests.testing.tiny_run import CARD, tiny_model, write_run


ENCODER_FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "metrics.json",
    ".eval_results/knn.yaml",
    "curves.png",
}
FULL_FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "teacher/config.json",
    "teacher/model.safetensors",
    "teacher/centers.safetensors",
}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny-run"
    write_run(folder)
    return folder


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "tiny-run"))


@pytest.fixture
def api(loopback_hub) -> HfApi:
    return HfApi(endpoint=loopback_hub.url, token=TOKEN)


# Nothing listens there: who asks the Hub before the checks are done gets another error.
NOWHERE = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_encoder_and_full_model(loopback_hub, api, finished_run):
    before, lines = contents(finished_run), []
    urls = publish(finished_run, "org/tiny", full=True, api=api, report=lines.append)
    assert urls == [f"{loopback_hub.url}/org/tiny", f"{loopback_hub.url}/org/tiny-pretrain"]
    assert contents(finished_run) == before

    encoder, full = loopback_hub.files("org/tiny"), loopback_hub.files("org/tiny-pretrain")
    assert set(encoder) == ENCODER_FILES and set(full) == FULL_FILES
    for path in ENCODER_FILES - {"README.md", "config.json"}:
        assert encoder[path] == (finished_run / path).read_bytes()
    for path in FULL_FILES - {"README.md", "config.json", "teacher/config.json"}:
        assert full[path] == (finished_run / "pretraining" / path).read_bytes()
    for repo_id in ("org/tiny", "org/tiny-pretrain"):
        assert len(loopback_hub.commits(repo_id)) == 2 and not loopback_hub.is_private(repo_id)

    card = ModelCard(encoder["README.md"].decode())
    assert (card.data.license, card.data.model_name) == ("apache-2.0", "tiny")
    assert card.data.eval_results[0].metric_value == 61.5
    assert 'from_pretrained("org/tiny")' in card.text and "# tiny\n" in card.text
    card = ModelCard(full["README.md"].decode())
    assert card.data.license == "apache-2.0" and "org/tiny-pretrain" in card.text and "org/tiny)" in card.text

    encoder_lines = lines[0].splitlines()
    assert encoder_lines[0] == "org/tiny (public, unless set otherwise on the Hub)"
    assert "ViTModel" in encoder_lines[1] and encoder_lines[1].endswith("license: apache-2.0")
    listed = {line.split()[0]: line.split()[1:] for line in encoder_lines[2:]}
    assert set(listed) == ENCODER_FILES | {"total"}
    assert listed["metrics.json"] == [str(len(encoder["metrics.json"])), "B"]
    assert lines[2] == "not uploaded: checkpoint-4/, not_shown.png, trainer_state.json, training_args.bin"


def test_the_encoder_alone_and_private(loopback_hub, api, finished_run):
    lines = []
    publish(finished_run, "tester/tiny", private=True, api=api, report=lines.append)
    assert list(loopback_hub.repositories) == ["tester/tiny"] and loopback_hub.is_private("tester/tiny")
    assert lines[0].startswith("tester/tiny (private)") and "pretraining/" in lines[1]


def test_an_organization_that_is_private_by_default(loopback_hub, api, finished_run, monkeypatch):
    """There a new repository is public only where that was asked for."""
    monkeypatch.setattr(Handler.create_repository, "__defaults__", (None, "private"))
    for name, private in (("unsaid", None), ("said", False)):
        publish(finished_run, f"org/{name}", private=private, api=api, report=lambda line: None)
    assert loopback_hub.is_private("org/unsaid") and not loopback_hub.is_private("org/said")


def test_a_dry_run_asks_the_hub_nothing(capsys, finished_run, monkeypatch):
    def ask(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub.hf_api, "get_session", ask)
    publish_command.main([str(finished_run), "org/tiny", "--full", "--with_code", "--dry_run", "--token", TOKEN])
    output = capsys.readouterr().out
    assert output.endswith("dry run: nothing was uploaded\n")
    assert "org/tiny-pretrain (public, " in output and "modeling_ibot_pretraining.py" in output


def test_bookkeeping_stays_behind(loopback_hub, api, run):
    for folder in (run, run / "pretraining", run / "pretraining" / "teacher"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/me/x", "use_cache": False}))
    add_code(run / "pretraining")
    publish(run, "org/tiny", full=True, api=api, report=lambda line: None)
    assert set(loopback_hub.files("org/tiny-pretrain")) == FULL_FILES
    assert "auto_map" not in json.loads(loopback_hub.files("org/tiny-pretrain")["preprocessor_config.json"])
    for repo_id, paths in {
        "org/tiny": ["config.json"],
        "org/tiny-pretrain": ["config.json", "teacher/config.json"],
    }.items():
        for path in paths:
            config = json.loads(loopback_hub.files(repo_id)[path])
            assert config["hidden_size"] == 32 and not {"_name_or_path", "use_cache", "auto_map"} & config.keys()


def test_an_existing_repository_gets_a_new_commit(loopback_hub, api, run):
    publish(run, "org/tiny", full=True, api=api, report=lambda line: None)
    old = ["last-checkpoint/optimizer.pt", "model-00001-of-00002.safetensors", "pytorch_model.bin"]
    old += ["teacher/reference.json"]
    others = {"NOTES.md", "lora/adapter.safetensors", "lora/model.safetensors", "adapter.safetensors", "handler.py"}
    operations = [CommitOperationAdd(path, b"something old") for path in (*old, *others)]
    api.create_commit("org/tiny-pretrain", operations, commit_message="other")
    uploads, lines = loopback_hub.uploads, []
    (run / "README.md").write_text(CARD.replace("An encoder.", "A better encoder."))
    publish(run, "org/tiny", full=True, api=api, report=lines.append)
    assert "org/tiny exists already and gets a new commit" in lines
    assert "A better encoder." in loopback_hub.files("org/tiny")["README.md"].decode()
    assert loopback_hub.uploads == uploads
    # What somebody else has put there stays, what belongs to another model goes.
    assert set(loopback_hub.files("org/tiny-pretrain")) == FULL_FILES | others
    removed = "last-checkpoint/, model-00001-of-00002.safetensors, pytorch_model.bin, teacher/reference.json"
    assert f"removed from org/tiny-pretrain, left over from an earlier upload: {removed}" in lines
    assert not [line for line in lines if "removed from org/tiny," in line]
    with pytest.raises(ValueError, match="org/tiny exists and is public: choose another name"):
        publish(run, "org/tiny", private=True, api=api, report=lambda line: None)


def test_a_model_of_ours_alone(loopback_hub, api, run, tmp_path):
    """The folder that `hf-mim convert` writes: the full model at the root."""
    converted = Path(shutil.copytree(run / "pretraining", tmp_path / "converted"))
    card = CARD.replace("![Its curves](curves.png)\n\n", "").replace(
        "library_name: transformers", "library_name: hf_mim"
    )
    (converted / "README.md").write_text(card.replace("```python\n", "```python\nimport hf_mim\n"))
    publish(converted, "org/converted", with_code=True, api=api, report=lambda line: None)
    files = loopback_hub.files("org/converted")
    code = {path for path in files if path.endswith(".py")}
    assert set(files) - code == FULL_FILES and "modeling_ibot_pretraining.py" in code
    assert "AutoModelForPreTraining" in json.loads(files["config.json"])["auto_map"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers" and "import hf_mim" not in card.text
    assert 'AutoModel.from_pretrained("org/converted", trust_remote_code=True)\n```\n\nThe code of the' in card.text
    with pytest.raises(ValueError, match="the model in .* is the full one: leave out --full"):
        publish(converted, "org/converted", full=True, api=NOWHERE)


def test_code_only_where_it_is_needed(loopback_hub, api, run):
    publish(run, "org/tiny", full=True, with_code=True, api=api, report=lambda line: None)
    assert set(loopback_hub.files("org/tiny")) == ENCODER_FILES
    full = loopback_hub.files("org/tiny-pretrain")
    assert "trust_remote_code=True" in full["README.md"].decode()
    assert full["modeling_ibot.py"] and "auto_map" in json.loads(full["config.json"])
    assert "auto_map" not in (run / "pretraining" / "config.json").read_text()
    # Published again without it, the model needs the package again.
    publish(run, "org/tiny", full=True, api=api, report=lambda line: None)
    assert "auto_map" not in json.loads(loopback_hub.files("org/tiny-pretrain")["config.json"])
    assert set(loopback_hub.files("org/tiny-pretrain")) == FULL_FILES
    with pytest.raises(
        ValueError, match=r"loads with transformers alone \(with --full, the model in pretraining/ gets it"
    ):
        publish(run, "org/tiny", with_code=True, api=NOWHERE)


def test_interrupted_and_repeated(loopback_hub, api, finished_run):
    loopback_hub.refuse_uploads_from = 4
    with pytest.raises(
        OSError, match=r"the upload to org/tiny-pretrain was interrupted .*507.*the repository is unchanged"
    ):
        publish(finished_run, "org/tiny", full=True, api=api, report=lambda line: None)
    assert set(loopback_hub.files("org/tiny")) == ENCODER_FILES and loopback_hub.files("org/tiny-pretrain") == {}
    before = {path.name for path in loopback_hub.blobs.iterdir()}

    loopback_hub.refuse_uploads_from = None
    loopback_hub.cut_uploads = {loopback_hub.uploads + 1}
    uploads = loopback_hub.uploads
    publish(finished_run, "org/tiny", full=True, api=api, report=lambda line: None)
    full = loopback_hub.files("org/tiny-pretrain")
    assert set(full) == FULL_FILES
    weights = [path for path in full if path.endswith(".safetensors")]
    sent = {
        file.oid for path in weights if (file := loopback_hub.repositories["org/tiny-pretrain"].at("main").files[path])
    }
    # Only what had not arrived was sent, one of it twice because the connection was lost.
    assert loopback_hub.uploads - uploads == len(sent - before) + 1


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("org/tiny", "hf_wrong", "does not accept the token, which is mistyped, expired"),
        ("org/tiny", READ_TOKEN, "the token may not write to org/tiny"),
        ("others/tiny", TOKEN, 'may not write to others/tiny .You don.t have the rights to .* "others"'),
    ],
)
def test_tokens(loopback_hub, finished_run, repo_id, token, message):
    api = HfApi(endpoint=loopback_hub.url, token=token)
    with pytest.raises(PermissionError, match=message):
        publish(finished_run, repo_id, api=api, report=lambda line: None)
    assert loopback_hub.repositories == {}


def test_no_token(loopback_hub, finished_run, monkeypatch):
    monkeypatch.setattr(huggingface_hub.hf_api, "get_token", lambda: None)
    with pytest.raises(PermissionError, match="there is no Hub token: .* `hf auth login`"):
        publish(finished_run, "org/tiny", api=HfApi(endpoint=loopback_hub.url), report=lambda line: None)


def test_a_hub_that_refuses(loopback_hub, api, finished_run):
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9 cannot be reached"):
        publish(finished_run, "org/tiny", api=NOWHERE, report=lambda line: None)
    loopback_hub.refuse_commits = True
    with pytest.raises(PermissionError, match="may not write to org/tiny .This repository takes no commits"):
        publish(finished_run, "org/tiny", api=api, report=lambda line: None)


def edit(name: str, old: str, new: str):
    def change(run: Path):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return change


def remove(name: str):
    return lambda run: (run / name).unlink()


def weights(name: str, change):
    def rewrite(run: Path):
        tensors = load_file(run / name)
        change(tensors)
        save_file(tensors, run / name, metadata={"format": "pt"})

    return rewrite


def pickled(run: Path):
    (run / "model.safetensors").rename(run / "pytorch_model.bin")


def onnx_model(**metadata: str) -> bytes:
    """The smallest model, which returns its input."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [[helper.make_tensor_value_info(name, kind, [1])] for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "identity", *ends))
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


def picture(name: str, **texts: str):
    """A picture in the card, with texts beside its pixels."""

    def draw(run: Path):
        info = PngInfo()
        for key, value in texts.items():
            info.add_text(key, value)
        Image.new("RGB", (8, 8)).save(run / name, "PNG", pnginfo=info)
        show(run, name)

    return draw


def show(run: Path, name: str):
    card = run / "README.md"
    card.write_text(card.read_text() + f"\n![picture]({name})\n")


def link(name: str, target: str):
    """A link out of the folder in place of a file."""

    def replace(run: Path):
        secret = run.parent / "secret"
        shutil.copyfile(run / name, secret) if (run / name).exists() else secret.write_bytes(onnx_model())
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(secret if target == "outside" else target)
        if name.endswith(".png"):
            show(run, name)

    return replace


def with_metadata(**metadata: str):
    def rewrite(run: Path):
        tensors = load_file(run / "model.safetensors")
        save_file(tensors, run / "model.safetensors", metadata={"format": "pt"} | metadata)

    return rewrite


def other_format(run: Path):
    Image.new("RGB", (8, 8)).save(run / "curves.png", "GIF")
    show(run, "curves.png")


def text_as(name: str):
    def write(run: Path):
        (run / name).write_text("no picture and no model")
        if name.endswith(".png"):
            show(run, name)

    return write


def truncated(run: Path):
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[: len(content) // 2])


def picture_elsewhere(run: Path):
    Image.new("RGB", (8, 8)).save(run.parent / "curves.png")
    edit("README.md", "curves.png", "../curves.png")(run)


NORM = "vit.layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), "tiny-run holds no model"),
        (remove("README.md"), "tiny-run/README.md is missing: the card describes the model"),
        (remove("preprocessor_config.json"), "tiny-run has no preprocessor_config.json: save the image processor"),
        (
            edit(
                "preprocessor_config.json", '"image_processor_type": "ViTImageProcessor', '"image_processor_type": "X'
            ),
            "tiny-run/preprocessor_config.json does not load as an image processor",
        ),
        (
            edit("config.json", '"model_type": "vit"', '"model_type": "x"'),
            "config.json has the model type 'x', which",
        ),
        (lambda run: (run / "config.json").write_text("[]"), "tiny-run/config.json is not a valid configuration"),
        (remove("pretraining/teacher/centers.safetensors"), "pretraining/teacher has no centers.safetensors, which"),
        # the card
        (edit("README.md", "license: apache-2.0", "license: ["), "metadata of .*README.md are not valid"),
        (edit("README.md", "license: apache-2.0", "license: 2.0"), "license must be text, got 2.0"),
        (edit("README.md", "tags:\n- hf_mim\n- ibot", "tags: ibot"), "tags must be a list of words, got 'ibot'"),
        (edit("README.md", "    metrics:\n    - type: accuracy\n      value: 61.5\n", ""), "are not valid"),
        (lambda run: (run / "README.md").write_text("# tiny\n"), "README.md has no metadata"),
        (remove("curves.png"), "README.md shows curves.png, which does not exist"),
        (picture_elsewhere, "README.md shows ../curves.png, which is outside the folder"),
        (
            edit("README.md", "curves.png", "training_args.bin"),
            "shows training_args.bin: pictures .* one of .png, .jpg",
        ),
        (
            edit("README.md", "curves.png", "curves.svg"),
            "README.md shows curves.svg: pictures of a card must be one of",
        ),
        (
            lambda run: (run / "README.md").write_bytes(CARD.replace("nothing", "été").encode("latin-1")),
            "tiny-run/README.md is not text in UTF-8: invalid continuation byte in byte",
        ),
        # the weights
        (pickled, "no weights in .*safetensors, only the pickle pytorch_model.bin"),
        (remove("model.safetensors"), "no weights in .*safetensors: save the model"),
        (truncated, "model.safetensors is not what its name says"),
        (
            weights("model.safetensors", lambda tensors: tensors.pop("layernorm.weight")),
            "1 missing .*layernorm.weight",
        ),
        (weights("model.safetensors", lambda tensors: tensors.update(extra=tensors["layernorm.weight"] + 1)), "extra"),
        (
            weights("pretraining/model.safetensors", lambda tensors: tensors.pop("ibot.layernorm.bias")),
            "ibot.layernorm",
        ),
        (
            weights("pretraining/teacher/model.safetensors", lambda tensors: tensors.pop("ibot.layernorm.bias")),
            "teacher",
        ),
        (remove("pretraining/config.json"), "pretraining, which does not exist: it holds only an encoder"),
        # paths of this machine
        (
            edit("README.md", "It has learned", "From /home/me/photos it has learned"),
            "line 35: /home/me/photos is a local path",
        ),
        (edit("config.json", '"gelu"', '"gelu", "source": "/data/x/model"'), "config.json, line .*: /data/x/model is"),
        (edit("metrics.json", "{", '{"started_from": "C:\\\\\\\\Users\\\\\\\\me", '), "metrics.json, line 1: C:"),
        (
            edit(".eval_results/knn.yaml", "61.5", "61.5\n  notes: ~/results"),
            "knn.yaml, line 2: ~/results is a local path",
        ),
        (
            edit("README.md", "nothing", f"--token hf_{30 * 'a'}"),
            r"README.md, line 35, contains an access token or password \(Hugging Face\)",
        ),
        (
            edit("README.md", "nothing", "http://me:secret@host/data"),
            r"README.md, line 35, contains an access token or password \(Basic Auth Credentials\): (?!.*secret)",
        ),
        (edit("pretraining/config.json", '"gelu"', '"gelu", "x": "file:///x"'), "config.json, line .*: file:///x is"),
        # links and files that are not what they are called
        (
            link("model.safetensors", "outside"),
            "model.safetensors is a link out of .*tiny-run, to .*secret:",
        ),
        (link("model.onnx", "outside"), "model.onnx is a link out of .*tiny-run, to .*secret: put a copy"),
        (link("README.md", "outside"), "README.md is a link out of .*tiny-run, to .*secret: put a copy"),
        (link("config.json", "outside"), "config.json is a link out of .*tiny-run, to .*secret: put a copy"),
        (link("shown.png", "/etc/hostname"), "shown.png is a link out of .*tiny-run, to /etc/hostname: put a copy"),
        (link("model.onnx", "/dev/zero"), "model.onnx is a link out of .*tiny-run, to /dev/zero"),
        (text_as("shown.png"), "shown.png is not what its name says: cannot identify image file"),
        (text_as("model.onnx"), "model.onnx is not what its name says"),
        (other_format, "curves.png is not what its name says: it is a GIF picture"),
        (edit("metrics.json", "{", "{{"), "metrics.json is not what its name says"),
        # secrets in metadata, and tokens of other services
        (picture("shown.png", comment="ghp_" + 36 * "a"), r"shown.png \(comment\), line 1, contains an access token"),
        (picture("shown.png", where="/home/me/x.png"), r"shown.png \(where\), line 1: /home/me/x.png is a local path"),
        (
            with_metadata(key="AKIAIOSFODNN7EXAMPLE"),
            r"safetensors \(key\), line 1, contains an .*\(AWS Access Key",
        ),
        (
            with_metadata(source="/data/private/model.pth"),
            r"safetensors \(source\), line 1: /data/private/model",
        ),
        (
            lambda run: (run / "model.onnx").write_bytes(onnx_model(who="hf_" + 30 * "a")),
            r"model.onnx \(who\), line 1, con",
        ),
        (
            edit("README.md", "nothing", "-----BEGIN RSA PRIVATE KEY-----"),
            r"access token .*\(Private Key\)",
        ),
        (edit("README.md", "nothing", "WANDB_API_KEY=" + 40 * "a1"[:40]), "contains an access token"),
        (edit("README.md", "nothing", "sk-proj-" + 48 * "a"), r"contains an access token or password \(OpenAI"),
    ],
)
def test_what_is_not_published(run, change, message):
    change(run)
    with pytest.raises((ValueError, OSError), match=message):
        publish(run, "org/tiny", full=True, api=NOWHERE, report=lambda line: None)


@pytest.mark.parametrize(
    "repo_id", ["tiny", "org/", "/tiny", "org/tiny/x", "org/ti ny", "org/" + 100 * "x", "org/a--b"]
)
def test_names_of_repositories(finished_run, repo_id):
    with pytest.raises(ValueError, match="must be ORGANIZATION/NAME or USER/NAME|is not a valid repository name"):
        publish(finished_run, repo_id, api=NOWHERE)


@pytest.mark.parametrize(
    "text",
    [
        "with and/or without",
        "see https://huggingface.co/org/name/tree/main",
        "[paper](https://arxiv.org/abs/2111.07832), 16/64 patches, 3 / 4",
        "hf-mim pretrain ibot-vits16 --train_dir photos/train --output_dir runs/x",
        '{"model": "org/name", "layer": "model.layers.0/weight"}',
        "text in </b> and <a href='x'>y</a>/z, ~5 minutes, ~ 3/4, a:b/c",
        "<br/> <img src='x'/></p></div> a <b/c> d, http://host:8080/page, https://host/a:b@c",
    ],
)
def test_what_is_no_path_of_this_machine(text):
    check_text(text, "README.md")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("trained on /data/photos (private)", "/data/photos"),
        ('"--train_dir=/mnt/ssd/photos"', "/mnt/ssd/photos"),
        ("/root/x at the start", "/root/x"),
        ("`~/photos`", "~/photos"),
        ("~me/photos", "~me/photos"),
        (r"in D:\photos\train", r"D:\photos\train"),
        ("[log](/tmp/log.txt)", "/tmp/log.txt"),
        ("<code>/home/me/photos</code>", "/home/me/photos"),
        ("<file:///home/me>", "file:///home/me"),
        ("{/data/photos}", "/data/photos"),
        ("|/data/photos|", "/data/photos"),
    ],
)
def test_paths_of_this_machine(text, path):
    with pytest.raises(ValueError) as error:
        check_text(f"first line\n{text}", "README.md")
    assert str(error.value).startswith(f"README.md, line 2: {path} is a local path")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (35776, "35.8 kB"), (999_600, "1 MB"), (343_000_000, "343 MB")],
)
def test_readable_size(size, text):
    assert readable_size(size) == text


def test_weights_arrive_as_they_are(loopback_hub, api, finished_run):
    publish(finished_run, "org/tiny", full=True, api=api, report=lambda line: None)
    uploaded = load(loopback_hub.files("org/tiny-pretrain")["teacher/model.safetensors"])
    expected = tiny_model(1).state_dict()
    assert uploaded.keys() == expected.keys()
    assert all((uploaded[name] == tensor).all() for name, tensor in expected.items())


def test_an_onnx_file_goes_with_its_model(loopback_hub, api, run):
    nodes = onnx_model()
    (run / "model.onnx").write_bytes(nodes)
    (run / "model.onnx.data").write_bytes(b"weights")
    publish(run, "org/tiny", api=api, report=lambda line: None)
    files = loopback_hub.files("org/tiny")
    assert (files["model.onnx"], files["model.onnx.data"]) == (nodes, b"weights")
    (run / "model.onnx").unlink()
    (run / "model.onnx.data").unlink()
    lines = []
    publish(run, "org/tiny", api=api, report=lines.append)
    assert not loopback_hub.files("org/tiny").keys() & {"model.onnx", "model.onnx.data"}
    assert any("model.onnx, model.onnx.data" in line and "removed" in line for line in lines)
