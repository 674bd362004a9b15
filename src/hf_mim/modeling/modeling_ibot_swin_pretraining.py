"""Pre-training of iBOT with a Swin Transformer ([Zhou et al., 2022](https://arxiv.org/abs/2111.07832))."""

from .modeling_ibot_pretraining import IBotForPreTraining
from .modeling_ibot_swin import IBotSwinModel, IBotSwinPreTrainedModel


class IBotSwinForPreTraining(IBotSwinPreTrainedModel, IBotForPreTraining):
    """
    [`IBotForPreTraining`] with a Swin Transformer: the same arguments, output and loss. The mean patch takes the place
    of the CLS token, and N counts the tokens of the last stage, so `bool_masked_pos` is `[B, 2, 49]` for views of 224
    pixels; the sides of global views are multiples of `config.token_stride`.
    """

    encoder_class = IBotSwinModel


__all__ = ["IBotSwinForPreTraining"]
