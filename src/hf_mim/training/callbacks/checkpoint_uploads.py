"""Upload checkpoints in the background, and the result of a finished run."""

import json
import logging
import os
import shlex
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from ...hub.publish import CHECKPOINT_FOLDER, STALE_CHECKPOINT, open_repositories, publish, send
from ...hub.publish_checks import check_text
from ...utils.manifest import MANIFEST_FILE, write_manifest
from ..arguments import MIMTrainingArguments


logger = logging.getLogger(__name__)

UPLOADING_FOLDER = ".uploading"
# Pickled options, which may contain a token.
ARGUMENTS_FILE = "training_args.bin"


def uploads_checkpoints(args: MIMTrainingArguments) -> bool:
    """Return whether a run with these options uploads its checkpoints."""
    return args.push_to_hub and args.hub_strategy == HubStrategy.CHECKPOINT


def result_repositories(args: MIMTrainingArguments, keeps_full_model: bool) -> list[str]:
    """Return the repositories of the result: of the encoder and, if there is one, of the full model."""
    assert args.hub_model_id is not None
    return [args.hub_model_id, f"{args.hub_model_id}-pretrain"] if keeps_full_model else [args.hub_model_id]


def check_access(args: MIMTrainingArguments, keeps_full_model: bool) -> None:
    """
    Create the repositories of a run before it starts, so that a wrong token is reported early.

    If the Hub is not reachable, a warning is logged, because it may be reachable at the end.

    Raises:
        ValueError, PermissionError: As for [`~hf_mim.hub.publish.publish`].
    """
    try:
        api = HfApi(token=args.hub_token)
        open_repositories(api, result_repositories(args, keeps_full_model), args.hub_private_repo)
    except ConnectionError as error:
        logger.warning(f"{error}. The run starts nevertheless")


def upload_result(args: MIMTrainingArguments, keeps_full_model: bool) -> None:
    """
    Publish a finished run as `hf-mim publish` does, with the full model if there is one.

    Raises:
        OSError: If that fails. The message contains the command to repeat it.
    """
    output_dir, repo_id = args.output_dir, args.hub_model_id
    assert output_dir is not None and repo_id is not None
    try:
        publish(
            output_dir,
            repo_id,
            full=keeps_full_model,
            private=args.hub_private_repo,
            api=HfApi(token=args.hub_token),
            report=logger.info,
        )
    except (ValueError, OSError) as error:
        options = " --full" * keeps_full_model + " --private" * bool(args.hub_private_repo)
        raise OSError(
            f"the run is finished and saved, but not uploaded: {error}. To repeat the upload: "
            f"hf-mim publish {shlex.quote(output_dir)} {repo_id}{options}"
        ) from error


class CheckpointUploads(TrainerCallback):
    """
    Uploads each checkpoint in the background as `last-checkpoint/` of the repository of the full model.

    During an upload, only the newest saved checkpoint waits, unless `hub_always_push` is set. A failed upload is
    logged as a warning. Training continues, and the next checkpoint is uploaded again.

    Args:
        args (`MIMTrainingArguments`): Options of the run.
        keeps_full_model (`bool`): Whether the run saves the full model beside the encoder.
    """

    def __init__(self, args: MIMTrainingArguments, keeps_full_model: bool):
        self.repo_id = result_repositories(args, keeps_full_model)[-1]
        self.private = args.hub_private_repo
        self.api = HfApi(token=args.hub_token)
        self.folder = Path(str(args.output_dir)) / UPLOADING_FOLDER
        self.worker: ThreadPoolExecutor | None = None
        self.latest: tuple[Path, Future] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.worker = ThreadPoolExecutor(1)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        try:
            copy = self._keep(Path(args.output_dir) / name)
        except (OSError, ValueError) as error:
            logger.warning(f"{name} is not uploaded: {error}")
            shutil.rmtree(self.folder / name, ignore_errors=True)
            return
        if self.latest is not None and not args.hub_always_push:
            waiting, upload = self.latest
            if upload.cancel():
                logger.warning(
                    f"{waiting.name} is not uploaded: an earlier upload is not finished, and {name} is newer"
                )
                shutil.rmtree(waiting, ignore_errors=True)
        assert self.worker is not None
        self.latest = copy, self.worker.submit(self._upload, copy)

    def on_train_end(self, args, state, control, **kwargs):
        if self.worker is not None:
            self.worker.shutdown(wait=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self, checkpoint: Path) -> Path:
        """
        Copy a checkpoint, so that `save_total_limit` cannot remove it during the upload. Links take no space.

        Files that concern this machine only are left out.

        Raises:
            ValueError: If the copy still contains a path of this machine or a token.
        """
        copy = self.folder / checkpoint.name
        run = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))["run"]
        ignored = shutil.ignore_patterns(ARGUMENTS_FILE, MANIFEST_FILE, TRAINER_STATE_NAME)
        shutil.copytree(checkpoint, copy, copy_function=_link, ignore=ignored)
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.best_model_checkpoint is not None:
            state.best_model_checkpoint = Path(state.best_model_checkpoint).name
        state.save_to_json(str(copy / TRAINER_STATE_NAME))
        write_manifest(copy, run)
        for file in copy.rglob("*.json"):
            check_text(file.read_text(encoding="utf-8"), f"{copy.name}/{file.relative_to(copy)}")
        return copy

    def _upload(self, copy: Path) -> None:
        try:
            open_repositories(self.api, [self.repo_id], self.private)
            paths = sorted(path for path in copy.rglob("*") if path.is_file())
            files = {f"{CHECKPOINT_FOLDER}/{path.relative_to(copy).as_posix()}": path for path in paths}
            send(self.api, self.repo_id, files, f"Upload {copy.name}", STALE_CHECKPOINT)
            logger.info(f"{copy.name} is {CHECKPOINT_FOLDER}/ of {self.repo_id}")
        except Exception as error:  # would be lost in this thread
            logger.warning(f"{copy.name} is not uploaded, training continues: {error}")
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system supports links
        shutil.copyfile(source, target)
