"""VQ-KD: a tokenizer learns codes from which a frozen teacher's features can be decoded (BEiT v2, section 3.1)."""

from typing import Any

import torch
from torch import nn

from ..evaluation.features import image_batches
from ..modeling.modeling_vqkd import VQKDModel
from ..modeling.quantizer_vqkd import code_statistics
from .callbacks.online_knn import part_of_process
from .frozen_target import FrozenTargetTrainer
from .optimization import BEITV2_WITHOUT_DECAY, decayed_parameter_names
from .teachers import FeatureTeacher, plain_images
from .vqkd_arguments import VQKDTrainingArguments


class VQKDTrainer(FrozenTargetTrainer):
    """
    [`MIMTrainer`] for [`VQKDModel`] (`run_vqkd_training.py`). The targets are the teacher's features of the crop that
    the student sees. After every optimizer step the codebook moves by the features that were assigned to its codes, in
    all batches of the step and all processes.

    The logs show `codebook_usage` (share of the codes that were chosen), `perplexity` and `dead_codes` of the steps
    since the last log (see [`code_statistics`]), and `codebook_usage_epoch`, the usage of the last whole epoch, or of
    the first epoch so far. These counts are not part of a checkpoint. After a resume they start from zero, and the
    rest of the current epoch counts as the first one.

    Args:
        model (`VQKDModel`): Tokenizer.
        args (`VQKDTrainingArguments`): All options.
        teacher (`FeatureTeacher`): Gives the targets, on the student's grid.
        processing_class (`BaseImageProcessor`): Required. Its mean and standard deviation normalize the student's
            pixels.
        eval_dataset (`datasets.Dataset`, *optional*): Images, without labels. An evaluation reports the losses and
            the use of the codes on them.
        **kwargs: As for [`MIMTrainer`].

    Raises:
        ValueError: If teacher and student do not fit together, or there is no image processor.
    """

    model: VQKDModel
    args: VQKDTrainingArguments
    teacher: FeatureTeacher

    needs_bank = False
    keeps_full_model = False

    def __init__(self, model: VQKDModel, args: VQKDTrainingArguments, teacher: FeatureTeacher, **kwargs):
        if kwargs.get("processing_class") is None:
            raise ValueError("VQ-KD needs processing_class, the image processor, for its mean and standard deviation")
        if (teacher.grid, teacher.hidden_size) != (model.config.grid_size, model.config.target_dim):
            raise ValueError(
                f"the teacher gives features of {teacher.hidden_size} numbers on a grid of {teacher.grid}, the model "
                f"predicts {model.config.target_dim} (target_dim) on {model.config.grid_size}"
            )
        super().__init__(model=model, args=args, target=teacher, target_name=teacher.name, **kwargs)
        # How often each code was chosen: since the last log, in the current epoch, and in the last whole epoch.
        self._counts, self._epoch_counts = self._no_counts(), self._no_counts()
        self._last_epoch_counts: torch.Tensor | None = None

    def _no_counts(self) -> torch.Tensor:
        return torch.zeros(self.model.config.codebook_size, dtype=torch.int64, device=self.args.device)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decayed_parameter_names(model, BEITV2_WITHOUT_DECAY)

    def compute_targets(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        processor = self.processing_class
        images = plain_images(inputs["pixel_values"], processor.image_mean, processor.image_std)
        return {"labels": self.teacher(images)}

    def after_optimizer_step(self):
        counts = self.accelerator.unwrap_model(self.model).update_codebook()
        self._counts += counts
        self._epoch_counts += counts
        step = self.state.global_step
        if self.epoch_of(step + 1) > self.epoch_of(step):
            self._last_epoch_counts, self._epoch_counts = self._epoch_counts, self._no_counts()

    def collect_logs(self) -> dict[str, float]:
        window = code_statistics(self._counts)
        epoch = self._epoch_counts if self._last_epoch_counts is None else self._last_epoch_counts
        self._counts = self._no_counts()
        return super().collect_logs() | {
            "codebook_usage": window["codebook_usage"],
            "codebook_usage_epoch": code_statistics(epoch)["codebook_usage"],
            "perplexity": window["perplexity"],
            "dead_codes": window["dead_codes"],
        }

    @torch.no_grad()
    def measure(self, eval_dataset) -> dict[str, Any]:
        """
        Return the losses and the use of the codes on `eval_dataset`, with the image processor's center crop, in full
        precision. The codebook does not change.
        """
        model = self.deployable_encoder()
        part = part_of_process(eval_dataset, self.accelerator.process_index, self.accelerator.num_processes)
        names = ("loss", "loss_feature", "loss_quantizer")
        sums, counts = torch.zeros(len(names) + 1, device=self.args.device), self._no_counts()
        training = model.training
        model.eval()
        for batch in image_batches(
            part,
            self.processing_class,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            num_channels=model.config.num_channels,
            progress=self.accelerator.is_main_process and not self.args.disable_tqdm,
            skip_unreadable=True,
        ):
            pixel_values = batch["pixel_values"]
            assert pixel_values is not None
            inputs = {"pixel_values": pixel_values.to(self.args.device, model.dtype)}
            outputs = model(**inputs, **self.compute_targets(inputs))
            images = len(inputs["pixel_values"])
            sums[:-1] += images * torch.stack([outputs[name] for name in names]).float()
            sums[-1] += images
            counts += outputs["codes"].flatten().bincount(minlength=len(counts))
        model.train(training)
        sums, counts = self.accelerator.reduce(sums, "sum"), self.accelerator.reduce(counts, "sum")
        if not sums[-1]:
            raise ValueError("eval_dataset has no readable image")
        losses = (sums[:-1] / sums[-1]).tolist()
        return dict(zip(names, losses, strict=True)) | code_statistics(counts)

    def deployable_encoder(self) -> VQKDModel:
        student = self.whole_student()
        assert isinstance(student, VQKDModel)
        return student
