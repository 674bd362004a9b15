"""Official iBOT checkpoints through `convert_checkpoint` and `hf-mim convert`: same numbers, nothing lost."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining
from transformers.image_utils import PILImageResampling

import hf_mim_cli as cli
from hf_mim import (
    Beitv2ForPreTraining,
    Beitv2Model,
    DBotModel,
    IBotForImageClassification,
    IBotForPreTraining,
    IBotModel,
    IBotSwinModel,
    VQKDModel,
    convert_checkpoint,
)
from hf_mim.hub.convert.ibot import official_name
from tests.testing.official_ibot import LISTINGS, full_checkpoint, part, released_weights


@pytest.fixture(scope="module")
def trace(ibot_golden):
    return ibot_golden("train_trace_shared_f64")[0] | ibot_golden("train_trace_shared")[0]


@pytest.fixture(scope="module")
def encoder(ibot_golden):
    """An encoder's official weights, images and the tokens that the original gives for them."""
    tensors, _ = ibot_golden("vit_backbone")
    return part(tensors, "sd/"), tensors["x"], tensors["tokens_nomask"]


def assert_same_tokens(model: IBotModel, images: torch.Tensor, tokens: torch.Tensor):
    with torch.no_grad():
        torch.testing.assert_close(model(images).last_hidden_state, tokens, rtol=1e-4, atol=1e-4)


# Released files


@pytest.mark.parametrize("size", LISTINGS)
def test_every_tensor_of_a_released_full_checkpoint_has_its_place(size):
    official = {network: released_weights(size, network) for network in ("student", "teacher")}
    official["ibot_loss"] = {name: torch.zeros(shape) for name, shape in LISTINGS[size]["ibot_loss"].items()}
    converted = convert_checkpoint(official)
    assert converted.dropped == []
    assert {name: tuple(center.shape) for name, center in converted.centers.items()} == {
        "cls_center": (8192,),
        "patch_center": (8192,),
    }
    counts = LISTINGS[size]["parameter_counts"]
    for network, model in (("student", converted.model), ("teacher", converted.teacher)):
        assert type(model) is IBotForPreTraining and not model.training
        assert model.config.norm_last_layer and model.config.shared_head
        assert model.config.image_size == 224 and model.config.out_dim == 8192
        # Fixed magnitudes are buffers.
        assert sum(p.numel() for p in model.head.parameters()) + 8192 == counts[f"head_{network}"]
        mask_token = 0 if network == "student" else model.config.hidden_size
        assert sum(p.numel() for p in model.ibot.parameters()) - mask_token == counts[f"backbone_{network}"]
        assert model.config.num_attention_heads * 64 == model.config.hidden_size
    assert converted.model.config.drop_path_rate == 0.1 and converted.teacher.config.drop_path_rate == 0.0


@pytest.mark.parametrize("size", LISTINGS)
@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.parametrize("nested", [True, False])
def test_every_tensor_of_an_extracted_backbone_has_its_place(size, network, nested):
    prefix = "module.backbone." if network == "student" else "backbone."
    weights = part(released_weights(size, network), prefix)
    converted = convert_checkpoint({"state_dict": weights} if nested else weights)
    assert type(converted.model) is IBotModel and converted.teacher is None and converted.centers == {}
    # Every official tensor is one of ours, or three.
    names = {official_name(name) for name in converted.model.state_dict()}
    assert names == weights.keys() | {"masked_embed"}
    assert converted.dropped == ([] if network == "student" else ["mask token: not in the file, zero"])
    assert converted.model.embeddings.mask_token.is_meta == (network == "student")


def test_an_extracted_backbone_may_keep_its_head():
    """`extract_backbone_weights.py --with_head` leaves the prefix of the head's tensors as it was."""
    shapes = released_weights("small", "student")
    weights = part(shapes, "module.backbone.") | {k: v for k, v in shapes.items() if k.startswith("module.head.")}
    model = convert_checkpoint({"state_dict": weights}).model
    assert type(model) is IBotForPreTraining and model.config.shared_head


# Same numbers


@pytest.mark.parametrize("name", ["vit_backbone", "vit_backbone_meanpool", "vit_backbone_layerscale"])
@torch.no_grad()
def test_a_saved_encoder_gives_the_original_tokens(ibot_golden, tmp_path, name):
    tensors, description = ibot_golden(name)
    torch.save({"state_dict": part(tensors, "sd/")}, tmp_path / "checkpoint_student.pth")
    args = [str(tmp_path / "checkpoint_student.pth"), str(tmp_path / "out"), "--num_attention_heads", "3"]
    assert cli.main(["convert", *args]) == 0
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(model) is IBotModel
    tolerance = description["tolerance"]
    expected = {"rtol": tolerance["rtol"], "atol": tolerance["atol"]}
    torch.testing.assert_close(model(tensors["x"]).last_hidden_state, tensors["tokens_nomask"], **expected)
    masked = model(tensors["x"], tensors["mask"].flatten(1)).last_hidden_state
    torch.testing.assert_close(masked, tensors["tokens_masked"], **expected)
    size = "40x64"
    torch.testing.assert_close(model(tensors[f"x_{size}"]).last_hidden_state, tensors[f"tokens_{size}"], **expected)


@pytest.mark.parametrize("nesting", [None, "state_dict", "model", "module", "teacher", "student"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "module.backbone.", "_orig_mod.", "encoder.", "encoder.module._orig_mod."]
)
def test_any_wrapper_in_any_nesting(encoder, prefix, nesting):
    weights, images, tokens = encoder
    wrapped = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    converted = convert_checkpoint({nesting: wrapped, "epoch": 3} if nesting else wrapped, num_attention_heads=3)
    assert converted.dropped == []
    assert_same_tokens(converted.model, images, tokens)


def test_both_spellings_of_weight_norm(trace):
    old = part(trace, "student_final/")
    new = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in old.items()
    }
    assert new.keys() != old.keys()
    models = [convert_checkpoint(weights, num_attention_heads=3).model for weights in (old, new)]
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], tensor)
    # g and v are not confused: the magnitudes are those of the file, and learned ones.
    assert torch.equal(models[0].head.last_layer.magnitude, old["module.head.last_layer.weight_g"])
    assert not models[0].config.norm_last_layer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(encoder, dtype):
    weights, images, tokens = encoder
    rounded = {name: tensor.to(dtype) for name, tensor in weights.items()}
    converted = convert_checkpoint(rounded, num_attention_heads=3)
    assert converted.dropped == [f"{str(dtype).removeprefix('torch.')}: becomes float32"]
    assert {tensor.dtype for tensor in converted.model.state_dict().values()} == {torch.float32}
    if dtype is torch.float64:
        assert_same_tokens(converted.model, images, tokens)
    assert torch.equal(converted.model.layernorm.weight, rounded["norm.weight"].float())


def test_the_weights_are_a_copy(encoder):
    weights, _, _ = encoder
    model = convert_checkpoint(weights, num_attention_heads=3).model
    before = weights["norm.weight"].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(weights["norm.weight"], before) and before.any()


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_weights_that_are_no_real_numbers(encoder, dtype):
    weights, _, _ = encoder
    weights = weights | {"norm.weight": weights["norm.weight"].to(dtype)}
    with pytest.raises(ValueError, match=f"norm.weight is of {str(dtype)[6:]}, weights of real numbers are wanted"):
        convert_checkpoint(weights, num_attention_heads=3)


def test_a_stray_block(encoder):
    weights, _, _ = encoder
    with pytest.raises(ValueError, match="has blocks.999999, and no blocks.\\d"):
        convert_checkpoint(weights | {"blocks.999999.norm1.bias": torch.zeros(48)}, num_attention_heads=3)


# Heads


def test_separate_last_layers(trace, ibot_golden):
    """The student's differ, the teacher has one for both, as by default in the original code."""
    golden, _ = ibot_golden("train_trace_separate_student_f64")
    converted = convert_checkpoint(full_checkpoint(golden, "final", 3), num_attention_heads=3)
    assert not converted.model.config.shared_head and converted.teacher.config.shared_head
    head = converted.model.head
    for ours, theirs in ((head.last_layer, "last_layer"), (head.patch_last_layer, "last_layer2")):
        expected = golden[f"student_final/module.head.{theirs}.weight_v"].float()
        assert torch.equal(ours.direction, expected)
    assert not torch.equal(head.last_layer.direction, head.patch_last_layer.direction)


def test_options_of_the_run_decide_what_weights_do_not_tell(trace):
    checkpoint = full_checkpoint(trace, "init", 0)
    # At the start the magnitudes are 1 whether they are learned or not.
    converted = convert_checkpoint(checkpoint, num_attention_heads=3)
    assert not converted.model.config.norm_last_layer and not converted.teacher.config.norm_last_layer
    checkpoint["args"] = Namespace(act_in_head="relu", lambda2=0.5, drop_path=0.2)
    config = convert_checkpoint(checkpoint, num_attention_heads=3).config
    assert config.norm_last_layer and config.head_act == "relu"
    assert (config.patch_loss_weight, config.drop_path_rate) == (0.5, 0.2)
    config = convert_checkpoint(checkpoint, num_attention_heads=3, head_act="gelu", drop_path_rate=0.0).config
    assert (config.head_act, config.drop_path_rate) == ("gelu", 0.0)


@pytest.mark.parametrize("pooling", ["vit_backbone", "vit_backbone_meanpool"])
@torch.no_grad()
def test_a_fine_tuned_classifier(ibot_golden, pooling, tmp_path):
    tensors, _ = ibot_golden(pooling)
    generator = torch.Generator().manual_seed(0)
    head = {"head.weight": torch.randn(5, 48, generator=generator), "head.bias": torch.randn(5, generator=generator)}
    weights = part(tensors, "sd/") | head
    del weights["masked_embed"]
    args = Namespace(crop_pct=None, imagenet_default_mean_and_std=True, drop_path=0.2)
    torch.save({"model": weights, "optimizer": {"state": {}}, "args": args}, tmp_path / "checkpoint.pth")
    converted = convert_checkpoint(tmp_path / "checkpoint.pth", num_attention_heads=3)
    assert type(converted.model) is IBotForImageClassification and converted.config.num_labels == 5
    assert converted.config.drop_path_rate == 0.2
    assert converted.dropped == [
        "optimizer: left behind, state of the training run",
        "mask token: not in the file, zero",
    ]
    expected = tensors["tokens_nomask"][:, 0] @ head["head.weight"].T + head["head.bias"]
    torch.testing.assert_close(converted.model(tensors["x"]).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_of_the_mean_patch_at_a_grid_that_is_no_square(ibot_golden):
    """Nothing in it tells whether it is iBOT's or dBOT's."""
    weights = part(ibot_golden("vit_backbone_meanpool")[0], "sd/") | {"head.weight": torch.zeros(2, 48)}
    weights |= {"head.bias": torch.zeros(2), "pos_embed": torch.randn(1, 1 + 8, 48)}
    del weights["masked_embed"]
    options = {"num_attention_heads": 3, "image_size": [16, 32]}
    with pytest.raises(ValueError, match="a grid that is not square, .*: give the family, ibot or dbot"):
        convert_checkpoint(weights, **options)
    assert type(convert_checkpoint(weights, "ibot", **options).model) is IBotForImageClassification
    assert convert_checkpoint(weights, "dbot", **options).config.model_type == "dbot"


@torch.no_grad()
def test_a_linear_classifier_joined_to_its_encoder(encoder):
    """`combine_ckpt.py` puts the best of the linear classifiers beside the backbone."""
    weights, images, tokens = encoder
    linear = {"linear.weight": torch.arange(96.0).reshape(2, 48) / 96, "linear.bias": torch.tensor([1.0, -1.0])}
    checkpoint = {"state_dict": weights | linear, "best_acc_hidx": 3, "best_acc": 70.0, "optimizers": [{"state": {}}]}
    converted = convert_checkpoint(checkpoint, num_attention_heads=3)
    assert any(change.startswith("linear: taken for") for change in converted.dropped)
    expected = tokens[:, 0] @ linear["linear.weight"].T + linear["linear.bias"]
    torch.testing.assert_close(converted.model(images).logits, expected, rtol=1e-4, atol=1e-4)

    checkpoint["state_dict"] |= {"linear.weight": torch.zeros(2, 4 * 48)}
    with pytest.raises(ValueError, match="takes 192 features, 4 times the width"):
        convert_checkpoint(checkpoint, num_attention_heads=3)


def test_names_of_classes(encoder):
    weights = encoder[0] | {"head.weight": torch.zeros(2, 48), "head.bias": torch.zeros(2)}
    converted = convert_checkpoint(weights, num_attention_heads=3, id2label={0: "cat", 1: "dog"})
    assert converted.config.id2label == {0: "cat", 1: "dog"}
    with pytest.raises(ValueError, match="id2label names 1 of 2 classes"):
        convert_checkpoint(weights, num_attention_heads=3, id2label={0: "cat"})


@pytest.mark.parametrize(
    ("args", "size", "mean", "resample"),
    [
        ({}, 37, 0.485, PILImageResampling.BICUBIC),
        ({"crop_pct": None, "imagenet_default_mean_and_std": True}, 36, 0.485, PILImageResampling.BILINEAR),
        ({"crop_pct": 0.5, "imagenet_default_mean_and_std": False}, 64, 0.5, PILImageResampling.BILINEAR),
    ],
)
def test_the_image_processor_is_that_of_the_evaluation(encoder, args, size, mean, resample):
    weights, _, _ = encoder
    weights = weights | {"head.weight": torch.zeros(2, 48), "head.bias": torch.zeros(2)}
    checkpoint = {"model": weights, "args": Namespace(**args)}
    processor = convert_checkpoint(checkpoint, num_attention_heads=3).image_processor
    assert processor.size["shortest_edge"] == size and processor.crop_size["height"] == 32
    assert processor.image_mean[0] == mean and processor.resample == resample


# Folders


def test_convert_writes_what_training_continues_from(trace, tmp_path, capsys):
    torch.save(full_checkpoint(trace, "final", 3), tmp_path / "checkpoint.pth")
    output = tmp_path / "new" / "out"
    argv = ["convert", str(tmp_path / "checkpoint.pth"), str(output), "--num_attention_heads", "3"]
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    sizes = "2 blocks, width 48, 3 heads, patches of 8, images of 32 x 32"
    assert f"ibot, student and teacher with centers; {sizes}\n" in printed
    assert "such as ibot-vitb16\n" in printed
    assert "note     optimizer: left behind, state of the training run" in printed
    assert f"wrote    {output / 'teacher'}: IBotForPreTraining" in printed
    assert f'model = IBotForPreTraining.from_pretrained("{output}")' in printed
    for folder, network in (("", "student"), ("teacher", "teacher")):
        model = AutoModelForPreTraining.from_pretrained(output / folder)
        expected = trace[f"{network}_final/{'module.' if network == 'student' else ''}head.last_layer.weight_v"]
        assert torch.equal(model.head.last_layer.direction, expected)
    centers = load_file(output / "teacher" / "centers.safetensors")
    assert torch.equal(centers["cls_center"], trace["step3/center"][0])
    assert torch.equal(centers["patch_center"], trace["step3/center2"][0, 0])
    assert AutoImageProcessor.from_pretrained(output).crop_size["height"] == 32
    # Nothing is left of the writing, and nothing is written over.
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert cli.main(argv) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


@torch.no_grad()
def test_native_folders(trace, tmp_path):
    """The layout of a finished run: the teacher's encoder as a ViT, the full model beside it."""
    torch.save(full_checkpoint(trace, "final", 3), tmp_path / "checkpoint.pth")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = {}
    for which in (None, "teacher", "student"):
        output = tmp_path / str(which)
        choice = [] if which is None else ["--which", which]
        file = str(tmp_path / "checkpoint.pth")
        assert cli.main(["convert", file, str(output), "--native", "--num_attention_heads", "3", *choice]) == 0
        assert json.loads((output / "config.json").read_text())["model_type"] == "vit"
        features[which] = AutoModel.from_pretrained(output).eval()(images).pooler_output
        full = AutoModelForPreTraining.from_pretrained(output / "pretraining")
        network = "student_final/module." if which != "teacher" else "teacher_final/"
        assert torch.equal(full.ibot.layernorm.weight, trace[f"{network}backbone.norm.weight"])
        assert (output / "pretraining" / "teacher" / "centers.safetensors").exists() is (which is None)
    assert torch.equal(features[None], features["teacher"])
    assert not torch.allclose(features["student"], features["teacher"], atol=1e-3)
    teacher = convert_checkpoint(tmp_path / "checkpoint.pth", num_attention_heads=3).teacher
    torch.testing.assert_close(features["teacher"], teacher.ibot(images).pooler_output, rtol=0, atol=1e-5)


def test_one_network_has_no_pretraining_folder(encoder, tmp_path):
    weights, images, tokens = encoder
    torch.save(weights, tmp_path / "flat.pth")
    output = tmp_path / "out"
    argv = ["convert", str(tmp_path / "flat.pth"), str(output), "--native", "--num_attention_heads", "3"]
    assert cli.main(argv) == 0
    expected = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in output.iterdir()} == expected
    assert_same_tokens(AutoModel.from_pretrained(output).eval(), images, tokens)


# Refusals


def without(weights: dict, *names: str) -> dict:
    return {name: tensor for name, tensor in weights.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda w: without(w, "blocks.1.attn.qkv.bias"), {}, "missing blocks.1.attn.qkv.bias"),
        (lambda w: without(w, "norm.weight", "norm.bias"), {}, "missing norm.weight, norm.bias"),
        (lambda w: without(w, "cls_token"), {}, "the nearest is ibot, but it lacks cls_token"),
        (lambda w: w | {"gates.weight": torch.zeros(2)}, {}, "not used gates.weight"),
        (lambda w: without(w, "masked_embed") | {"dist_token": torch.zeros(2)}, {}, "ibot, but it has dist_token"),
        (lambda w: w | {"blocks.1.norm1.bias": torch.zeros(47)}, {}, r"blocks.1.norm1.bias gives .* \[47\], \[48\]"),
        (lambda w: w | {"blocks.0.attn.qkv.weight": torch.zeros(100, 48)}, {}, r"joint weight of q, k and v .*\[100"),
        (lambda w: w | {"pos_embed": torch.zeros(1, 16, 48)}, {}, "15 patches, which are no square"),
        (lambda w: w | {"cls_token": torch.zeros(48)}, {}, r"cls_token has shape \[48\]"),
        (lambda w: w | {"head.weight": torch.zeros(2, 48)}, {}, "missing head.bias"),
        (lambda w: w, {"num_attention_heads": None}, "num_attention_heads must be given: a width of 48"),
        (lambda w: w, {"num_attention_heads": 5}, r"multiple of num_attention_heads \(5\)"),
        (lambda w: w, {"image_siz": 64}, "IBotConfig has no 'image_siz', did you mean 'image_size'"),
        (lambda w: w, {"image_size": 64}, r"pos_embed gives .* \[1, 17, 48\], \[1, 65, 48\]"),
        (lambda w: w, {"num_hidden_layers": 4}, "missing blocks.3.attn.qkv.weight"),
        (lambda w: w, {"family": "ibto"}, "family must be one of ibot"),
    ],
)
def test_refused_encoders(encoder, change, options, message):
    weights, _, _ = encoder
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(change(weights), **{"num_attention_heads": 3} | options)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "looks like a ResNet"),
        (
            ["vit.embeddings.cls_token", "vit.encoder.layer.0.output.dense.bias"],
            "hf_mim or transformers already",
        ),
        (["0.module.linear.weight", "1.module.linear.weight"], "linear classifiers without their encoder"),
        (["module.linear.weight", "module.linear.bias"], "a linear classifier without its encoder"),
        (["features.0.weight"], "no family known here .*: its tensors are features.0.weight"),
    ],
)
def test_refused_families(names, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint({"state_dict": {name: torch.zeros(2, 2) for name in names}})


@pytest.mark.parametrize(
    "model_class",
    [IBotForPreTraining, IBotModel, IBotSwinModel, Beitv2ForPreTraining, Beitv2Model, DBotModel, VQKDModel],
)
def test_models_of_this_package_need_no_conversion(model_class, tmp_path):
    with torch.device("meta"):
        names = model_class(model_class.config_class()).state_dict()
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="hf_mim or transformers already"):
        convert_checkpoint(tmp_path / "model.safetensors")


def test_dino_is_told_from_ibot_by_its_head():
    weights = without(released_weights("small", "teacher"), "head.last_layer2.weight_g", "head.last_layer2.weight_v")
    with pytest.raises(ValueError, match="looks like DINO"):
        convert_checkpoint({"teacher": weights})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["teacher"].pop("backbone.norm.bias"), r"\(teacher\) does not fit .* missing norm.bias"),
        (lambda c: c["ibot_loss"].pop("center2"), "ibot_loss must contain a center2 of 64 values"),
        (lambda c: c["ibot_loss"].update(center=torch.zeros(1, 3)), "ibot_loss must contain a center of 64 values"),
        (lambda c: c.update(ema={"x": torch.zeros(2)}), "holds tensors in 'ema' besides student, teacher"),
        (lambda c: c["student"].pop("module.head.last_layer2.weight_g"), "missing head.last_layer2.weight_g"),
        (lambda c: c["student"].pop("module.head.last_layer.weight_g"), "missing head.last_layer.weight_g"),
    ],
)
def test_refused_full_checkpoints(trace, tmp_path, capsys, change, message):
    checkpoint = full_checkpoint(trace, "final", 3)
    change(checkpoint)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(checkpoint, num_attention_heads=3)
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    argv = ["convert", str(tmp_path / "checkpoint.pth"), str(tmp_path / "out"), "--num_attention_heads", "3"]
    assert cli.main(argv) == 2
    assert capsys.readouterr().err.startswith("hf-mim: error: checkpoint.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--which", "student"], "which requires a full checkpoint with student and teacher"),
        (["--config_overrides", "drop_path_rate"], "must be name=value"),
        (["--config_overrides", "num_attention_heads=4"], "num_attention_heads has its own argument"),
        (["--config_overrides", "drop_path_rate=2"], "drop_path_rate must lie in"),
        (["--config_overrides", "drop_path_rate=0.1", "--config_overrides", "drop_path_rate=2"], "must lie in"),
        (["--config_overrides", "name=foo"], "IBotConfig has no 'name'"),
        (["--config_overrides", "dtype=float16"], "IBotConfig has no 'dtype'"),
        (["--config_overrides", "image_size=[224"], "image_size must have a YAML value, got '[224'"),
        (["--config_overrides", "hidden_act=foo"], "hidden_act must be one of"),
        (["--list"], "--list takes no other arguments"),
    ],
)
def test_refused_options_write_nothing(encoder, tmp_path, capsys, options, message):
    weights, _, _ = encoder
    torch.save(weights, tmp_path / "flat.pth")
    argv = ["convert", str(tmp_path / "flat.pth"), str(tmp_path / "out"), "--num_attention_heads", "3"]
    assert cli.main([*argv, *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["flat.pth"]


def test_overrides_of_the_command(encoder, tmp_path):
    """A table of 16 patches for images of 2 x 8 patches; text that YAML would not take for a number."""
    weights, _, _ = encoder
    torch.save(weights, tmp_path / "flat.pth")
    argv = ["convert", str(tmp_path / "flat.pth"), str(tmp_path / "out"), "--num_attention_heads", "3"]
    overrides = ["image_size=[16,64],layer_norm_eps=1e-5", "drop_path_rate=0.0"]
    assert cli.main([*argv, "--config_overrides", overrides[0], "--config_overrides", overrides[1]]) == 0
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.grid_size == (2, 8) and model.config.layer_norm_eps == 1e-5
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").crop_size["width"] == 64
