"""
One optimizer step of BEiT v2, including targets: this package's trainer against the steps of the original code.

    python benchmarks/beitv2_step.py

ViT-B/16 with patch aggregation (blocks 1 to 9 and two of the head branch), a tokenizer of twelve blocks with 8192
codes, 75 of 196 patches masked, float32, two threads. Both sides get the images as tensors. Each side runs in its own
process, and the sides alternate step by step, because the speed of a shared machine changes from minute to minute.
The script compares

- the losses of the first steps, from the same weights, images and masks;
- the time per step, and the growth of resident memory: the peak while the steps run minus the resident memory before
  the first step.

The baseline is written from the description of the original (`modeling_pretrain.py`, `modeling_vqkd.py`,
`norm_ema_quantizer.py`, `engine_for_pretraining.py`): explicit softmax attention plus the relative position
bias, all tokens through the last blocks, a one-hot matrix of the codes in every call of the tokenizer, and loops over
tensors for clipping and AdamW. The other side is `Beitv2Trainer.train()`.

`--profile` prints the operators of one step of each side instead.
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

from hf_mim import Beitv2Config, Beitv2ForPreTraining, VQKDConfig, VQKDModel
from hf_mim.data.masking import BlockMaskGenerator
from hf_mim.modeling.image_processing_pil_mim import Beitv2ImageProcessorPil
from hf_mim.training.beitv2_arguments import Beitv2TrainingArguments
from hf_mim.training.beitv2_trainer import Beitv2Trainer
from turns import THREADS, Meter, Profiler, StepEnds, print_comparison, take_turns


WIDTH, DEPTH, HEADS, PATCH, GRID, CODES, CODE_DIM = 768, 12, 12, 16, 14, 8192, 32
EARLY_LAYERS, HEAD_LAYERS, MASKED = 9, 2, 75
LEARNING_RATE, MIN_LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP, DECAY = 1.5e-3, 1e-5, 0.05, (0.9, 0.98), 3.0, 0.99
SEED = 0
SIDES = ("baseline", "ours")


# ---------------------------------------------------------------------------------------------------------------------
# The baseline: what the original code computes


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, position_bias):
        rows, length, _ = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        attention = (query * (WIDTH // HEADS) ** -0.5) @ key.transpose(-2, -1)
        if position_bias is not None:
            attention = attention + position_bias
        attention = attention.softmax(dim=-1)
        return self.proj((attention @ value).transpose(1, 2).reshape(rows, length, -1))


class Block(nn.Module):
    def __init__(self, layer_scale):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.ones(WIDTH)) if layer_scale else None for _ in range(2))

    def forward(self, x, position_bias=None):
        if self.gamma_1 is None:
            x = x + self.attn(self.norm1(x), position_bias)
            return x + self.mlp(self.norm2(x))
        x = x + self.gamma_1 * self.attn(self.norm1(x), position_bias)
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class RelativePositionBias(nn.Module):
    def __init__(self):
        super().__init__()
        side = 2 * GRID - 1
        self.table = nn.Parameter(torch.zeros(side**2 + 3, HEADS))
        rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        rows, columns = rows.flatten(), columns.flatten()
        index = torch.zeros(GRID**2 + 1, GRID**2 + 1, dtype=torch.int64)
        index[1:, 1:] = (rows[:, None] - rows + GRID - 1) * side + columns[:, None] - columns + GRID - 1
        index[0], index[:, 0], index[0, 0] = side**2, side**2 + 1, side**2 + 2
        self.register_buffer("index", index, persistent=False)

    def forward(self):
        return self.table[self.index.view(-1)].view(*self.index.shape, -1).permute(2, 0, 1).contiguous()


class Student(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token, self.mask_token = (nn.Parameter(torch.zeros(1, 1, WIDTH)) for _ in range(2))
        self.rel_pos_bias = RelativePositionBias()
        self.blocks = nn.ModuleList(Block(True) for _ in range(DEPTH))
        self.cls_pt_layers = nn.ModuleList(Block(True) for _ in range(HEAD_LAYERS))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.lm_head = nn.Linear(WIDTH, CODES)
        self.load_state_dict(weights)

    def forward(self, images, mask):
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        rows, length, _ = x.shape
        weight = mask.unsqueeze(-1).type_as(x)
        x = x * (1 - weight) + self.mask_token.expand(rows, length, -1) * weight
        x = torch.cat((self.cls_token.expand(rows, -1, -1), x), dim=1)
        bias = self.rel_pos_bias()
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, bias)
            if number == EARLY_LAYERS:
                early = x[:, 1:]
        y = torch.cat((x[:, [0]], early), dim=1)
        for block in self.cls_pt_layers:
            y = block(y, bias)
        return [self.lm_head(self.norm(tokens)[:, 1:][mask]) for tokens in (x, y)]


class Tokenizer(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID**2, WIDTH))
        self.blocks = nn.ModuleList(Block(False) for _ in range(DEPTH))
        self.fc_norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.task_layer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CODE_DIM))
        self.register_buffer("codebook", torch.zeros(CODES, CODE_DIM))
        self.register_buffer("cluster_size", torch.zeros(CODES))
        self.load_state_dict(weights)

    @torch.no_grad()
    def codes(self, images):
        if images.max() <= 1.0:
            images = images * 255.0
        x = self.patch_embed(images / 127.5 - 1.0).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        z = F.normalize(self.task_layer(self.fc_norm(x[:, 1:])), dim=-1)
        flat = z.reshape(-1, CODE_DIM)
        distances = (
            flat.pow(2).sum(dim=1, keepdim=True)
            + self.codebook.pow(2).sum(dim=1)
            - 2 * torch.einsum("bd,nd->bn", flat, self.codebook)
        )
        codes = torch.argmin(distances, dim=1)
        quantized = F.embedding(codes, self.codebook).view(z.shape)
        encodings = F.one_hot(codes, CODES).type(z.dtype)
        self.cluster_size.mul_(DECAY).add_(encodings.sum(0), alpha=1 - DECAY)
        F.mse_loss(quantized, z)
        return codes.view(len(x), -1)


NAMES = [
    ("beitv2.embeddings.patch_embeddings.projection", "patch_embed"),
    ("encoder.embeddings.patch_embeddings.projection", "patch_embed"),
    ("beitv2.embeddings.", ""),
    ("encoder.embeddings.position_embeddings", "pos_embed"),
    ("encoder.embeddings.", ""),
    ("beitv2.shared_position_bias.relative_position_bias_table", "rel_pos_bias.table"),
    ("beitv2.layernorm.", "norm."),
    ("encoder.layernorm.", "fc_norm."),
    ("beitv2.layers.", "blocks."),
    ("encoder.layers.", "blocks."),
    ("head_layers.", "cls_pt_layers."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.o_proj", "attn.proj"),
    ("attention.q_proj.weight", "attn.qkv.weight"),
    ("attention.q_proj.bias", "attn.q_bias"),
    ("attention.v_proj.bias", "attn.v_bias"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
    ("lambda_", "gamma_"),
    ("encode_task_layer", "task_layer"),
    ("quantizer.codebook", "codebook"),
    ("quantizer.usage", "cluster_size"),
]


def original_names(weights):
    """Weights of the student or the tokenizer under the baseline's names, with query, key and value in one tensor."""
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith(("decoder.", "decode_", "quantizer.initialized", "quantizer.idle_steps")) or name.endswith(
            ("k_proj.weight", "v_proj.weight")
        ):
            continue
        if name.endswith("q_proj.weight"):
            tensor = torch.cat([weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def run_baseline(student_weights, tokenizer_weights, batches, meter):
    student, tokenizer = Student(original_names(student_weights)), Tokenizer(original_names(tokenizer_weights)).eval()
    student_weights.clear()
    tokenizer_weights.clear()
    parameters = list(student.named_parameters())
    decayed = [p for n, p in parameters if p.ndim > 1 and n != "cls_token"]
    others = [p for n, p in parameters if p.ndim <= 1 or n == "cls_token"]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, foreach=False, fused=False)
    steps = len(batches)
    span = LEARNING_RATE - MIN_LEARNING_RATE
    learning_rates = MIN_LEARNING_RATE + 0.5 * span * (1 + np.cos(np.pi * np.arange(steps) / steps))
    losses = []
    meter.start()

    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = float(learning_rates[step])
        mask = batch["bool_masked_pos"]
        codes = tokenizer.codes(batch["target_pixel_values"] / 2 + 0.5)
        labels = codes[mask]
        outputs = student(batch["pixel_values"], mask)
        parts = [F.cross_entropy(logits, labels) for logits in outputs]
        loss = parts[0] + parts[1]
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP, foreach=False)
        optimizer.step()
        for logits in outputs:
            (logits.max(-1)[1] == labels).float().mean().item()
        losses.append({"loss": loss.item(), "mim": parts[0].item(), "mim_cls": parts[1].item()})
        meter.step()
    return losses


# ---------------------------------------------------------------------------------------------------------------------
# This package


def student_config():
    return Beitv2Config(early_layers=EARLY_LAYERS, head_layers=HEAD_LAYERS)


def tokenizer_config():
    # Pre-training does not use the decoder.
    return VQKDConfig(decoder_num_hidden_layers=1, kmeans_init=False)


def run_ours(student_weights, tokenizer_weights, batches, meter):
    with torch.device("meta"):
        student, tokenizer = Beitv2ForPreTraining(student_config()), VQKDModel(tokenizer_config())
    student.load_state_dict(student_weights, assign=True)
    tokenizer.load_state_dict(tokenizer_weights, assign=True)
    batch_size = len(batches[0]["pixel_values"])
    with tempfile.TemporaryDirectory() as folder:
        args = Beitv2TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=batch_size,
            num_train_epochs=1,
            warmup_epochs=0,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=SEED,
        )
        remaining = iter(batches)
        trainer = Beitv2Trainer(
            model=student,
            args=args,
            tokenizer=tokenizer,
            tokenizer_processor=Beitv2ImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3),
            data_collator=lambda samples: dict(next(remaining)),
            train_dataset=[{}] * (batch_size * len(batches)),
            callbacks=[StepEnds(meter)],
        )
        trainer.train()
    return [
        {key: log["loss" if key == "loss" else f"loss_{key}"] for key in ("loss", "mim", "mim_cls")}
        for log in trainer.state.log_history
        if "loss" in log
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def make_batches(steps, batch_size):
    """Random images, normalized for the student and in -1..1 for the tokenizer, and the recipe's masks."""
    generator = torch.Generator().manual_seed(SEED)
    masks = BlockMaskGenerator((GRID, GRID), MASKED)
    batches = []
    for step in range(steps):
        seeds = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint64)
        mask = torch.from_numpy(masks(seeds)).flatten(1)
        images = torch.rand(batch_size, 3, GRID, 1, GRID, 1, generator=generator)
        images = (images + 0.1 * torch.rand(batch_size, 3, GRID, PATCH, GRID, PATCH, generator=generator)) / 1.1
        images = images.flatten(4, 5).flatten(2, 3)
        batches.append(
            {
                "pixel_values": (images - 0.45) / 0.225,
                "target_pixel_values": 2 * images - 1,
                "bool_masked_pos": mask,
                "mask_indices": mask.flatten().nonzero().squeeze(1),
            }
        )
    return batches


def measure(options):
    """Run one side in this process; its last line on standard output holds the losses."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    # Copies, because a mapped file would count as memory of the side that uses it without copying.
    weights = [
        {name: tensor.clone() for name, tensor in load_file(os.path.join(options.weights, part)).items()}
        for part in ("student", "tokenizer")
    ]
    meter = Profiler(options.steps) if options.profile else Meter()
    run = run_ours if options.side == "ours" else run_baseline
    print(json.dumps(run(*weights, make_batches(options.steps, options.batch_size), meter)))


def compare(options):
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(SEED)
        for name, model in (
            ("student", Beitv2ForPreTraining(student_config())),
            ("tokenizer", VQKDModel(tokenizer_config())),
        ):
            save_file(model.state_dict(), os.path.join(folder, name))
        del model
        arguments = ["--weights", folder, "--steps", options.steps, "--batch_size", options.batch_size]
        if options.profile:
            for side in SIDES:
                print(side)
                options.side, options.weights = side, folder
                measure(options)
            return
        figures, losses = take_turns([[__file__, "--side", side, *arguments] for side in SIDES], options.steps)
    print_comparison([side[: options.loss_steps] for side in losses], figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=4, help="images per step")
    parser.add_argument("--steps", type=int, default=12, help="steps of each side, the first of which is not timed")
    parser.add_argument("--loss_steps", type=int, default=4, help="steps whose losses are compared")
    parser.add_argument("--profile", action="store_true", help="print the operators of the last step instead")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
