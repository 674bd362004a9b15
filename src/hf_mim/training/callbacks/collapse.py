"""Warn about collapse: a run that learns the same output for every image."""

import logging
import math

from transformers import PreTrainedConfig, TrainerCallback


logger = logging.getLogger(__name__)

# With fewer images since the last log, its statistics are not reliable.
MIN_IMAGES = 16
MIN_LOGS = 3
# Fraction of the run that a sign must last. Runs longer than `LONG_RUN` steps count as this long.
PATIENCE = {"features": 0.1, "uniform targets": 0.25, "few prototypes": 0.1, "codebook": 0.1, "target codes": 0.1}
LONG_RUN = 10_000
MIN_FEATURE_STD = 0.05
MIN_RANKME = 1.5
UNIFORM = 0.9999
SHARP = 0.05
FEW = 0.05
MIN_CODES_USED, MIN_PERPLEXITY = 0.1, 0.01
MIN_TARGET_CODES, MAX_MAJORITY = 0.005, 0.9

ADVICE = {
    "features": (
        "the features hardly depend on the image. Lower the learning rate, or lengthen its warm-up; check that the "
        "images differ, and that --image_mean and --image_std fit them"
    ),
    "uniform targets": (
        "the targets are uniform and do not depend on the image. Lower --teacher_temp and --teacher_patch_temp; if "
        "they are below 0.1, lower the learning rate or lengthen its warm-up"
    ),
    "few prototypes": (
        "most images have one of a few prototypes as their target. Let the centers adapt faster (--center_momentum "
        "and --patch_center_momentum 0.9), raise --teacher_temp and --teacher_patch_temp, or use --target sinkhorn"
    ),
    "codebook": (
        "most codes are unused. Restart them at patches (--config_overrides revive_after_steps=10), take fewer "
        "(codebook_size) or a shallower decoder (decoder_num_hidden_layers=1), start with larger batches, from which "
        "k-means computes the initial codebook, or lower the learning rate; check that the images differ"
    ),
    "target codes": (
        "the tokenizer gives nearly all patches the same code, so that there is little to learn. Check with hf-mim "
        "analyze codes that its codes distinguish these images, and that the images differ; otherwise train a "
        "tokenizer on them"
    ),
}


class CollapseCallback(TrainerCallback):
    """
    Warns of collapse, based on the logs. It does not stop or change the run.

    - *features*: `feature_std` < 0.05, or `rankme` < 1.5.
    - *uniform targets*, for methods that log `target_entropy` (iBOT): it is above 0.9999 log K. K is the number of
      prototypes, `out_dim` of the model's configuration, and log K is the maximum entropy.
    - *few prototypes*, for the same methods: `target_entropy` < 0.05 log K, and the number of used prototypes
      (`prototypes_used` times K) is one, or at most 5 % of K and of the number of images.
    - *codebook*, for methods that log `codebook_usage` (VQ-KD): one code was used, or at most 10 % of all codes (or of
      the number of patches since the last log, if that is smaller), or `perplexity` is below 1 % of that number.
    - *target codes*, for methods that log `majority_code` (BEiT v2): more than 90 % of the masked patches have the
      same code, or their codes are only one, or at most 0.5 % of all codes.

    A warning is logged if every log shows its sign for a tenth of the run. For uniform targets, which may occur at the
    beginning of a healthy run, it is a quarter of the run. Long runs count as 10,000 steps. At least three logs must
    show the sign. Logs of fewer than 16 images are ignored. The warning is repeated only if the sign has disappeared
    in between.

    The thresholds are far from the values of both healthy runs and runs with a provoked collapse (small ViTs on photo
    tiles and CIFAR-10, logs of 320 to 640 images):

    - Healthy, with Sinkhorn-Knopp or centering, Xavier or the original's initialization, from the first log on:
      `feature_std` >= 0.51, `rankme` >= 8.9, at least 10 of K = 128 prototypes, entropy 0.20 to 0.94 of log K, up to
      0.973 with the original's initialization and K = 8,192. Networks with 16 features reach 0.9993.
    - Learning rates 100 and 1,000 times too high: `feature_std` 0.03 and 0.0006, `rankme` 1.5 and 1.0, entropy above
      0.99999 of log K.
    - Teacher temperature 10: entropy above 0.99999 of log K from the first log on. `feature_std` falls to 0.09 and
      `rankme` to 3.5.
    - Fixed centers and a teacher temperature of 0.01: entropy 0.002 of log K and 3 of 128 prototypes, while
      `feature_std` stays at 0.7.
    - VQ-KD with a random teacher, logs of 20,480 patches. Healthy: at least 62 % of 512 codes, perplexity 55 and
      rising. In a long warm-up of the learning rate, perplexity falls for a while, here to 10 % of 2,048 codes. A
      learning rate 30 times too high: 2 codes, perplexity 2. A learning rate 1,000 times too high, or images without
      content: 1 code. No warning: 14 % of 4,096 codes, perplexity 2.5 % of them and rising, where the first batch had
      half as many patches as there are codes.
    - Targets from these tokenizers: the most frequent code has 4 to 6 %. After 30 times the learning rate, it has
      55 %, and 2 of 512 codes are used.
    """

    def __init__(self) -> None:
        self._last_step = 0
        # Per kind, the current series of logs with its sign: the step of the first log, and the number of logs.
        self._rows: dict[str, tuple[int, int]] = {}
        self._warned: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        self._last_step, self._rows, self._warned = state.global_step, {}, set()

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if not state.is_world_process_zero or "loss" not in logs:
            return
        step, total_batch = state.global_step, args.train_batch_size * args.gradient_accumulation_steps
        images = total_batch * args.world_size * (step - self._last_step)
        self._last_step = step
        if images < MIN_IMAGES:
            return
        signs = _signs(logs, images, model.config)
        self._warned &= signs.keys()
        self._rows = {kind: self._rows.get(kind, (step, 0)) for kind in signs}
        for kind, seen in signs.items():
            first, length = self._rows[kind]
            self._rows[kind] = first, length + 1
            lasting = step - first >= PATIENCE[kind] * min(state.max_steps, LONG_RUN) and length + 1 >= MIN_LOGS
            if lasting and kind not in self._warned:
                self._warned.add(kind)
                logger.warning(f"step {step}: collapse of the {kind}? {seen}, since step {first}: {ADVICE[kind]}")


def _signs(logs: dict[str, float], images: int, config: PreTrainedConfig) -> dict[str, str]:
    """Return the kinds of collapse that a log shows, each with a description of its sign."""
    signs = {}
    spread, rank = logs.get("feature_std", 1.0), logs.get("rankme", math.inf)
    if spread < MIN_FEATURE_STD or rank < MIN_RANKME:
        signs["features"] = f"feature_std {spread:.2g} (1 is healthy, 0 collapsed), rankme {rank:.1f}"
    if "target_entropy" in logs:
        signs |= _prototype_signs(logs["target_entropy"], logs["prototypes_used"], config.out_dim, images)
    if "codebook_usage" in logs:
        patches = images * math.prod(config.grid_size)
        signs |= _codebook_signs(logs["codebook_usage"], logs["perplexity"], config.codebook_size, patches)
    if "majority_code" in logs:
        signs |= _target_signs(logs["majority_code"], logs["codes_used"], config.vocab_size)
    return signs


def _prototype_signs(entropy: float, share_used: float, num_prototypes: int, images: int) -> dict[str, str]:
    largest, used = math.log(num_prototypes), round(share_used * num_prototypes)
    if entropy > UNIFORM * largest:
        return {"uniform targets": f"target_entropy {entropy:.5f} of at most {largest:.5f}"}
    if entropy < SHARP * largest and used <= max(1, FEW * min(num_prototypes, images)):
        seen = f"{used} of {num_prototypes} prototypes used by {images} images, target_entropy {entropy:.2g}"
        return {"few prototypes": seen}
    return {}


def _codebook_signs(share_used: float, perplexity: float, num_codes: int, patches: int) -> dict[str, str]:
    used, possible = round(share_used * num_codes), min(num_codes, patches)
    if used > max(1, MIN_CODES_USED * possible) and perplexity >= MIN_PERPLEXITY * possible:
        return {}
    return {"codebook": f"{used} of {num_codes} codes used by {patches} patches, perplexity {perplexity:.1f}"}


def _target_signs(majority: float, share_used: float, num_codes: int) -> dict[str, str]:
    used = round(share_used * num_codes)
    if used > max(1, MIN_TARGET_CODES * num_codes) and majority <= MAX_MAJORITY:
        return {}
    return {"target codes": f"{used} of {num_codes} codes are targets, {100 * majority:.1f} % of them the same one"}
