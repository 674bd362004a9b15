"""Configuration of the VQ-KD tokenizer of BEiT v2."""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .configuration_common import check_counts, check_heads, check_image_size, grid_of


@strict
class VQKDConfig(PreTrainedConfig):
    r"""
    Sizes and codebook of a VQ-KD tokenizer ([Peng et al., 2022](https://arxiv.org/abs/2208.06366), section 3.1).

    The defaults are the tokenizer with which the released BEiT v2 models were trained
    (`vqkd_encoder_base_decoder_3x768x12_clip`). The other two released tokenizers have `decoder_num_hidden_layers=1`;
    the one trained with DINO as its teacher also has `target_dim=768`.

    Args:
        > Encoder and decoder (`modeling_vqkd.py`)

        hidden_size (`int`, defaults to 768): Width of the tokens in the encoder and the decoder.
        num_hidden_layers (`int`, defaults to 12): Blocks of the encoder.
        decoder_num_hidden_layers (`int`, defaults to 3): Blocks of the decoder. A deeper decoder predicts the
            teacher's features better, but fewer codes are used.
        num_attention_heads (`int`, defaults to 12): Attention heads per block; must divide `hidden_size`.
        intermediate_size (`int`, *optional*): Width of the blocks' MLP; defaults to four times `hidden_size`.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLP (the exact, erf form of GELU).
        initializer_range (`float`, defaults to 0.02): Standard deviation of the truncated normal initialization.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size (`int` or `(height, width)`, defaults to 224): Size in pixels for which the position tables are
            created. Other sizes work as well; the tables are then interpolated.
        patch_size (`int`, defaults to 16): Side of a patch in pixels; must divide the image size.
        num_channels (`int`, defaults to 3): Channels of the images.

        > Codebook (`norm_ema_quantizer.py`)

        codebook_size (`int`, defaults to 8192): Number K of codes.
        codebook_dim (`int`, defaults to 32): Number C of channels of a code.
        codebook_decay (`float`, defaults to 0.99): Decay, in [0, 1], of the moving averages of the codebook and of its
            usage.
        commitment_weight (`float`, defaults to 1.0): Weight of the loss that pulls the encoder's output to its code.
        kmeans_init (`bool`, defaults to `True`): Initialize the codebook by k-means over the first training batch,
            which should contain at least `codebook_size` patches. Otherwise it is random.
        revive_after_steps (`int`, defaults to 0): A code that no patch has used for this many optimizer steps is
            replaced by the vector of a random patch in the batch; 0 never replaces codes, as in the original code.

        > Target

        target_dim (`int`, defaults to 512): Width of the teacher's features.
        teacher (`str`, *optional*): Name of the teacher, for documentation.
        teacher_license (`str`, *optional*): License of the teacher, for documentation.

    Raises:
        ValueError: If sizes do not fit together, or a value is outside its range.
    """

    model_type = "vqkd"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    decoder_num_hidden_layers: int = 3
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3

    codebook_size: int = 8192
    codebook_dim: int = 32
    codebook_decay: float | int = 0.99
    commitment_weight: float | int = 1.0
    kmeans_init: bool = True
    revive_after_steps: int = 0

    target_dim: int = 512
    teacher: str | None = None
    teacher_license: str | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches for which the position tables are created."""
        return grid_of(self)

    def validate_architecture(self):
        """Raise `ValueError` for sizes that do not fit together; `@strict` calls this after every construction."""
        check_counts(
            self,
            "hidden_size",
            "num_hidden_layers",
            "decoder_num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "patch_size",
            "num_channels",
            "codebook_dim",
            "target_dim",
        )
        check_heads(self)
        check_image_size(self)
        if self.codebook_size < 2:
            raise ValueError(
                f"codebook_size must be at least 2: one code carries no information, got {self.codebook_size}"
            )
        if not 0 <= self.codebook_decay <= 1:
            raise ValueError(f"codebook_decay must lie in [0, 1], got {self.codebook_decay}")
        for name in ("commitment_weight", "revive_after_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


__all__ = ["VQKDConfig"]
