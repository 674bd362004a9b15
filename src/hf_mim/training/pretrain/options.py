"""Model and data options of `hf-mim pretrain`, under the names of transformers' `run_mim.py` where it has one."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ModelArguments:
    """Which model to train, and from which weights."""

    model_type: str = field(
        default="ibot", metadata={"help": "Method: 'ibot', 'ibot_swin', 'vqkd', 'beitv2', 'dbot' or 'dbot_symmetric'."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id to continue from: a full pre-training model (the folder pretraining/ of a run, "
            "or one of its checkpoints), or an encoder ('ibot' or 'vit'; 'ibot_swin' or 'swin'; 'beitv2' or 'beit'), "
            "which gets a new head."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Configuration of a new model, such as hidden_size=384,num_attention_heads=6; added to that of "
            "the recipe."
        },
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Image size of a new model in pixels: one number, or height and width."}
    )
    patch_size: int | None = field(default=None, metadata={"help": "Patch size of a new model in pixels."})
    attn_implementation: str = field(
        default="sdpa",
        metadata={
            "help": "Attention back end: sdpa, eager, or, for ibot and dbot, flash_attention_2 with --bf16 on a GPU."
        },
    )
    model_license: str | None = field(
        default=None,
        metadata={
            "help": "Licence of the result, such as apache-2.0, for its card; that of the model to continue from if "
            "not given."
        },
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub."})

    @property
    def hub_options(self) -> dict[str, str | None]:
        """What `from_pretrained` has to know about `model_name_or_path`."""
        return {"cache_dir": self.cache_dir, "revision": self.model_revision, "token": self.token}


@dataclass
class DataArguments:
    """Which images to train on, and which ones with labels to evaluate on."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, local dataset folder, builder (imagefolder, parquet, webdataset), or 'photo-tiles'."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of images (flat or nested), of parquet files or of WebDataset tars."},
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder with the images to evaluate on, labelled for k-NN."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on, such as 'test'; labelled for k-NN."}
    )
    train_val_split: float | None = field(
        default=None, metadata={"help": "Share of the training images to hold out for the evaluation."}
    )
    data_license: str | None = field(
        default=None,
        metadata={"help": "Licence of the training images, for the card; that in a data set's own card if not given."},
    )
    clean_list: str | None = field(
        default=None,
        metadata={
            "help": "File that `hf-mim check-data SOURCE --write_clean_list FILE` wrote of the training images: train "
            "on those that it names. A header, then a line for each image: its path in the folder, or its row number."
        },
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Column of the images; found if not given."})
    label_column_name: str | None = field(default=None, metadata={"help": "Column of the labels; found if not given."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many images only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many images only."})
    max_bank_samples: int = field(
        default=20_000, metadata={"help": "Labelled training images among which k-NN looks for neighbours."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the data as a stream; needs --max_steps, leaves out the evaluation."},
    )
    shuffle_buffer_size: int = field(default=1000, metadata={"help": "Images among which a stream is shuffled."})
    image_mean: list[float] | None = field(
        default=None,
        metadata={"help": "Mean per channel; for RGB that of ImageNet (0.5 for a tokenizer), 0.5 otherwise."},
    )
    image_std: list[float] | None = field(default=None, metadata={"help": "Standard deviation per channel, likewise."})
    resize_size: int | None = field(
        default=None,
        metadata={"help": "Shorter side before the central crop in evaluation; 256/224 of the image size by default."},
    )
    raw_pixel_baseline: bool = field(
        default=False, metadata={"help": "Also report k-NN on raw pixels; for small images."}
    )

    def __post_init__(self):
        if self.dataset_name in ("imagefolder", "parquet", "webdataset"):
            if self.train_dir is None:
                raise ValueError(f"--dataset_name {self.dataset_name} reads a folder: give --train_dir as well")
        elif (self.dataset_name is None) == (self.train_dir is None):
            raise ValueError(
                "say what to train on, either --train_dir FOLDER or --dataset_name NAME; command line and recipe give "
                f"train_dir {self.train_dir} and dataset_name {self.dataset_name}"
            )
        if self.clean_list is not None and self.streaming:
            raise ValueError("--clean_list picks single images, which a stream cannot: leave out --streaming")
        if self.clean_list is not None and not Path(self.clean_list).is_file():
            raise FileNotFoundError(f"clean_list {self.clean_list} does not exist")
        if self.train_val_split is not None and not 0 < self.train_val_split < 1:
            raise ValueError(f"train_val_split must lie between 0 and 1, got {self.train_val_split}")
        if self.train_val_split is not None and (self.eval_split or self.validation_dir):
            raise ValueError(
                "train_val_split holds out training images for the evaluation: give either it or eval_split or "
                "validation_dir"
            )
        for name in ("max_train_samples", "max_eval_samples", "max_bank_samples", "shuffle_buffer_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
