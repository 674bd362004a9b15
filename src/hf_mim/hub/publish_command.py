"""The `hf-mim publish` command, the command line of [`~hf_mim.hub.publish.publish`]."""

from collections.abc import Sequence

from huggingface_hub import HfApi
from transformers.utils import logging

from ..utils.command_line import CommandParser
from .publish import publish


def main(argv: Sequence[str]) -> None:
    """
    Check, describe and upload a folder.

    Args:
        argv (`Sequence[str]`): The arguments after `hf-mim publish`.

    Raises:
        ValueError, OSError: As for [`~hf_mim.hub.publish.publish`].
    """
    parser = CommandParser(
        prog="hf-mim publish",
        description="Upload a finished run, or a converted or exported model: the encoder to ORG/NAME, and with "
        "--full the full pre-training model to ORG/NAME-pretrain. All files are checked and listed first.",
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of the run, or of a saved model with a card")
    parser.add_argument(
        "repo_id",
        metavar="ORG/NAME",
        help="the repository; if it exists, it gets a new commit that also removes the files of an earlier model",
    )
    parser.add_argument("--full", action="store_true", help="also upload pretraining/ to ORG/NAME-pretrain")
    parser.add_argument("--private", action="store_true", default=None, help="make new repositories private")
    parser.add_argument(
        "--with_code",
        "--with-code",
        action="store_true",
        help="add the code of hf_mim to models that need it, for trust_remote_code=True",
    )
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="only check and list the files; upload nothing"
    )
    parser.add_argument("--token", help="Hub token; by default the one of `hf auth login` or HF_TOKEN")
    args = parser.parse_args(argv)
    # The models are loaded only for the checks; their progress bars would hide the list of files.
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
