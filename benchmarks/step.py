"""
One optimizer step of iBOT: this package's trainer against the steps of the original code.

    python benchmarks/step.py

ViT-S/16, two views of 224 and ten of 96 pixels, 8192 prototypes, float32, two threads. Both sides get the views as
tensors. Each side runs in its own process, and the sides alternate step by step, because the speed of a shared machine
changes from minute to minute. The script compares

- the losses of the first steps, from the same weights, views and masks, without stochastic depth (whose random draws
  differ);
- the time per step with the recipe's stochastic depth of 0.1, and the growth of resident memory: the peak while the
  steps run minus the resident memory before the first step.

The baseline is written from the description of the original (`main_ibot.py`, `vision_transformer.py`, `head.py`,
`utils.py`): head and logits for every token of every view, explicit softmax attention, a double loop over views in the
loss, and loops over tensors for clipping and the teacher's average. The other side is `IBotTrainer.train()`.
"""

import argparse
import json
import math
import os
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from hf_mim import IBotConfig, IBotForPreTraining
from hf_mim.data.masking import MaskGenerator
from hf_mim.training.ibot_arguments import IBotTrainingArguments
from hf_mim.training.ibot_trainer import IBotTrainer
from turns import THREADS, Meter, StepEnds, print_comparison, take_turns


WIDTH, DEPTH, HEADS, PATCH, PROTOTYPES = 384, 12, 6, 16, 8192
GLOBAL_VIEWS, LOCAL_VIEWS = 2, 10
LEARNING_RATE, MIN_LEARNING_RATE = 5e-4 / 256, 1e-6 / 256  # per image of the batch
WEIGHT_DECAY, WEIGHT_DECAY_END, MOMENTUM, CLIP = 0.04, 0.4, 0.996, 3.0
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE, CENTER_MOMENTUM = 0.04, 0.1, 0.9
SEED = 0
SIDES = ("baseline", "ours")


# ---------------------------------------------------------------------------------------------------------------------
# The baseline: what the original code computes


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        rows, length, _ = x.shape
        query, key, value = self.qkv(x).reshape(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attention = ((query @ key.transpose(-2, -1)) * (WIDTH // HEADS) ** -0.5).softmax(dim=-1)
        return self.proj((attention @ value).transpose(1, 2).reshape(rows, length, WIDTH))


class DropPath(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        keep = 1 - self.rate
        return x.div(keep) * (keep + torch.rand(x.shape[0], 1, 1)).floor_()


class Block(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.drop_path = DropPath(rate) if rate > 0 else nn.Identity()

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Backbone(nn.Module):
    def __init__(self, drop_path):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.masked_embed = nn.Parameter(torch.zeros(1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, WIDTH))
        self.blocks = nn.ModuleList(Block(rate.item()) for rate in torch.linspace(0, drop_path, DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def positions(self, side):
        if side == 14:
            return self.pos_embed
        table = self.pos_embed[:, 1:].reshape(1, 14, 14, WIDTH).permute(0, 3, 1, 2)
        table = F.interpolate(table, scale_factor=((side + 0.1) / 14,) * 2, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], table.permute(0, 2, 3, 1).view(1, -1, WIDTH)), dim=1)

    def forward(self, images, mask=None):
        x = self.patch_embed(images)
        side = x.shape[-1]
        if mask is not None:
            x.permute(0, 2, 3, 1)[mask, :] = self.masked_embed.to(x.dtype)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions(side)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class WeightNormLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight_v = nn.Parameter(torch.zeros(PROTOTYPES, 256))
        self.weight_g = nn.Parameter(torch.ones(PROTOTYPES, 1))

    def forward(self, x):
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = nn.Linear(WIDTH, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)
        self.mlp = nn.Sequential(*sizes)
        self.last_layer = WeightNormLinear()
        self.last_layer2 = self.last_layer  # a shared head

    def forward(self, x):
        x = F.normalize(self.mlp(x), dim=-1, p=2)
        return self.last_layer(x[:, 0]), self.last_layer2(x[:, 1:])


class Network(nn.Module):
    def __init__(self, weights, drop_path=0.0):
        super().__init__()
        self.backbone, self.head = Backbone(drop_path), Head()
        self.load_state_dict(weights)

    def forward(self, crops, masks=None):
        mask = None if masks is None else torch.cat(masks)
        return self.head(self.backbone(torch.cat(crops), mask))


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(1, PROTOTYPES))
        self.register_buffer("center2", torch.zeros(1, 1, PROTOTYPES))

    def forward(self, student_output, teacher_output, student_local_cls, masks):
        student_cls, student_patch = student_output
        teacher_cls, teacher_patch = teacher_output
        student_cls = torch.cat((student_cls, student_local_cls))
        student_cls_chunks = (student_cls / STUDENT_TEMPERATURE).chunk(GLOBAL_VIEWS + LOCAL_VIEWS)
        student_patch_chunks = (student_patch / STUDENT_TEMPERATURE).chunk(GLOBAL_VIEWS)
        teacher_cls_chunks = F.softmax((teacher_cls - self.center) / TEACHER_TEMPERATURE, dim=-1)
        teacher_cls_chunks = teacher_cls_chunks.detach().chunk(GLOBAL_VIEWS)
        teacher_patch_chunks = F.softmax((teacher_patch - self.center2) / TEACHER_TEMPERATURE, dim=-1)
        teacher_patch_chunks = teacher_patch_chunks.detach().chunk(GLOBAL_VIEWS)
        cls_total, cls_terms, patch_total, patch_terms = 0, 0, 0, 0
        for q in range(GLOBAL_VIEWS):
            for v in range(GLOBAL_VIEWS + LOCAL_VIEWS):
                if v == q:
                    log_probs = F.log_softmax(student_patch_chunks[v], dim=-1)
                    loss = torch.sum(-teacher_patch_chunks[q] * log_probs, dim=-1)
                    mask = masks[v].flatten(-2, -1)
                    loss = torch.sum(loss * mask.float(), dim=-1) / mask.sum(dim=-1).clamp(min=1.0)
                    patch_total, patch_terms = patch_total + loss.mean(), patch_terms + 1
                else:
                    log_probs = F.log_softmax(student_cls_chunks[v], dim=-1)
                    loss = torch.sum(-teacher_cls_chunks[q] * log_probs, dim=-1)
                    cls_total, cls_terms = cls_total + loss.mean(), cls_terms + 1
        self.update_centers(teacher_cls, teacher_patch)
        return cls_total / cls_terms, patch_total / patch_terms

    @torch.no_grad()
    def update_centers(self, teacher_cls, teacher_patch):
        mean = torch.sum(teacher_cls, dim=0, keepdim=True) / len(teacher_cls)
        self.center = self.center * CENTER_MOMENTUM + mean * (1 - CENTER_MOMENTUM)
        mean = torch.sum(teacher_patch.mean(1), dim=0, keepdim=True) / len(teacher_patch)
        self.center2 = self.center2 * CENTER_MOMENTUM + mean * (1 - CENTER_MOMENTUM)


def original_names(weights):
    """Weights of `IBotForPreTraining` under the original's names, with query, key and value in one tensor."""
    names = [
        ("ibot.embeddings.patch_embeddings.projection", "backbone.patch_embed"),
        ("ibot.embeddings.cls_token", "backbone.cls_token"),
        ("ibot.embeddings.position_embeddings", "backbone.pos_embed"),
        ("ibot.embeddings.mask_token", "backbone.masked_embed"),
        ("ibot.layernorm.", "backbone.norm."),
        ("ibot.layers.", "backbone.blocks."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("attention.o_proj", "attn.proj"),
        ("attention.qkv_proj", "attn.qkv"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.2"),
        ("last_layer.direction", "last_layer.weight_v"),
        ("last_layer.magnitude", "last_layer.weight_g"),
    ]
    names += [(f"head.layers.{i}", f"head.mlp.{2 * i}") for i in range(3)]
    fused = {}
    for name, tensor in weights.items():
        if ".q_proj." in name:
            tensor = torch.cat([weights[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        name = name.replace(".q_proj.", ".qkv_proj.")
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        fused[name] = tensor[0] if name.endswith("masked_embed") else tensor
        if "last_layer." in name:
            fused[name.replace("last_layer.", "last_layer2.")] = tensor
    return fused


def cosine(base, final, steps):
    return final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(steps) / steps))


def run_baseline(weights, batches, drop_path, meter):
    weights = original_names(weights)
    student, teacher = Network(weights, drop_path), Network(weights)
    del weights
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    decayed = [p for n, p in student.named_parameters() if not n.endswith(".bias") and p.ndim > 1]
    others = [p for n, p in student.named_parameters() if n.endswith(".bias") or p.ndim == 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
    criterion = Loss()
    batch_size, steps = len(batches[0]["pixel_values"]), len(batches)
    learning_rates = cosine(LEARNING_RATE * batch_size, MIN_LEARNING_RATE * batch_size, steps)
    decays, momenta = cosine(WEIGHT_DECAY, WEIGHT_DECAY_END, steps), cosine(MOMENTUM, 1.0, steps)
    losses = []
    meter.start()

    for step, batch in enumerate(batches):
        images = [*batch["pixel_values"].unbind(1), *batch["local_pixel_values"].unbind(1)]
        masks = [mask.unflatten(1, (14, 14)) for mask in batch["bool_masked_pos"].unbind(1)]
        for group in optimizer.param_groups:
            group["lr"] = float(learning_rates[step])
        optimizer.param_groups[0]["weight_decay"] = float(decays[step])

        teacher_output = teacher(images[:GLOBAL_VIEWS])
        student_output = student(images[:GLOBAL_VIEWS], masks)
        student_local_cls = student(images[GLOBAL_VIEWS:])[0]
        cls, patch = criterion(student_output, teacher_output, student_local_cls, masks)
        loss = cls + patch
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()}")
        teacher_prototypes = teacher_output[0].chunk(GLOBAL_VIEWS)[0].argmax(1)
        agreement = teacher_prototypes == student_output[0].chunk(GLOBAL_VIEWS)[1].argmax(1)

        optimizer.zero_grad()
        loss.backward()
        for parameter in student.parameters():
            scale = CLIP / (parameter.grad.norm(2) + 1e-6)
            if scale < 1:
                parameter.grad.mul_(scale)
        optimizer.step()
        with torch.no_grad():
            averages = dict(teacher.named_parameters())
            for name, parameter in student.named_parameters():
                averages[name].mul_(momenta[step]).add_((1 - momenta[step]) * parameter.detach())
        agreement.float().mean().item()
        losses.append({"loss": loss.item(), "cls": cls.item(), "patch": patch.item()})
        meter.step()
    return losses


# ---------------------------------------------------------------------------------------------------------------------
# This package


def run_ours(weights, batches, drop_path, meter):
    config = IBotConfig(hidden_size=WIDTH, num_attention_heads=HEADS, norm_last_layer=False, drop_path_rate=drop_path)
    model = IBotForPreTraining(config)
    model.load_state_dict(weights)
    batch_size = len(batches[0]["pixel_values"])
    with tempfile.TemporaryDirectory() as folder:
        args = IBotTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=batch_size,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE * batch_size,
            min_learning_rate=MIN_LEARNING_RATE * batch_size,
            warmup_epochs=0,
            freeze_last_layer=0,
            teacher_temp=TEACHER_TEMPERATURE,
            teacher_patch_temp=TEACHER_TEMPERATURE,
            warmup_teacher_temp_epochs=0,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=SEED,
        )
        remaining = iter(batches)
        trainer = IBotTrainer(
            model=model,
            args=args,
            data_collator=lambda samples: dict(next(remaining)),
            train_dataset=[{}] * (batch_size * len(batches)),
            callbacks=[StepEnds(meter)],
        )
        trainer.train()
    return [
        {key: log["loss" if key == "loss" else f"loss_{key}"] for key in ("loss", "cls", "patch")}
        for log in trainer.state.log_history
        if "loss" in log
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def make_batches(steps, batch_size):
    """Random views, normalized, and the recipe's masks: half of the views have none."""
    generator = torch.Generator().manual_seed(SEED)
    masks = MaskGenerator((14, 14))
    batches = []
    for step in range(steps):
        mask = masks(
            np.arange(step * batch_size * GLOBAL_VIEWS, (step + 1) * batch_size * GLOBAL_VIEWS, dtype=np.uint64), 0
        )
        mask = torch.from_numpy(mask).flatten(1).unflatten(0, (batch_size, GLOBAL_VIEWS))
        batches.append(
            {
                "pixel_values": torch.randn(batch_size, GLOBAL_VIEWS, 3, 224, 224, generator=generator),
                "local_pixel_values": torch.randn(batch_size, LOCAL_VIEWS, 3, 96, 96, generator=generator),
                "bool_masked_pos": mask,
                "mask_indices": mask.flatten().nonzero().squeeze(1),
            }
        )
    return batches


def measure(options):
    """Run one side in this process; its last line on standard output holds the losses."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    weights, batches = load_file(options.weights), make_batches(options.steps, options.batch_size)
    run = run_ours if options.side == "ours" else run_baseline
    print(json.dumps(run(weights, batches, options.drop_path, Meter())))


def commands(weights, options, steps, drop_path):
    """The commands that run each side."""
    arguments = ["--weights", weights, "--steps", steps, "--batch_size", options.batch_size, "--drop_path", drop_path]
    return [[__file__, "--side", side, *arguments] for side in SIDES]


def compare(options):
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "weights.safetensors")
        torch.manual_seed(SEED)
        model = IBotForPreTraining(IBotConfig(hidden_size=WIDTH, num_attention_heads=HEADS, norm_last_layer=False))
        save_file(model.state_dict(), weights)
        del model
        _, losses = take_turns(commands(weights, options, options.loss_steps, 0.0), options.loss_steps)
        figures, _ = take_turns(commands(weights, options, options.steps, options.drop_path), options.steps)

    print_comparison(losses, figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=4, help="images per step")
    parser.add_argument("--steps", type=int, default=12, help="steps of each side, the first of which is not timed")
    parser.add_argument("--loss_steps", type=int, default=4, help="steps whose losses are compared")
    parser.add_argument("--drop_path", type=float, default=0.1, help="stochastic depth while timing")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
