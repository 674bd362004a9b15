"""IBotModel, the head and the loss against numbers that the original code printed (tests/golden/ibot)."""

import json
import math

import pytest
import torch

from hf_mim import IBotConfig, IBotForPreTraining, convert_checkpoint
from hf_mim.modeling.head_ibot import IBotHead
from hf_mim.modeling.modeling_ibot_pretraining import cls_loss, patch_loss
from tests.testing.official_ibot import part
from tests.testing.paths import GOLDEN


SIZES = ["48x48", "24x24", "40x64", "56x24", "32x40", "16x64"]


def within(file_tolerance: dict, actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, rtol=file_tolerance["rtol"], atol=file_tolerance["atol"])


@pytest.fixture(scope="module", params=["vit_backbone", "vit_backbone_meanpool", "vit_backbone_layerscale"])
def backbone(request, ibot_golden):
    tensors, description = ibot_golden(request.param)
    weights = part(tensors, "sd/")
    model = convert_checkpoint(weights, num_attention_heads=description["args"]["num_heads"]).model
    model.set_attn_implementation("eager")
    return model, tensors, description["tolerance"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_tokens(backbone, attention):
    model, golden, tolerance = backbone
    model.set_attn_implementation(attention)
    mask = golden["mask"].flatten(1)
    within(tolerance, model(golden["x"]).last_hidden_state, golden["tokens_nomask"])
    masked = model(golden["x"], mask)
    within(tolerance, masked.last_hidden_state, golden["tokens_masked"])
    within(tolerance, masked.pooler_output, golden["cls_only_masked"])
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_other_sizes(backbone, size):
    model, golden, tolerance = backbone
    height, width = map(int, size.split("x"))
    within(tolerance, model.embeddings.interpolate_position_embeddings(height, width), golden[f"pos_{size}"])
    images, mask = golden[f"x_{size}"], golden[f"mask_{size}"].flatten(1)
    within(tolerance, model(images).last_hidden_state, golden[f"tokens_{size}"])
    within(tolerance, model(images, mask).last_hidden_state, golden[f"tokens_masked_{size}"])


@torch.no_grad()
def test_embeddings_attention_and_intermediate_layers(backbone):
    model, golden, tolerance = backbone
    within(tolerance, model.embeddings(golden["x"]), golden["embed_nomask"])
    within(tolerance, model.embeddings(golden["x"], golden["mask"].flatten(1)), golden["embed_masked"])
    within(tolerance, model(golden["x"], output_attentions=True).attentions[-1], golden["attn_last"])
    for i, layer in enumerate(model.get_intermediate_layers(golden["x"], n=2)):
        within(tolerance, layer, golden[f"intermediate_last2_{i}"])


def convert_head(ibot_golden, weights: dict[str, torch.Tensor], args: dict) -> IBotHead:
    """The head that `iBOTHead` with these weights makes, behind an encoder of its width."""
    encoder = part(ibot_golden("vit_backbone")[0], "sd/")
    official = encoder | {f"head.{name}": tensor for name, tensor in weights.items()}
    # Neither is to be seen in weights that are not trained.
    options = {"norm_last_layer": args.get("norm_last_layer", True), "head_act": args.get("act", "gelu")}
    return convert_checkpoint(official, num_attention_heads=3, **options).model.head


def head_and_golden(ibot_golden, variant: str):
    tensors, description = ibot_golden("head")
    args = description["variants"][variant]
    golden = part(tensors, f"{variant}/")
    head = convert_head(ibot_golden, part(golden, "sd/"), args)
    return head, golden, tensors["tokens"], args, description["tolerance"]


def run_head(
    head: IBotHead, states: torch.Tensor, cls: torch.Tensor, patches: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the tokens at these positions in the flattened sequences `[R, 1+N, D]`."""
    indices = torch.cat((cls, patches))
    tokens = states if head.has_batch_norm else states.flatten(0, 1)[indices]
    return head([tokens], [indices], len(cls))


VARIANTS = ["shared", "separate", "relu_2layer", "bn", "ln", "nobottleneck"]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_head(ibot_golden, variant):
    head, golden, tokens, _, tolerance = head_and_golden(ibot_golden, variant)
    rows, length, _ = tokens.shape
    positions = torch.arange(rows * length).view(rows, length)
    cls, patch = run_head(head, tokens, positions[:, 0], positions[:, 1:].flatten())
    within(tolerance, cls, golden["cls"])
    within(tolerance, patch.unflatten(0, (rows, -1)), golden["patch"])
    cls_only, nothing = run_head(head, tokens[:, :1], torch.arange(rows), torch.tensor([], dtype=torch.int64))
    within(tolerance, cls_only, golden["cls_from_2d"])
    assert nothing.shape[0] == 0
    # Only the wanted patches are computed; they equal those of the full pass.
    some = torch.tensor([0, 8, 9, 20, 35])
    _, patch = run_head(head, tokens, positions[:, 0], positions[:, 1:].flatten()[some])
    within(tolerance, patch, golden["patch"].flatten(0, 1)[some])


@pytest.mark.parametrize("variant", VARIANTS)
def test_head_trainable_parameters(ibot_golden, variant):
    """Every tensor is filled with a number of its own, by which it is known again under our name."""
    _, golden, _, args, _ = head_and_golden(ibot_golden, variant)
    weights = part(golden, "sd/")
    # One norm, and one last layer if it is shared, is kept under two names.
    first_names = {"last_layer2": "last_layer"} if args["shared_head"] else {}
    if variant in ("bn", "ln"):
        first_names |= {"mlp.4": "mlp.1"}

    def first_name(name: str) -> str:
        module, kind = name.rsplit(".", 1)
        return f"{first_names.get(module, module)}.{kind}"

    names = sorted(map(first_name, weights))
    numbered = {name: torch.full_like(tensor, names.index(first_name(name))) for name, tensor in weights.items()}
    head = convert_head(ibot_golden, numbered, args)
    trainable = {names[int(parameter.flatten()[0])] for parameter in head.parameters()}
    assert trainable == set(map(first_name, args["trainable"]))
    assert len(list(head.parameters())) == len(trainable)


@torch.no_grad()
def test_head_batch_norm_in_training(ibot_golden):
    head, golden, tokens, _, tolerance = head_and_golden(ibot_golden, "bn")
    head.train()
    positions = torch.arange(tokens.shape[0] * tokens.shape[1]).view(tokens.shape[:2])
    some = torch.tensor([0, 8, 9, 20, 35])
    cls, patch = run_head(head, tokens, positions[:, 0], positions[:, 1:].flatten()[some])
    within(tolerance, cls, golden["train_cls"])
    within(tolerance, patch, golden["train_patch"].flatten(0, 1)[some])
    within(tolerance, head.norm.running_mean, golden["after_train/mlp.1.running_mean"])
    within(tolerance, head.norm.running_var, golden["after_train/mlp.1.running_var"])


@pytest.mark.parametrize("name", ["loss_multicrop", "loss_nolocal_mimstart"])
def test_loss_and_gradients(ibot_golden, name):
    """Targets are made here from the golden centers; `IBotTargets` has its own test of the same numbers."""
    golden, description = ibot_golden(name)
    args, batch = description["args"], description["args"]["batch"]
    views = args["ngcrops"] + args["nlcrops"]
    center, center2 = torch.zeros(1, args["out_dim"]), torch.zeros(1, args["patch_out_dim"])
    for i, expected in enumerate(description["calls"]):
        call = {k.removeprefix(f"call{i}/"): v for k, v in golden.items() if k.startswith(f"call{i}/")}
        mask = torch.stack([call[f"mask{v}"].flatten(1) for v in range(args["ngcrops"])], dim=1)
        # The original stacks view by view; here the batch comes first.
        student = torch.cat([call["student_cls"], call.get("student_local_cls", call["student_cls"][:0])])
        student = student.unflatten(0, (views, batch)).transpose(0, 1).contiguous().requires_grad_()
        patches = call["student_patch"].unflatten(0, (-1, batch)).transpose(0, 1).contiguous().requires_grad_()
        target = ((call["teacher_cls"] - center) / expected["temp"]).softmax(-1)
        target = target.unflatten(0, (-1, batch)).transpose(0, 1)
        target_patch = ((call["teacher_patch"] - center2) / expected["temp_patch"]).softmax(-1)
        target_patch = target_patch.unflatten(0, (-1, batch)).transpose(0, 1)[mask]

        temperature = args["student_temp"]
        loss_cls = args.get("lambda1", 1.0) * cls_loss(student, target, temperature)
        loss_patch = args.get("lambda2", 1.0) * patch_loss(patches[mask], target_patch, mask, temperature)
        (loss_cls + loss_patch).backward()

        rtol = description["tolerance"]["loss rtol"]
        assert loss_cls.item() == pytest.approx(expected["cls"], rel=rtol)
        assert loss_patch.item() == pytest.approx(expected["patch"], rel=rtol)
        assert (loss_cls + loss_patch).item() == pytest.approx(expected["loss"], rel=rtol)
        atol = description["tolerance"]["grads atol"]
        grads = student.grad.transpose(0, 1).flatten(0, 1)
        num_globals = args["ngcrops"] * batch
        torch.testing.assert_close(grads[:num_globals], call["grad_student_cls"], rtol=1e-5, atol=atol)
        if args["nlcrops"]:
            torch.testing.assert_close(grads[num_globals:], call["grad_student_local_cls"], rtol=1e-5, atol=atol)
        patch_grads = patches.grad.transpose(0, 1).flatten(0, 1)
        torch.testing.assert_close(patch_grads, call["grad_student_patch"], rtol=1e-5, atol=atol)
        center, center2 = call["center_after"], call["center2_after"][0]


def test_loss_without_a_masked_patch_is_zero_and_has_gradients():
    logits = torch.zeros(0, 5, requires_grad=True)
    mask = torch.zeros(2, 2, 9, dtype=torch.bool)
    loss = patch_loss(logits, torch.zeros(0, 5), mask, 0.1)
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.shape == (0, 5)


def test_cls_loss_needs_two_views():
    with pytest.raises(ValueError, match="at least two"):
        cls_loss(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), 0.1)


def test_initialization_statistics():
    """Moments of every kind of tensor at initialization, against the original ViT-S and its head."""
    statistics = json.loads((GOLDEN / "ibot" / "init_statistics.json").read_text())
    torch.manual_seed(0)
    config = IBotConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=6, norm_last_layer=False)
    model = IBotForPreTraining(config)
    ours = model.ibot.state_dict()
    pairs = [
        ("cls_token", "embeddings.cls_token"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("masked_embed", "embeddings.mask_token"),
        ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"),
        ("patch_embed.proj.bias", "embeddings.patch_embeddings.projection.bias"),
        ("blocks.0.attn.qkv.weight", "layers.0.attention.q_proj.weight"),
        ("blocks.0.attn.qkv.weight", "layers.0.attention.v_proj.weight"),
        ("blocks.0.attn.qkv.bias", "layers.0.attention.k_proj.bias"),
        ("blocks.0.attn.proj.weight", "layers.0.attention.o_proj.weight"),
        ("blocks.0.mlp.fc1.weight", "layers.0.mlp.fc1.weight"),
        ("blocks.0.mlp.fc2.weight", "layers.0.mlp.fc2.weight"),
        ("norm.weight", "layernorm.weight"),
    ]
    checks = [(statistics["vit_small"][theirs], ours[name]) for theirs, name in pairs]
    head = statistics["head"]
    checks += [(head[f"mlp.{2 * i}.weight"], model.head.layers[i].weight) for i in range(3)]
    checks += [(head["last_layer.weight_v"], model.head.last_layer.direction)]
    checks += [(head["last_layer.weight_g"], model.head.last_layer.magnitude)]
    for expected, tensor in checks:
        tensor = tensor.detach()
        count = tensor.numel()
        assert tensor.mean().item() == pytest.approx(expected["mean"], abs=1e-12 + 8 * expected["std"] / count**0.5)
        std = tensor.std().item() if count > 1 else 0.0
        assert std == pytest.approx(expected["std"], rel=0.02 + 8 / math.sqrt(2 * count), abs=1e-12)
