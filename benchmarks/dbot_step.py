"""
dBOT's encoder, decoder and training step: savings from computing only what contributes to the loss.

    python benchmarks/dbot_step.py

ViT-B/16 with a decoder of eight blocks of width 512, 147 of 196 patches removed, batch 4, float32, two threads. The
images are given as tensors. Both sides of a comparison alternate, because the speed of a shared machine changes from
minute to minute.

- encoder: forward and backward pass with the kept patches and the CLS token (50 tokens) against all 197 tokens;
- decoder: the last block's MLP, the final norm, the prediction and the loss on the rows that carry loss (148 of 197)
  against all rows, forward and backward, and the difference of losses and gradients;
- step: a whole step, including targets, in two processes: losses of the first steps from the same weights, images and
  noise, time per step, and the growth of resident memory while the steps run. The baseline is a step in the manner of
  MAE, written from the description of the original (`models_mae.py`, `engine_pretrain.py`): explicit softmax
  attention; prediction, normalized targets and loss for all rows; branches that are computed and then multiplied by 0
  where stochastic depth drops them; loops over tensors for clipping and AdamW. The other side is
  `DBotTrainer.train()`. Both drop the same samples.

`--part` runs only one of these, `--drop_path_rate 0` measures a step without stochastic depth, and `--profile` prints
the operators of one step of each side instead.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback

from hf_mim import DBotConfig, DBotForPreTraining
from hf_mim.modeling.modeling_dbot import sincos_positions
from hf_mim.modeling.modeling_dbot_pretraining import normalize_targets
from hf_mim.training.dbot_arguments import DBotTrainingArguments
from hf_mim.training.dbot_trainer import DBotTrainer
from turns import THREADS, Meter, Profiler, StepEnds, print_comparison, take_turns


WIDTH, DEPTH, HEADS, PATCH, GRID = 768, 12, 12, 16, 14
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 512, 8, 16
PATCHES, KEPT = GRID**2, 49
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 1.5e-4, 0.05, (0.9, 0.95), 3.0
SEED = 0
SIDES = ("baseline", "ours")
PARTS = ("encoder", "decoder", "step")


# ---------------------------------------------------------------------------------------------------------------------
# The baseline of a step: what the original code computes


class Block(nn.Module):
    def __init__(self, width, heads, rate):
        super().__init__()
        self.heads, self.rate = heads, rate
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attention(self, x):
        rows, length, width = x.shape
        qkv = self.qkv(x).reshape(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        attention = (query @ key.transpose(-2, -1)) * (width // self.heads) ** -0.5
        attention = attention.softmax(dim=-1)
        return self.proj((attention @ value).transpose(1, 2).reshape(rows, length, width))

    def drop_path(self, branch):
        if self.rate == 0:
            return branch
        keep = 1 - self.rate
        return branch / keep * (torch.rand(len(branch), 1, 1) < keep)

    def forward(self, x):
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def blocks(width, heads, depth, rate):
    return nn.ModuleList(Block(width, heads, rate * i / (depth - 1)) for i in range(depth))


class Encoder(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.register_buffer("positions", sincos_positions(WIDTH, (GRID, GRID)), persistent=False)
        self.blocks = blocks(WIDTH, HEADS, DEPTH, rate)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images, noise=None):
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        mask = ids_restore = None
        if noise is not None:
            ids_shuffle = torch.argsort(noise, dim=1)
            ids_restore = torch.argsort(ids_shuffle, dim=1)
            ids_keep = ids_shuffle[:, :KEPT]
            x = torch.gather(x, 1, ids_keep.unsqueeze(-1).repeat(1, 1, WIDTH))
            mask = torch.ones_like(noise)
            mask[:, :KEPT] = 0
            mask = torch.gather(mask, 1, ids_restore)
        cls_token = (self.cls_token + self.positions[:, :1]).expand(len(x), -1, -1)
        x = torch.cat((cls_token, x), dim=1)
        for block in self.blocks:
            x = block(x)
        return x, mask, ids_restore


class Decoder(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.embed = nn.Linear(WIDTH, DECODER_WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER_WIDTH))
        self.register_buffer("positions", sincos_positions(DECODER_WIDTH, (GRID, GRID)), persistent=False)
        self.blocks = blocks(DECODER_WIDTH, DECODER_HEADS, DECODER_DEPTH, rate)
        self.norm = nn.LayerNorm(DECODER_WIDTH, eps=1e-6)
        self.prediction = nn.Linear(DECODER_WIDTH, WIDTH)

    def forward(self, x, ids_restore):
        x = self.embed(x)
        mask_tokens = self.mask_token.repeat(len(x), PATCHES - KEPT, 1)
        patches = torch.cat((x[:, 1:], mask_tokens), dim=1)
        patches = torch.gather(patches, 1, ids_restore.unsqueeze(-1).repeat(1, 1, DECODER_WIDTH))
        x = torch.cat((x[:, :1], patches), dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.prediction(self.norm(x))


class Student(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.encoder, self.decoder = Encoder(rate), Decoder(rate)

    def forward(self, images, noise, targets):
        x, mask, ids_restore = self.encoder(images, noise)
        prediction = self.decoder(self.encoder.norm(x), ids_restore)
        return masked_loss(prediction, targets, mask)


def masked_loss(prediction, targets, mask):
    """The loss computed for all rows; rows of kept patches have weight 0."""
    mean, variance = targets.mean(dim=-1, keepdim=True), targets.var(dim=-1, keepdim=True)
    targets = (targets - mean) / (variance + 1e-6) ** 0.5
    loss = F.smooth_l1_loss(prediction, targets, beta=2.0, reduction="none").mean(dim=-1)
    mask = torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)
    return (loss * mask).sum() / mask.sum()


NAMES = [
    ("dbot.embeddings.patch_embeddings.projection", "encoder.patch_embed"),
    ("dbot.embeddings.", "encoder."),
    ("dbot.layernorm.", "encoder.norm."),
    ("decoder.layernorm.", "decoder.norm."),
    ("dbot.", "encoder."),
    ("layers.", "blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.o_proj", "proj"),
    ("attention.q_proj", "qkv"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
]


def original_names(weights):
    """Weights of the student under the baseline's names, with query, key and value in one tensor."""
    renamed = {}
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            tensor = torch.cat([weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def run_baseline(weights, batches, rate, meter):
    student, teacher = Student(rate), Encoder(0.0)
    student.load_state_dict(original_names(weights))
    weights.clear()
    teacher.load_state_dict(student.encoder.state_dict())
    teacher.requires_grad_(False)
    parameters = list(student.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, foreach=False, fused=False)
    losses = []
    meter.start()

    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        with torch.no_grad():
            targets = teacher(batch["pixel_values"])[0]
        loss = student(batch["pixel_values"], batch["noise"], targets)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP, foreach=False)
        optimizer.step()
        losses.append({"loss": loss.item()})
        meter.step()
    return losses


# ---------------------------------------------------------------------------------------------------------------------
# This package


def student_config(rate=0.0):
    return DBotConfig(drop_path_rate=rate)


class SeedEachStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        torch.manual_seed(state.global_step)


def run_ours(weights, batches, rate, meter):
    with torch.device("meta"):
        student = DBotForPreTraining(student_config(rate))
    student.load_state_dict(weights, assign=True)
    batch_size = len(batches[0]["pixel_values"])
    with tempfile.TemporaryDirectory() as folder:
        args = DBotTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=batch_size,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            warmup_epochs=0,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=SEED,
        )
        remaining = iter(batches)
        trainer = DBotTrainer(
            model=student,
            args=args,
            data_collator=lambda samples: dict(next(remaining)),
            train_dataset=[{}] * (batch_size * len(batches)),
            callbacks=[SeedEachStep(), StepEnds(meter)],
        )
        trainer.train()
    return [{"loss": log["loss"]} for log in trainer.state.log_history if "loss" in log]


# ---------------------------------------------------------------------------------------------------------------------
# Measurement


def make_batches(steps, batch_size):
    """Random normalized images whose patches differ in color, and the noise that selects the kept patches."""
    generator = torch.Generator().manual_seed(SEED)
    batches = []
    for _ in range(steps):
        images = torch.rand(batch_size, 3, GRID, 1, GRID, 1, generator=generator)
        images = (images + 0.1 * torch.rand(batch_size, 3, GRID, PATCH, GRID, PATCH, generator=generator)) / 1.1
        images = images.flatten(4, 5).flatten(2, 3)
        noise = torch.rand(batch_size, PATCHES, generator=generator)
        batches.append({"pixel_values": (images - 0.45) / 0.225, "noise": noise})
    return batches


def time_in_turns(sides, model, rounds):
    """Time each side's call in alternation and print the results; the first round does not count."""
    figures = {name: [] for name in sides}
    for number in range(1 + rounds):
        for name, call in sides.items():
            model.zero_grad()
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if number:
                figures[name].append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
    (slow_name, slow), (fast_name, fast) = figures.items()
    for title, key, statistic in (
        ("ms, median", "wall", statistics.median),
        ("ms, fastest", "wall", min),
        ("processor ms, median", "cpu", statistics.median),
    ):
        one, two = (1e3 * statistic([row[key] for row in rows]) for rows in (slow, fast))
        print(f"{title:<22} {slow_name} {one:7.0f}  {fast_name} {two:7.0f}  ({one / two:.2f}x)")
    speedups = sorted(one["wall"] / two["wall"] for one, two in zip(slow, fast, strict=True))
    print("speed-up of each pair: " + " ".join(f"{value:.2f}" for value in speedups))


def measure_encoder(options):
    torch.manual_seed(SEED)
    encoder = DBotForPreTraining(student_config()).dbot.train()
    (batch,) = make_batches(1, options.batch_size)
    gradients = {tokens: torch.randn(options.batch_size, tokens, WIDTH) for tokens in (1 + PATCHES, 1 + KEPT)}

    def step(noise, tokens):
        encoder(batch["pixel_values"], noise).last_hidden_state.backward(gradients[tokens])

    sides = {
        f"{1 + PATCHES} tokens": lambda: step(None, 1 + PATCHES),
        f"{1 + KEPT} tokens": lambda: step(batch["noise"], 1 + KEPT),
    }
    time_in_turns(sides, encoder, options.steps)


def measure_decoder(options):
    torch.manual_seed(SEED)
    decoder = DBotForPreTraining(student_config()).decoder.train()
    (batch,) = make_batches(1, options.batch_size)
    latent = torch.randn(options.batch_size, 1 + KEPT, WIDTH)
    targets = torch.randn(options.batch_size, 1 + PATCHES, WIDTH)
    ids_restore = batch["noise"].argsort(dim=1).argsort(dim=1)
    removed = ids_restore >= KEPT
    wanted = F.pad(removed, (1, 0), value=True).flatten().nonzero().squeeze(1)

    def all_rows():
        loss = masked_loss(decoder(latent, ids_restore, (GRID, GRID)), targets, removed.float())
        loss.backward()
        return loss.item()

    def wanted_rows():
        prediction = decoder(latent, ids_restore, (GRID, GRID), token_indices=wanted).squeeze(1)
        loss = F.smooth_l1_loss(prediction, normalize_targets(targets.flatten(0, 1)[wanted]), beta=2.0)
        loss.backward()
        return loss.item()

    losses, gradients = [], []
    for side in (all_rows, wanted_rows):
        decoder.zero_grad()
        losses.append(side())
        gradients.append([parameter.grad.clone() for parameter in decoder.parameters()])
    largest = max(gradient.abs().max().item() for gradient in gradients[0])
    difference = max((one - two).abs().max().item() for one, two in zip(*gradients, strict=True))
    print(f"loss of all rows {losses[0]:.7f}, of those that carry it {losses[1]:.7f}")
    print(f"largest difference of a gradient: {difference:.1e}, of gradients up to {largest:.1e}")
    time_in_turns({"all rows": all_rows, "rows with loss": wanted_rows}, decoder, options.steps)


def measure_step(options):
    """Run one side in this process; its last line on standard output holds the losses."""
    torch.manual_seed(SEED)
    # Copies, because a mapped file would count as memory of the side that uses it without copying.
    weights = {name: tensor.clone() for name, tensor in load_file(options.weights).items()}
    meter = Profiler(options.steps) if options.profile else Meter()
    run = run_ours if options.side == "ours" else run_baseline
    batches = make_batches(options.steps, options.batch_size)
    print(json.dumps(run(weights, batches, options.drop_path_rate, meter)))


def compare_steps(options):
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(SEED)
        options.weights = os.path.join(folder, "student")
        save_file(DBotForPreTraining(student_config()).state_dict(), options.weights)
        names = ("weights", "steps", "batch_size", "drop_path_rate")
        arguments = [text for name in names for text in (f"--{name}", getattr(options, name))]
        if options.profile:
            for options.side in SIDES:
                print(options.side)
                measure_step(options)
            return
        figures, losses = take_turns([[__file__, "--side", side, *arguments] for side in SIDES], options.steps)
    print_comparison([side[: options.loss_steps] for side in losses], figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="what to measure; all of them by default")
    parser.add_argument("--batch_size", type=int, default=4, help="images per step")
    parser.add_argument("--steps", type=int, default=12, help="steps of each side")
    parser.add_argument("--loss_steps", type=int, default=4, help="steps whose losses are compared")
    parser.add_argument("--drop_path_rate", type=float, default=0.2, help="of the whole step")
    parser.add_argument("--profile", action="store_true", help="print the operators of the last whole step instead")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.side:
        measure_step(options)
        return
    parts = {"encoder": measure_encoder, "decoder": measure_decoder, "step": compare_steps}
    for name in ["step"] if options.profile else [options.part] if options.part else PARTS:
        print(f"\n{name}")
        parts[name](options)


if __name__ == "__main__":
    main()
