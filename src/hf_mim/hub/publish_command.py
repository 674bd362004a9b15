"""`hf-mim publish OUTPUT_DIR ORG/NAME`: the command line of [`~hf_mim.hub.publish.publish`]."""

import argparse
from collections.abc import Sequence

from huggingface_hub import HfApi
from transformers.utils import logging

from .publish import publish


def main(argv: Sequence[str]) -> None:
    """
    Check, describe and upload.

    Args:
        argv: The arguments after `hf-mim publish`.

    Raises:
        ValueError, OSError: As for [`~hf_mim.hub.publish.publish`].
    """
    parser = argparse.ArgumentParser(
        prog="hf-mim publish",
        description="Upload a finished run, or a converted or exported model: the encoder to ORG/NAME, and with "
        "--full the full pre-training model to ORG/NAME-pretrain. Everything is checked first, and shown.",
        allow_abbrev=False,
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of the run, or of a saved model with a card")
    parser.add_argument(
        "repo_id",
        metavar="ORG/NAME",
        help="the repository; one that exists gets a new commit, and loses the files of an earlier model",
    )
    parser.add_argument("--full", action="store_true", help="also upload pretraining/ to ORG/NAME-pretrain")
    parser.add_argument("--private", action="store_true", default=None, help="make new repositories private")
    parser.add_argument(
        "--with_code",
        "--with-code",
        action="store_true",
        help="add the code of hf_mim to models that need it, for trust_remote_code=True",
    )
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="check and show only; upload nothing")
    parser.add_argument("--token", help="token of the Hub; that of `hf auth login` or HF_TOKEN when not given")
    args = parser.parse_args(argv)
    # What is loaded here is loaded to be checked: a bar for every file of it would bury what is shown.
    logging.disable_progress_bar()
    publish(
        args.output_dir,
        args.repo_id,
        full=args.full,
        private=args.private,
        with_code=args.with_code,
        dry_run=args.dry_run,
        api=HfApi(token=args.token),
    )
