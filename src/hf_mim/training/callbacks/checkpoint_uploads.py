"""What a run uploads: its checkpoints in the background, and its result when it is finished."""

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
from ..arguments import MIMTrainingArguments
from ..checkpoints import MANIFEST_FILE, write_manifest


logger = logging.getLogger(__name__)

UPLOADING_FOLDER = ".uploading"
# The pickled options: a token may be among them.
ARGUMENTS_FILE = "training_args.bin"


def uploads_checkpoints(args: MIMTrainingArguments) -> bool:
    """Whether a run with these options uploads its checkpoints."""
    return args.push_to_hub and args.hub_strategy == HubStrategy.CHECKPOINT


def result_repositories(args: MIMTrainingArguments, keeps_full_model: bool) -> list[str]:
    """Where the result of a run goes: the encoder, and the full model if there is one."""
    return [args.hub_model_id, f"{args.hub_model_id}-pretrain"] if keeps_full_model else [args.hub_model_id]


def check_access(args: MIMTrainingArguments, keeps_full_model: bool):
    """
    Make the repositories of a run before it begins, so that what is wrong with the token shows now. A Hub that cannot
    be reached now may be reached at the end: that is only a warning.

    Raises:
        ValueError, PermissionError: As for [`~hf_mim.hub.publish.publish`].
    """
    try:
        api = HfApi(token=args.hub_token)
        open_repositories(api, result_repositories(args, keeps_full_model), args.hub_private_repo)
    except ConnectionError as error:
        logger.warning(f"{error}. The run begins all the same")


def upload_result(args: MIMTrainingArguments, keeps_full_model: bool):
    """
    Publish a finished run as `hf-mim publish` does, with the full model if there is one.

    Raises:
        OSError: If that fails; tells how to repeat it.
    """
    try:
        publish(
            args.output_dir,
            args.hub_model_id,
            full=keeps_full_model,
            private=args.hub_private_repo,
            api=HfApi(token=args.hub_token),
            report=logger.info,
        )
    except (ValueError, OSError) as error:
        options = " --full" * keeps_full_model + " --private" * bool(args.hub_private_repo)
        raise OSError(
            f"the run is finished and saved, but not uploaded: {error}. To repeat the upload: "
            f"hf-mim publish {shlex.quote(args.output_dir)} {args.hub_model_id}{options}"
        ) from error


class CheckpointUploads(TrainerCallback):
    """
    Uploads each checkpoint, in the background, as `last-checkpoint/` of the repository that the full model will go to.

    While one is on its way, only the newest of those that are saved waits for its turn, unless `hub_always_push`. A
    failure is a warning: the training goes on, and the next checkpoint is tried again.
    """

    def __init__(self, args: MIMTrainingArguments, keeps_full_model: bool):
        self.repo_id = result_repositories(args, keeps_full_model)[-1]
        self.private = args.hub_private_repo
        self.api = HfApi(token=args.hub_token)
        self.folder = Path(args.output_dir) / UPLOADING_FOLDER
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
                logger.warning(f"{waiting.name} is not uploaded: one before is still on its way, and {name} is newer")
                shutil.rmtree(waiting, ignore_errors=True)
        self.latest = copy, self.worker.submit(self._upload, copy)

    def on_train_end(self, args, state, control, **kwargs):
        if self.worker is not None:
            self.worker.shutdown(wait=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self, checkpoint: Path) -> Path:
        """
        A copy that stays when `save_total_limit` removes the checkpoint, of links, which take no room; without what is
        of this machine alone. Raises `ValueError` if something of that is left.
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

    def _upload(self, copy: Path):
        try:
            open_repositories(self.api, [self.repo_id], self.private)
            paths = sorted(path for path in copy.rglob("*") if path.is_file())
            files = {f"{CHECKPOINT_FOLDER}/{path.relative_to(copy).as_posix()}": path for path in paths}
            send(self.api, self.repo_id, files, f"Upload {copy.name}", STALE_CHECKPOINT)
            logger.info(f"{copy.name} is {CHECKPOINT_FOLDER}/ of {self.repo_id}")
        except Exception as error:  # in this thread nobody else would see it
            logger.warning(f"{copy.name} is not uploaded, and the training goes on: {error}")
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _link(source: str, target: str):
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)
