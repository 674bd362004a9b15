"""Publish the folder of a finished run on the Hub: check everything first, then make one commit per repository."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

from ..utils.layout import TEACHER_FOLDER
from .publish_checks import (
    ModelFacts,
    check_card,
    check_regular,
    check_repo_id,
    check_safetensors,
    check_upload,
    read_config,
    shown_pictures,
)
from .remote_code import AUTO_MAPS, MODELING, add_code
from .run_card import build_pretraining_card, rename_card


# Files of a model, in its folder.
MODEL_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    "model.onnx",
    "model.onnx.data",
)
TEACHER_FILES = (f"{TEACHER_FOLDER}/*.json", f"{TEACHER_FOLDER}/*.safetensors")
# Files that describe the model. Everything else in the folder (checkpoints, logs, pickled arguments) is not uploaded.
CARD_FILES = ("README.md", "metrics.json", ".eval_results/*.yaml")
CHECKPOINT_FOLDER = "last-checkpoint"
# Files of an earlier upload that would conflict with a newer model.
STALE_CHECKPOINT = re.compile(rf"{CHECKPOINT_FOLDER}/.*")
OUR_CODE = "|".join(sorted(re.escape(file.name) for file in MODELING.glob("[!_]*.py")))
STALE = re.compile(
    rf"(pytorch_)?model[^/]*\.(safetensors|bin)(\.index\.json)?|model\.onnx(\.data)?|{TEACHER_FOLDER}/.*|"
    rf"{STALE_CHECKPOINT.pattern}|{OUR_CODE}"
)
# Fields that are meaningful only locally: the source of a model, and its code, which is published only on request.
PRIVATE_FIELDS = ("_name_or_path", "use_cache", "auto_map")


@dataclass(frozen=True)
class Upload:
    """The content of one repository, prepared in its own folder, with facts about the checked model."""

    repo_id: str
    folder: Path
    facts: ModelFacts

    def files(self) -> dict[str, Path]:
        """Return the files by their path in the repository."""
        found = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return dict(sorted(found.items()))

    def describe(self, private: bool | None) -> str:
        """Describe the upload, one line per file."""
        files = {path: file.stat().st_size for path, file in self.files().items()}
        width = max(map(len, files))
        license_name = self.facts.license or "none (add `license: NAME` to the metadata of README.md)"
        return "\n".join(
            [
                f"{self.repo_id} ({'private' if private else 'public, unless set otherwise on the Hub'})",
                f"  {self.facts.architecture}, {self.facts.parameters:,} parameters, license: {license_name}",
                *(f"  {path:<{width}}  {readable_size(size):>9}" for path, size in files.items()),
                f"  {'total':<{width}}  {readable_size(sum(files.values())):>9}",
            ]
        )


def publish(
    folder: str | Path,
    repo_id: str,
    full: bool = False,
    private: bool | None = None,
    with_code: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
    report: Callable[[str], None] = print,
) -> list[str]:
    """
    Upload the output folder of a finished run, of `hf-mim convert` or of `hf-mim export`.

    The model at the root of `folder` goes to `repo_id` with its image processor, its card, the pictures in the card
    and its metrics. A model of this package takes its `teacher/` along. With `full`, the model in `pretraining/` goes
    to `{repo_id}-pretrain`. The cards are renamed to their repositories. Everything is checked before anything is
    uploaded. Each repository gets a single commit, so an upload is complete or has no effect. After an interruption,
    a repeated call does not upload finished files again.

    Args:
        folder (`str` or `Path`): The folder. It is not modified.
        repo_id (`str`): `"organization/name"` or `"user/name"`. An existing repository gets a new commit, which also
            removes weights, teacher, checkpoint and code of an earlier upload. Removed files are reported.
        full (`bool`, defaults to `False`): Whether to upload the full pre-training model to a second repository.
        private (`bool`, *optional*): Whether new repositories are private. Defaults to the setting of the user or
            organization. Existing repositories keep their visibility.
        with_code (`bool`, defaults to `False`): Whether to add the code of models of this package, so that they load
            with `trust_remote_code=True` where the package is not installed.
        dry_run (`bool`, defaults to `False`): Whether to only check and describe the upload, without contacting the
            Hub.
        api (`HfApi`, *optional*): The Hub client with the token. Created from the environment by default.
        report (`Callable`): Called with each line of the description and progress.

    Returns:
        `list[str]`: URLs of the repositories. Empty after a dry run.

    Raises:
        ValueError: If something in the folder must not or cannot be published, or the options do not match it.
        PermissionError: If the token is missing, invalid, or has no write permission.
        ConnectionError: If the Hub cannot be reached.
        OSError: If an upload fails for another reason.
    """
    folder, api = Path(folder).expanduser(), HfApi() if api is None else api
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="hf-mim-publish-") as temporary:
        uploads = prepare(folder, repo_id, full, with_code, Path(temporary))
        for upload in uploads:
            report(upload.describe(private))
        staged = {path.split("/")[0] for path in uploads[0].files()} | ({"pretraining"} if full else set())
        left = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name not in staged)
        if left:
            report(f"not uploaded: {', '.join(left)}")
        if dry_run:
            report("dry run: nothing was uploaded")
            return []
        for existing in open_repositories(api, [upload.repo_id for upload in uploads], private):
            report(f"{existing} exists already and gets a new commit")
        urls = []
        for upload in uploads:
            title = f"Upload {upload.facts.architecture} with hf_mim"
            removed = send(api, upload.repo_id, upload.files(), title)
            if removed:
                start = f"{CHECKPOINT_FOLDER}/"
                removed = list(dict.fromkeys(start if path.startswith(start) else path for path in removed))
                report(f"removed from {upload.repo_id}, left over from an earlier upload: {', '.join(removed)}")
            urls.append(f"{api.endpoint}/{upload.repo_id}")
            report(f"uploaded: {urls[-1]}")
        return urls


def prepare(folder: Path, repo_id: str, full: bool, with_code: bool, temporary: Path) -> list[Upload]:
    """
    Assemble and check the content of each repository, in subfolders of `temporary`.

    Args:
        folder (`Path`): The folder to publish.
        repo_id (`str`): The repository.
        full (`bool`): Whether to upload the full pre-training model too.
        with_code (`bool`): Whether to add the code of models of this package.
        temporary (`Path`): A temporary folder.

    Returns:
        `list[Upload]`: One entry per repository.

    Raises:
        ValueError, OSError: If something is missing or must not be published.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model (there is no config.json): pass the folder of a finished run"
        )
    is_ours = read_config(folder, str(folder)).model_type in AUTO_MAPS
    if full and not (folder / "pretraining" / "config.json").is_file():
        reason = f"the model in {folder} is the full one: leave out --full" if is_ours else "it holds only an encoder"
        raise ValueError(f"--full uploads {folder}/pretraining, which does not exist: {reason}")
    if with_code and not is_ours and not full:
        raise ValueError(
            f"--with_code is for models that need the code of hf_mim, but the one in {folder} loads with transformers "
            "alone"
            + (" (with --full, the model in pretraining/ gets it)" if (folder / "pretraining").is_dir() else "")
        )

    check_regular(folder / "config.json", folder)
    if (folder / "README.md").exists():
        check_regular(folder / "README.md", folder)
    root = temporary / "root"
    card = rename_card(check_card(folder, str(folder)).content, repo_id, is_ours and with_code)
    patterns = (*MODEL_FILES, *TEACHER_FILES) if is_ours else MODEL_FILES
    _stage(folder, root, (*patterns, *CARD_FILES), card)
    for picture in shown_pictures(card):
        check_regular(folder / picture, folder)
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / picture, root / picture)
    uploads = [Upload(repo_id, root, check_upload(root, str(folder)))]
    if is_ours and with_code:
        add_code(root)
    if full:
        source, target = folder / "pretraining", temporary / "pretraining"
        full_id, config = f"{repo_id}-pretrain", read_config(source, str(source))
        check_repo_id(full_id)
        card = build_pretraining_card(full_id, repo_id, config, card, with_code)
        _stage(source, target, (*MODEL_FILES, *TEACHER_FILES), card)
        uploads.append(Upload(full_id, target, check_upload(target, str(source))))
        if with_code:
            add_code(target)
    return uploads


def _stage(source: Path, target: Path, patterns: tuple[str, ...], card: str):
    """Copy the matching files to `target`, link the weights, and write the card to `README.md`."""
    check_safetensors(source)
    for pattern in patterns:
        for file in source.glob(pattern):
            check_regular(file, source)
            staged = target / file.relative_to(source)
            staged.parent.mkdir(parents=True, exist_ok=True)
            if file.name in ("config.json", "preprocessor_config.json"):
                config = json.loads(file.read_text(encoding="utf-8"))
                config = {name: value for name, value in config.items() if name not in PRIVATE_FIELDS}
                staged.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            elif file.suffix in (".safetensors", ".onnx", ".data"):
                # Weights can take gigabytes.
                os.symlink(file.resolve(), staged)
            else:
                shutil.copyfile(file, staged)
    (target / "README.md").write_text(card, encoding="utf-8")


def open_repositories(api: HfApi, repo_ids: list[str], private: bool | None) -> list[str]:
    """
    Create the repositories that do not exist yet.

    Args:
        api (`HfApi`): The Hub client with the token.
        repo_ids (`list[str]`): The repositories.
        private (`bool`, *optional*): Whether new repositories are private.

    Returns:
        `list[str]`: The repositories that already existed.

    Raises:
        ValueError: If `private` is set and an existing repository is public.
        PermissionError, ConnectionError, OSError: As for [`publish`].
    """
    existing, missing = [], []
    try:
        api.whoami()
        for repo_id in repo_ids:
            try:
                is_private = api.model_info(repo_id).private
            except RepositoryNotFoundError:
                missing.append(repo_id)
                continue
            if private and not is_private:
                raise ValueError(f"{repo_id} exists and is public: choose another name, or leave out --private")
            existing.append(repo_id)
        for repo_id in missing:
            api.create_repo(repo_id, private=private, exist_ok=True)
    except (HTTPError, OSError) as error:
        refusal = _refusal(error, api, repo_ids[0])
        if refusal is not None:
            raise refusal from error
        if isinstance(error, HfHubHTTPError):
            raise OSError(f"{api.endpoint} rejected the repository {repo_ids[0]}: {_first_line(error)}") from error
        raise ConnectionError(
            f"{api.endpoint} cannot be reached ({_first_line(error)}): check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE"
        ) from error
    return existing


def send(api: HfApi, repo_id: str, files: dict[str, Path], message: str, stale: re.Pattern = STALE) -> list[str]:
    """
    Upload files in one commit, which also removes the other files that match `stale`.

    Args:
        api (`HfApi`): The Hub client with the token.
        repo_id (`str`): The repository.
        files (`dict[str, Path]`): Files by their path in the repository.
        message (`str`): Title of the commit.
        stale (`re.Pattern`): Pattern of the paths to remove from the repository.

    Returns:
        `list[str]`: The removed paths.

    Raises:
        ValueError: If the Hub rejects the metadata of the card.
        PermissionError, ConnectionError, OSError: As for [`publish`].
    """
    try:
        old = [path for path in api.list_repo_files(repo_id) if stale.fullmatch(path) and path not in files]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(path) for path in old]
        operations += [CommitOperationAdd(path, str(file)) for path, file in files.items()]
        # Not `upload_folder`, which makes several commits of a large folder.
        api.create_commit(repo_id, operations, commit_message=message)
    except (HTTPError, OSError, RuntimeError) as error:
        # For a failed file, the message of the client has only the file's name, and the cause has the reason.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        raise _refusal(cause, api, repo_id) or OSError(
            f"the upload to {repo_id} was interrupted ({_first_line(cause)}): the repository is unchanged. Run the "
            "command again to resume; finished files are not uploaded again"
        ) from error
    return old


def _refusal(cause: BaseException, api: HfApi, repo_id: str) -> PermissionError | None:
    """Return the error to raise if the Hub refused the token."""
    advice = "create one with write permission at https://huggingface.co/settings/tokens"
    if isinstance(cause, LocalTokenNotFoundError):
        return PermissionError(
            f"there is no Hub token: {advice}, and pass it to `hf auth login`, in HF_TOKEN or with --token"
        )
    if not isinstance(cause, HfHubHTTPError):
        return None
    status = cause.response.status_code
    if status == 401:
        return PermissionError(
            f"{api.endpoint} does not accept the token, which is mistyped, expired or for another Hub: {advice}"
        )
    if status in (402, 403):
        return PermissionError(
            f"the token may not write to {repo_id} ({cause.server_message or 'forbidden'}): the token needs write "
            "permission, and so does its owner in the organization"
        )
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def readable_size(size: int) -> str:
    """Format a number of bytes with three digits, in decimal units like the Hub."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5 or unit == "GB":
            break
    return f"{value:.3g} {unit}"
