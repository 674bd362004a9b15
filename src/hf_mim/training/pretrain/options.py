"""Model and data options of `hf-mim pretrain`, named as in transformers' `run_mim.py` where it has the option."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.images import check_value_range
from ...data.sources import FOLDER_BUILDERS
from ...methods import METHOD_NAMES, METHODS


NATIVE_NAMES = tuple(method.native for method in METHODS if method.native is not None)


@dataclass
class ModelArguments:
    """Options of the model, and of the weights to continue from."""

    model_type: str = field(default=METHOD_NAMES[0], metadata={"help": f"Method: {', '.join(METHOD_NAMES)}."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id to continue from: a full pre-training model (the folder pretraining/ of a run, "
            f"or one of its checkpoints), or an encoder of the method or of transformers ({', '.join(NATIVE_NAMES)}), "
            "which gets a new head."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Configuration of a new model, such as hidden_size=384,num_attention_heads=6. Fields that are not "
            "given here keep the recipe's values."
        },
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Image size of a new model in pixels: one number, or height and width."}
    )
    patch_size: int | None = field(default=None, metadata={"help": "Patch size of a new model in pixels."})
    attn_implementation: str = field(
        default="sdpa",
        metadata={
            "help": "Attention implementation: sdpa, eager or, with --bf16 on a GPU and a model that supports it, "
            "flash_attention_2."
        },
    )
    model_license: str | None = field(
        default=None,
        metadata={
            "help": "License of the trained model, such as apache-2.0, for its card. By default, the license of the "
            "model to continue from."
        },
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for downloads."})
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of --model_name_or_path on the Hub."}
    )
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub."})

    @property
    def hub_options(self) -> dict[str, Any]:
        """Options of `from_pretrained` for `model_name_or_path`."""
        return {"cache_dir": self.cache_dir, "revision": self.model_revision, "token": self.token}


@dataclass
class DataArguments:
    """Options of the images to train and evaluate on."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, local dataset folder, builder (imagefolder, parquet, webdataset), or 'photo-tiles'."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    train_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of images (flat or nested), of parquet files or of WebDataset tars."},
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of the images to evaluate on. The k-NN evaluation needs labels."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on, such as 'test'. The k-NN evaluation needs labels."}
    )
    train_val_split: float | None = field(
        default=None, metadata={"help": "Fraction of the training images to hold out for the evaluation."}
    )
    data_license: str | None = field(
        default=None,
        metadata={
            "help": "License of the training images, for the card. By default, the license in the dataset's card."
        },
    )
    clean_list: str | None = field(
        default=None,
        metadata={
            "help": "File with the images to train on, from `hf-mim check-data SOURCE --write_clean_list FILE`: a "
            "header, then one line per image with its path in the folder or its row number."
        },
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of the images. Found automatically by default."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels. Found automatically by default."}
    )
    outside_paths: bool = field(
        default=False, metadata={"help": "Allow tables to name files outside of the folder of their dataset."}
    )
    value_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Values of grayscale images with more than 8 bits that become black and white, such as 0 4095 for "
            "12 bits. By default 0 65535."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Maximum number of images to train on."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Maximum number of images to evaluate on."})
    max_bank_samples: int = field(
        default=20_000,
        metadata={"help": "Maximum number of labeled training images in which k-NN searches for neighbors."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Stream the training images. Needs --max_steps. There is no evaluation."},
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Number of images in the shuffle buffer of a stream."}
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={"help": "Mean per channel. By default ImageNet's for RGB (0.5 for a tokenizer) and 0.5 otherwise."},
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation per channel. Defaults as for the mean."}
    )
    resize_size: int | None = field(
        default=None,
        metadata={"help": "Shorter side before the center crop in evaluation. By default 256/224 of the image size."},
    )
    raw_pixel_baseline: bool = field(
        default=True,
        metadata={"help": "Also report k-NN accuracy on raw pixels, reduced to 32 a side, for the verdict."},
    )

    def __post_init__(self):
        if self.dataset_name in FOLDER_BUILDERS:
            if self.train_dir is None:
                raise ValueError(f"--dataset_name {self.dataset_name} reads a folder: give --train_dir, too")
        elif (self.dataset_name is None) == (self.train_dir is None):
            raise ValueError(
                "give the images to train on, either --train_dir FOLDER or --dataset_name NAME; command line and "
                f"recipe give train_dir {self.train_dir} and dataset_name {self.dataset_name}"
            )
        if self.clean_list is not None and self.streaming:
            raise ValueError(
                "--clean_list selects single images, which a stream does not support: leave out --streaming"
            )
        if self.clean_list is not None and not Path(self.clean_list).is_file():
            raise FileNotFoundError(f"clean_list {self.clean_list} does not exist")
        if self.value_range is not None:
            check_value_range(self.value_range)
        if self.train_val_split is not None and not 0 < self.train_val_split < 1:
            raise ValueError(f"train_val_split must lie between 0 and 1, got {self.train_val_split}")
        if self.train_val_split is not None and (self.eval_split or self.validation_dir):
            raise ValueError(
                "train_val_split holds out training images for the evaluation: give either train_val_split, or "
                "eval_split or validation_dir"
            )
        for name in ("max_train_samples", "max_eval_samples", "max_bank_samples", "shuffle_buffer_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
