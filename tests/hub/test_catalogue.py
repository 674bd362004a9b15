"""The catalogue of published checkpoints: whole, consistent, and in step with the recipes."""

import re

import pytest

from hf_mim.hub.catalogue import FIGURES, find_entry, format_catalogue, load_catalogue
from hf_mim.training.pretrain.recipe_files import RECIPES, list_recipes


CATALOGUE = load_catalogue()
OWN = ("quickstart", "cifar", "vitt16")


def test_every_recipe_of_a_published_model_has_its_entry():
    recipes = [name for name in list_recipes() if not any(part in name for part in OWN)]
    assert len(recipes) >= 12 and set(recipes) <= set(CATALOGUE)


@pytest.mark.parametrize("name", [name for name in list_recipes() if name in CATALOGUE])
def test_recipes_quote_the_same_figures(name):
    """`Reaches: 77.1 % k-NN, 79.5 % linear, ...` in the head of a recipe."""
    reaches = re.search(r"^# Reaches: (.*)$", (RECIPES / f"{name}.yaml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    figures = {float(figure) for figure in re.findall(r"([\d.]+) %", reaches)}
    assert figures <= set(CATALOGUE[name].reported.values()), name


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_entry(entry):
    assert (entry.url is None) != (entry.share is None)
    assert entry.license in ("apache-2.0", "mit") and entry.page.startswith("https://github.com/")
    assert set(entry.reported) <= set(FIGURES)
    assert all(20 < value <= 100 for value in entry.reported.values())
    assert (entry.classes is None) == (entry.finetuned_on is None)
    assert ("top1" in entry.reported) == (entry.finetuned_on is not None and entry.classes == 1000)
    if entry.method == "iBOT" and entry.url:
        assert entry.url.endswith("/checkpoint.pth")
        assert entry.encoder_url == entry.url.replace("checkpoint.pth", f"checkpoint_{entry.network}.pth")
    if entry.method == "dBOT":
        # The name of the file tells what its fine-tuned encoder reaches.
        prefix = float(entry.url.rsplit("/")[-1].split("_")[0])
        assert prefix == entry.reported.get("finetuned", entry.reported.get("top1"))


def test_addresses_are_those_of_the_authors_pages():
    ibot = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"
    assert find_entry("ibot-vitb16").url == f"{ibot}/vitb_16/checkpoint.pth"
    assert find_entry("ibot-vitl16-in22k").encoder_url == f"{ibot}/vitl_16_pt22k/checkpoint_student.pth"
    files = "https://github.com/addf400/files/releases/download/BEiT-v2"
    assert find_entry("beitv2-vitl16-ft21k-ft1k").url == f"{files}/beitv2_large_patch16_224_pt1k_ft21kto1k.pth"
    assert find_entry("vqkd-clip-vitb16").url == f"{files}/vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth"
    dbot = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/mmodal/dbot"
    assert find_entry("dbot-vith14-clip-448-ft1k").url == f"{dbot}/89.1_clip_huge_448_finetune.pth"


def test_no_two_entries_are_the_same_file():
    urls = [url for entry in CATALOGUE.values() for url in (entry.url, entry.encoder_url) if url]
    assert len(urls) == len(set(urls))


def test_unknown_name():
    with pytest.raises(ValueError, match="ibot-vitb: no such file, and .*, did you mean 'ibot-vitb16'?"):
        find_entry("ibot-vitb")


def test_table():
    lines = format_catalogue().splitlines()
    assert len(lines) == 1 + len(CATALOGUE) + 4 + 3
    assert len({line.index("ImageNet-") for line in lines[1 : 1 + len(CATALOGUE)]}) == 1
    line = next(line for line in lines if line.startswith("ibot-vitb16-in22k "))
    assert re.split(r"  +", line) == [
        "ibot-vitb16-in22k",
        "ViT-B/16",
        "block",
        "ImageNet-22K",
        "-",
        "student and teacher",
        "k-NN 71.1, linear 79.0, fine-tuned at 256 px 84.4 (student)",
    ]
    assert "in a cloud share" in next(line for line in lines if line.startswith("ibot-vits16-k1000 "))
    assert lines[-3:] == [
        "  iBOT     https://github.com/bytedance/ibot (apache-2.0)",
        "  BEiT v2  https://github.com/microsoft/unilm/tree/master/beit2 (mit)",
        "  dBOT     https://github.com/liuxingbin/dbot (apache-2.0)",
    ]
