"""Frozen teachers: the features of each kind of model are those that its parts give when they are called by hand."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    BeitConfig,
    BeitModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    LevitConfig,
    LevitModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
    YolosConfig,
    YolosModel,
)

from hf_mim import (
    Beitv2Config,
    Beitv2Model,
    DBotConfig,
    DBotModel,
    IBotConfig,
    IBotForPreTraining,
    IBotModel,
)
from hf_mim.analysis.encoders import load_encoder
from hf_mim.training.teachers import FeatureTeacher, load_teacher


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = SIZES | {"image_size": 32, "patch_size": 8}
TEXT = SIZES | {"vocab_size": 20}
MEAN, STD = [0.3, 0.4, 0.5], [0.2, 0.25, 0.3]


def saved(model, folder, processor=ViTImageProcessorPil):
    """The model with random numbers in every tensor, norms too, in a folder with an image processor."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    processor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return model.eval()


def images(height=32, width=32, channels=3):
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def normalized(pixels):
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def vit(model, pixels):
    return model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]


@torch.no_grad()
def clip_tower(model, pixels):
    return model.post_layernorm(model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:])


@torch.no_grad()
def clip(model, pixels):
    return clip_tower(model.vision_model, pixels) @ model.visual_projection.weight.T


@torch.no_grad()
def siglip(model, pixels):
    return model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state


@torch.no_grad()
def after_cls(model, pixels):
    return model(pixels).last_hidden_state[:, 1:]


@torch.no_grad()
def after_registers(model, pixels):
    return model(pixels).last_hidden_state[:, 1 + 4 :]


@torch.no_grad()
def swin(model, pixels):
    return model(pixels).last_hidden_state


@torch.no_grad()
def convnext(model, pixels):
    return model.layernorm(model(pixels).last_hidden_state.flatten(2).transpose(1, 2))


@torch.no_grad()
def beit_mean_pooled(model, pixels):
    return model.pooler.layernorm(model(pixels).last_hidden_state[:, 1:])


@torch.no_grad()
def mae(model, pixels):
    """Without masking it is a ViT."""
    same = ViTModel(ViTConfig(**VIT, layer_norm_eps=model.config.layer_norm_eps), add_pooling_layer=False)
    same.load_state_dict(model.state_dict())
    return vit(same.eval(), pixels)


@torch.no_grad()
def resnet(model, pixels):
    return model(pixels).last_hidden_state.flatten(2).transpose(1, 2)


KINDS = {
    "vit": (lambda: ViTModel(ViTConfig(**VIT)), vit, "normed"),
    "clip": (lambda: CLIPModel(CLIPConfig(vision_config=VIT, text_config=TEXT, projection_dim=12)), clip, "projected"),
    "clip_vision": (lambda: CLIPVisionModel(CLIPVisionConfig(**VIT)), clip_tower, "normed"),
    "clip_projected": (
        lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**VIT, projection_dim=12)),
        clip,
        "projected",
    ),
    "siglip": (lambda: SiglipModel(SiglipConfig(vision_config=VIT, text_config=TEXT)), siglip, "normed"),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**VIT)), after_cls, "normed"),
    "dinov3": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**VIT, num_register_tokens=4)), after_registers, "normed"),
    "beit": (
        lambda: BeitModel(BeitConfig(**VIT, use_relative_position_bias=True, use_mean_pooling=False)),
        after_cls,
        "normed",
    ),
    "beit_mean": (lambda: BeitModel(BeitConfig(**VIT, use_mean_pooling=True)), beit_mean_pooled, "normed"),
    "mae": (lambda: ViTMAEModel(ViTMAEConfig(**VIT)), mae, "normed"),
    "swin": (
        lambda: SwinModel(
            SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], patch_size=4, window_size=2, image_size=32)
        ),
        swin,
        "normed",
    ),
    "convnext": (
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, image_size=32)),
        convnext,
        "normed",
    ),
    "ibot": (lambda: IBotModel(IBotConfig(**VIT)), after_cls, "normed"),
    "beitv2": (lambda: Beitv2Model(Beitv2Config(**VIT)), after_cls, "normed"),
    "dbot": (lambda: DBotModel(DBotConfig(**VIT)), after_cls, "normed"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_model(tmp_path, kind):
    build, by_hand, feature = KINDS[kind]
    model = saved(build(), tmp_path / kind)
    teacher = load_teacher(str(tmp_path / kind), (4, 4))
    features = teacher(images())
    torch.testing.assert_close(features, by_hand(model, normalized(images())), rtol=1e-5, atol=1e-5)
    assert features.shape == (2, 16, teacher.hidden_size) and teacher.feature == feature
    assert teacher.name == kind and teacher.license is None and teacher.dtype == torch.float32
    assert not any(module.training for module in teacher.train().modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip", "dinov2", "dinov3", "beit", "convnext", "ibot", "dbot"])
def test_a_grid_that_the_model_was_not_made_for(tmp_path, kind):
    """3 x 5 patches: 24 x 40 pixels, for which the position tables are interpolated."""
    build, by_hand, _ = KINDS[kind]
    model = saved(build(), tmp_path)
    features = load_teacher(str(tmp_path), (3, 5))(images(24, 40))
    torch.testing.assert_close(features, by_hand(model, normalized(images(24, 40))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [48, 20])
def test_images_are_resized_as_pillow_does(tmp_path, size):
    model = saved(ViTModel(ViTConfig(**VIT)), tmp_path)
    planes = images(size, size).flatten(0, 1).numpy()
    resized = np.stack([Image.fromarray(plane).resize((32, 32), Image.Resampling.BICUBIC) for plane in planes])
    resized = torch.from_numpy(resized).unflatten(0, (2, 3)).clamp(0, 1)
    features = load_teacher(str(tmp_path), (4, 4))(images(size, size))
    torch.testing.assert_close(features, vit(model, normalized(resized)), rtol=1e-4, atol=1e-4)


def test_each_feature_of_clip(tmp_path):
    model = saved(CLIPModel(CLIPConfig(vision_config=VIT, text_config=TEXT, projection_dim=12)), tmp_path)
    with torch.no_grad():
        raw = model.vision_model(normalized(images())).last_hidden_state[:, 1:]
        normed = model.vision_model.post_layernorm(raw)
        expected = {"raw": raw, "normed": normed, "projected": model.visual_projection(normed)}
    for feature, value in expected.items():
        teacher = load_teacher(str(tmp_path), (4, 4), feature)
        torch.testing.assert_close(teacher(images()), value, rtol=1e-5, atol=1e-5)
        assert teacher.hidden_size == value.shape[-1]


def test_raw_features_of_a_vit(tmp_path):
    model = saved(ViTModel(ViTConfig(**VIT)), tmp_path)
    with torch.no_grad():
        raw = model(normalized(images()), output_hidden_states=True).hidden_states[-1][:, 1:]
    torch.testing.assert_close(load_teacher(str(tmp_path), (4, 4), "raw")(images()), raw, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "clip", "clip_tower", "dinov3", "ibot", "dbot", "siglip", "swin", "resnet"])
def test_cls_token_in_front_of_the_patches(tmp_path, kind):
    """Of models that have one; it is normed and projected like the patches."""
    models = {
        "vit": lambda: ViTModel(ViTConfig(**VIT)),
        "clip": KINDS["clip"][0],
        "clip_tower": KINDS["clip_vision"][0],
        "dinov3": KINDS["dinov3"][0],
        "ibot": KINDS["ibot"][0],
        "dbot": KINDS["dbot"][0],
        "siglip": KINDS["siglip"][0],
        "swin": KINDS["swin"][0],
        "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4] * 4, depths=[1] * 4)),
    }
    model = saved(models[kind](), tmp_path)
    teacher, patches = load_teacher(str(tmp_path), (4, 4), cls_token=True), load_teacher(str(tmp_path), (4, 4))
    features, expected = teacher(images()), patches(images())
    assert not patches.has_cls_token and teacher.has_cls_token == (kind not in ("siglip", "swin", "resnet"))
    torch.testing.assert_close(features[:, -16:], expected)
    if not teacher.has_cls_token:
        assert features.shape == expected.shape
        return
    with torch.no_grad():
        if kind.startswith("clip"):
            tower = model.vision_model if kind == "clip" else model
            cls_token = tower.post_layernorm(tower(normalized(images())).last_hidden_state[:, 0])
            cls_token = model.visual_projection(cls_token) if kind == "clip" else cls_token
        else:
            cls_token = model(normalized(images())).last_hidden_state[:, 0]
    torch.testing.assert_close(features[:, 0], cls_token, rtol=1e-5, atol=1e-5)
    assert features.shape == (2, 17, teacher.hidden_size)


@pytest.mark.parametrize("cls_token", [False, True])
@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (2, 3)])
def test_features_are_resized_in_place_of_the_images(tmp_path, grid, cls_token):
    """The model sees its own 32 x 32 pixels; its 4 x 4 features become those of the student's grid."""
    model = saved(ViTModel(ViTConfig(**VIT)), tmp_path)
    teacher = load_teacher(str(tmp_path), grid, resize="features", cls_token=cls_token)
    assert teacher.input_size == (32, 32)
    features = teacher(images())
    with torch.no_grad():
        tokens = model(normalized(images())).last_hidden_state
    maps = torch.nn.functional.interpolate(
        tokens[:, 1:].transpose(1, 2).reshape(2, 16, 4, 4), grid, mode="bilinear", antialias=True
    )
    torch.testing.assert_close(features[:, cls_token:], maps.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    if cls_token:
        torch.testing.assert_close(features[:, 0], tokens[:, 0], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_resized(tmp_path):
    saved(ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4] * 4, depths=[1] * 4)), tmp_path)
    with pytest.raises(ValueError, match="no image_size of its own: resize its input"):
        load_teacher(str(tmp_path), (2, 3), resize="features")
    with pytest.raises(ValueError, match="must be 'input' or 'features', got 'output'"):
        load_teacher(str(tmp_path), (2, 3), resize="output")


def test_a_network_without_patch_size_and_norm(tmp_path):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1])
    model = saved(ResNetModel(config), tmp_path)
    teacher = load_teacher(str(tmp_path), (2, 3))
    expected = resnet(model, normalized(images(64, 96)))
    torch.testing.assert_close(teacher(images(64, 96)), expected, rtol=1e-5, atol=1e-5)
    assert teacher.feature == "raw"


def test_our_pretraining_model_teaches_with_its_encoder(tmp_path):
    config = IBotConfig(**VIT, out_dim=8, head_hidden_size=8, head_bottleneck_size=4)
    model = saved(IBotForPreTraining(config), tmp_path)
    features = load_teacher(str(tmp_path), (4, 4))(images())
    torch.testing.assert_close(features, after_cls(model.ibot, normalized(images())), rtol=1e-5, atol=1e-5)


def test_images_of_one_channel_are_gray(tmp_path):
    saved(ViTModel(ViTConfig(**VIT)), tmp_path)
    teacher = load_teacher(str(tmp_path), (4, 4))
    gray = images(channels=1)
    assert torch.equal(teacher(gray), teacher(gray.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="takes images of 3 channels, got 4"):
        teacher(images(channels=4))


@pytest.mark.parametrize("channels", [1, 4])
def test_students_and_teachers_of_other_channels(tmp_path, channels):
    """As many channels as the student, or three where it has one."""
    model = saved(ViTModel(ViTConfig(**VIT, num_channels=channels)), tmp_path)
    mean, std = [0.4] * channels, [0.2] * channels
    ViTImageProcessorPil(image_mean=mean, image_std=std).save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), (4, 4), num_channels=channels)
    pixels = images(channels=channels)
    torch.testing.assert_close(teacher(pixels), vit(model, (pixels - 0.4) / 0.2), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"takes images of {channels} channels, got 3"):
        teacher(images())
    with pytest.raises(ValueError, match=f"takes images of {channels} channels, the student of 3"):
        load_teacher(str(tmp_path), (4, 4))


@pytest.mark.parametrize(("channels", "works"), [(1, True), (3, True), (4, False)])
def test_students_of_a_teacher_of_three_channels(tmp_path, channels, works):
    saved(ViTModel(ViTConfig(**VIT)), tmp_path)
    if works:
        assert load_teacher(str(tmp_path), (4, 4), num_channels=channels)(images(channels=channels)).shape[1] == 16
    else:
        with pytest.raises(ValueError, match="takes images of 3 channels, the student of 4"):
            load_teacher(str(tmp_path), (4, 4), num_channels=channels)


def test_a_teacher_without_pooler_is_loaded_quietly(tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    saved(ViTModel(ViTConfig(**VIT), add_pooling_layer=False), tmp_path)
    load_teacher(str(tmp_path), (4, 4))
    load_encoder(tmp_path)
    assert not caplog.records
    # Others hear of it.
    AutoModel.from_pretrained(tmp_path)
    assert "pooler" in caplog.text


def test_license_and_name(tmp_path):
    folder = tmp_path / "my-teacher"
    saved(ViTModel(ViTConfig(**VIT)), folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n\n# A teacher\n")
    teacher = load_teacher(str(folder) + "/", (4, 4))
    assert (teacher.name, teacher.license) == ("my-teacher", "cc-by-4.0")


# What does not work


def test_a_grid_that_cannot_be_matched_names_one_that_can(tmp_path):
    config = LevitConfig(
        image_size=128, hidden_sizes=[8, 8, 8], num_attention_heads=[1, 1, 1], depths=[1, 1, 1], key_dim=[4, 4, 4]
    )
    saved(LevitModel(config), tmp_path / "levit")
    pattern = (
        r"levit cannot give features on the student's grid of 4x4 patches.*256x256 pixels.*student of 2x2 patches"
    )
    with pytest.raises(ValueError, match=pattern):
        load_teacher(str(tmp_path / "levit"), (4, 4))


def test_tokens_behind_the_patches_are_not_taken_for_patches(tmp_path):
    saved(YolosModel(YolosConfig(**VIT | {"image_size": [32, 32]})), tmp_path)
    with pytest.raises(ValueError, match="YolosModel has 117 tokens for 4x4 patches"):
        load_teacher(str(tmp_path), (4, 4))


@pytest.mark.parametrize(
    ("feature", "message"),
    [("projected", "has no projection: choose the feature normed or raw"), ("last", "one of auto, projected, normed")],
)
def test_a_feature_that_there_is_not(tmp_path, feature, message):
    saved(ViTModel(ViTConfig(**VIT)), tmp_path)
    with pytest.raises(ValueError, match=message):
        load_teacher(str(tmp_path), (4, 4), feature)


def test_other_channels_and_other_kinds_are_refused():
    with pytest.raises(ValueError, match="takes images of 1 channels, the student of 3"):
        FeatureTeacher(ViTModel(ViTConfig(**VIT, num_channels=1)), (4, 4), [0.5], [0.5])
    with pytest.raises(ValueError, match="BertModel takes input_ids: it is not a vision model"):
        FeatureTeacher(BertModel(BertConfig(**TEXT)), (4, 4), MEAN, STD)


def test_missing_weights_and_processors_are_named(tmp_path):
    model = saved(ViTModel(ViTConfig(**VIT)), tmp_path)
    weights = {name: value for name, value in model.state_dict().items() if name != "layernorm.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match="the checkpoint lacks 1 weights, such as layernorm.weight"):
        load_teacher(str(tmp_path), (4, 4))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no image_mean and image_std"):
        load_teacher(str(tmp_path), (4, 4))


def test_clip_processors_are_read_too(tmp_path):
    model = saved(CLIPVisionModel(CLIPVisionConfig(**VIT)), tmp_path, CLIPImageProcessorPil)
    features = load_teacher(str(tmp_path), (4, 4))(images())
    torch.testing.assert_close(features, clip_tower(model, normalized(images())), rtol=1e-5, atol=1e-5)
