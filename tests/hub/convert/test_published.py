"""`hf-mim convert NAME OUT`: published checkpoints, here from a server on this machine."""

import json
import re
import shlex
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel

from hf_mim import IBotForPreTraining, IBotModel, convert_checkpoint
from hf_mim.hub.catalogue import ARCHITECTURES, load_catalogue
from hf_mim.hub.convert.command import main, shown_command
from hf_mim.methods import METHODS
from hf_mim.training.pretrain.recipe_files import list_recipes
from tests.testing.file_server import FileServer
from tests.testing.official_ibot import full_checkpoint, part


@pytest.fixture(scope="module")
def contents(ibot_golden, tmp_path_factory):
    """A full checkpoint as `checkpoint.pth` of iBOT's ViT-S/16 and ViT-B/16 on 22K, and their encoders' files."""
    trace = ibot_golden("train_trace_shared_f64")[0] | ibot_golden("train_trace_shared")[0]
    full = full_checkpoint(trace, "final", 3)
    file = tmp_path_factory.mktemp("official") / "file.pth"
    contents = {}
    for folder, network in (("vits_16", "teacher"), ("vitb_16_pt22k", "student")):
        torch.save(full, file)
        contents[f"/{folder}/checkpoint.pth"] = file.read_bytes()
        prefix = "backbone." if network == "teacher" else "module.backbone."
        torch.save({"state_dict": part(full[network], prefix)}, file)
        contents[f"/{folder}/checkpoint_{network}.pth"] = file.read_bytes()
    return contents


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The entries of which there are files here have their size."""
    monkeypatch.setitem(ARCHITECTURES, "ViT-S", (48, "2", "2"))
    for name in ("ibot-vits16", "ibot-vits16-k1000", "ibot-vitb16-in22k"):
        entry = replace(load_catalogue()[name], architecture="ViT-S/8", image_size=32)
        monkeypatch.setitem(load_catalogue(), name, entry)


@pytest.fixture
def server(contents):
    with FileServer(dict(contents)) as server:
        yield server


@pytest.fixture
def convert(server, tmp_path):
    def convert(name, *options):
        cache = ("--mirror", f"{server.url}/", "--cache_dir", str(tmp_path / "cache"))
        main([name, str(tmp_path / "out"), "--num_attention_heads", "2", *cache, *options])
        return tmp_path / "out"

    return convert


def without_loading(card: str) -> str:
    """A card without the code that loads its folder, which publishing replaces."""
    return re.sub(r'from_pretrained\("[^"]*"\)|--model_name_or_path \S+', "", card)


def test_list(capsys):
    main(["--list"])
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in load_catalogue())


def test_download_and_convert(convert, server, contents, tmp_path, capsys):
    output = convert("ibot-vits16")
    (path,) = (tmp_path / "cache" / "ibot-vits16").glob("*.pth")
    assert path.name == "checkpoint.pth" and path.read_bytes() == contents["/vits_16/checkpoint.pth"]
    record = json.loads((path.parent / "checkpoint.pth.json").read_text())
    assert record["url"] == f"{server.url}/vits_16/checkpoint.pth" and record["size"] == path.stat().st_size
    expected = convert_checkpoint(path, num_attention_heads=2).model.state_dict()
    for name, tensor in IBotForPreTraining.from_pretrained(output).state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert str(path) in capsys.readouterr().out
    card = (output / "README.md").read_text()
    assert "| network | student, and the teacher in `teacher/` |" in card
    assert (
        "\nhf-mim convert ibot-vits16 OUT --num_attention_heads 2\n" in card
        and f"({server.url}/vits_16/checkpoint.pth)" in card
    )
    assert "| ImageNet-1K top-1, k-NN | 75.2 |" in card and "apache-2.0; it states no other" in card
    assert str(tmp_path) not in without_loading(card) and "| converted with | hf_mim " in card
    # The figures are of the teacher.
    assert "of the encoder of the teacher" in card and ModelCard(card).data.eval_results is None
    # Once more, from the cache: the card tells where it came from.
    convert_again = ["ibot-vits16", str(tmp_path / "again"), "--num_attention_heads", "2", "--native"]
    main([*convert_again, "--mirror", "http://127.0.0.1:9", "--cache_dir", str(tmp_path / "cache")])
    assert len(server.requests) == 1
    card = (tmp_path / "again" / "README.md").read_text()
    data = ModelCard(card).data
    assert f"({server.url}/vits_16/checkpoint.pth)" in card
    assert "| network | teacher |" in card and data.library_name == "transformers"
    assert [result.metric_value for result in data.eval_results] == [75.2, 77.9]
    assert (tmp_path / "again" / "pretraining" / "teacher" / "centers.safetensors").is_file()
    AutoModel.from_pretrained(tmp_path / "again")


def test_encoder_only(convert, contents, tmp_path):
    output = convert("ibot-vits16", "--encoder_only")
    assert [file.name for file in (tmp_path / "cache" / "ibot-vits16").glob("*.pth")] == ["checkpoint_teacher.pth"]
    assert type(IBotModel.from_pretrained(output)) is IBotModel and not (output / "teacher").exists()
    card = (output / "README.md").read_text()
    assert "| network | teacher |" in card and "OUT --num_attention_heads 2 --encoder_only" in card


def test_the_networks_of_a_student(convert, tmp_path):
    output = convert("ibot-vitb16-in22k", "--native", "--which", "student")
    card = (output / "README.md").read_text()
    assert "| network | student |" in card and "of the encoder of the student" in card
    assert "hf-mim convert ibot-vitb16-in22k OUT --which student --num_attention_heads 2 --native" in card


def test_figures_of_the_other_network(convert):
    """Of a checkpoint whose figures are the student's, the encoder that is deployed is the teacher's."""
    card = (convert("ibot-vitb16-in22k", "--native") / "README.md").read_text()
    assert "| network | teacher |" in card and ModelCard(card).data.eval_results is None
    assert "of the encoder of the student, not of the teacher, which is the one here. Here nothing" in card


def test_a_file_fetched_by_hand(contents, tmp_path):
    (tmp_path / "mine.pth").write_bytes(contents["/vits_16/checkpoint_teacher.pth"])
    options = ["--num_attention_heads", "2"]
    with pytest.raises(ValueError, match="is in a cloud share .*open https://drive.google.com/.* with --file FILE"):
        main(["ibot-vits16-k1000", str(tmp_path / "out"), *options])
    main(["ibot-vits16-k1000", str(tmp_path / "out"), *options, "--file", str(tmp_path / "mine.pth")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "[cloud share](https://drive.google.com/" in card and "1,000 prototypes" in card and "mine" not in card
    assert "hf-mim convert ibot-vits16-k1000 OUT --num_attention_heads 2 --file FILE" in card


def test_a_path_has_a_card_of_what_is_known(contents, tmp_path):
    (tmp_path / "mine.pth").write_bytes(contents["/vits_16/checkpoint_teacher.pth"])
    main([str(tmp_path / "mine.pth"), str(tmp_path / "out"), "--num_attention_heads", "2", "--native"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "converted by `hf_mim` from `mine.pth`" in card
        and "hf-mim convert mine.pth OUT --num_attention_heads 2 --native" in card
    )
    assert "reported" not in card.lower() and str(tmp_path) not in without_loading(card)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ibot-vits", "OUT"], "did you mean 'ibot-vits16'"),
        (["nothing.pth", "OUT"], "nothing.pth"),
        (["FILE", "OUT", "--encoder_only"], "--encoder_only is for published checkpoints"),
        (["FILE", "OUT", "--mirror", "http://127.0.0.1:9"], "--mirror is for published checkpoints"),
        (["FILE", "OUT", "--sha256", "00"], "instead of 00: it is another file"),
        (["https://host/x.pth", "OUT"], "SOURCE is a URL: download the file"),
        (
            ["ibot-vits16", "OUT", "--mirror", "http://me:secret@host/"],
            "^(?!.*secret).*--mirror contains a user name",
        ),
        (["ibot-vitb16", "OUT", "--file", "FILE"], "mine.pth is not ibot-vitb16: it is ibot, 2 blocks, .*FILE OUT"),
        (["dbot-vitb16", "OUT", "--file", "FILE"], "mine.pth is not dbot-vitb16: it is dbot, 2 blocks, width 48"),
        (["ibot-vits16", "OUT", "--file", "FILE", "--family", "dbot"], "is dbot, .*; the published one is ibot, "),
        (["ibot-vitb16-in22k", "OUT", "--file", "FILE"], "no mask token, so it is a teacher, .* is the student's"),
        (["beitv2-vitb16", "OUT", "--encoder_only"], "beitv2-vitb16 has only one file: leave out --encoder_only"),
        (
            ["ibot-vits16", "OUT", "--mirror", "SERVER/elsewhere"],
            "elsewhere/vits_16/checkpoint.pth: the server",
        ),
    ],
)
def test_refused(server, contents, tmp_path, arguments, message):
    (tmp_path / "mine.pth").write_bytes(contents["/vits_16/checkpoint_teacher.pth"])
    places = {"OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "mine.pth")}
    arguments = [places.get(word, word).replace("SERVER", server.url) for word in arguments]
    with pytest.raises((ValueError, OSError), match=message):
        main([*arguments, "--num_attention_heads", "2"])
    assert not (tmp_path / "out").exists()


def test_a_students_file_is_not_the_teachers(contents, tmp_path):
    (tmp_path / "mine.pth").write_bytes(contents["/vitb_16_pt22k/checkpoint_student.pth"])
    arguments = [str(tmp_path / "out"), "--num_attention_heads", "2", "--file", str(tmp_path / "mine.pth")]
    with pytest.raises(
        ValueError, match="it has a mask token, so it is a student, but the published encoder is the teach"
    ):
        main(["ibot-vits16", *arguments])
    main(["ibot-vitb16-in22k", *arguments])


def test_a_folder_hides_no_name(convert, tmp_path, monkeypatch):
    (tmp_path / "ibot-vits16").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (convert("ibot-vits16") / "teacher").is_dir()


def test_the_command_on_the_card_is_the_one_that_was_run():
    options = ["--family", "ibot", "--config_overrides", "id2label={0: a b}", "--which", "teacher", "--native"]
    places = ["--file", "/here/mine.pth", "--cache_dir", "/cache", "--mirror", "http://host"]
    shown = shlex.split(shown_command(["ibot-vits16", "/there/out", *options, *places]))
    assert shown[:4] == ["hf-mim", "convert", "ibot-vits16", "OUT"] and shown[-2:] == ["--file", "FILE"]
    assert sorted(shown[4:-2]) == sorted(options)
    assert shown_command(["/here/my file.pth", "out"]) == "hf-mim convert 'my file.pth' OUT"


def test_recipes_that_are_shown():
    assert {method.recipe for method in METHODS} <= set(list_recipes())


def test_an_interrupted_download_goes_on(convert, server, contents, tmp_path):
    whole = contents["/vits_16/checkpoint.pth"]
    server.cut_after = len(whole) // 2
    with pytest.raises(OSError, match="the same command resumes from there"):
        convert("ibot-vits16")
    assert not (tmp_path / "out").exists()
    server.cut_after = None
    convert("ibot-vits16")
    assert server.requests[-1][1] == f"bytes={len(whole) // 2}-"
