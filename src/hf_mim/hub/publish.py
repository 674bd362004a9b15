"""From the folder of a finished run to repositories on the Hub: checked first, then each in a single commit."""

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
    check_repo_id,
    check_safetensors,
    check_upload,
    read_config,
    shown_pictures,
)
from .remote_code import AUTO_MAPS, MODELING, add_code
from .run_card import build_pretraining_card, rename_card


# What belongs to a model, in its folder.
MODEL_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    "model.onnx",
    "model.onnx.data",
)
TEACHER_FILES = (f"{TEACHER_FOLDER}/*.json", f"{TEACHER_FOLDER}/*.safetensors")
# What tells about it. Anything else in the folder of a run (checkpoints, logs, pickled arguments) stays there.
CARD_FILES = ("README.md", "metrics.json", ".eval_results/*.yaml")
CHECKPOINT_FOLDER = "last-checkpoint"
# What an older upload may have left in a repository and a newer model would be confused by.
STALE_CHECKPOINT = re.compile(rf"{CHECKPOINT_FOLDER}/.*")
OUR_CODE = "|".join(sorted(re.escape(file.name) for file in MODELING.glob("[!_]*.py")))
STALE = re.compile(
    rf"(pytorch_)?model[^/]*\.(safetensors|bin)(\.index\.json)?|model\.onnx(\.data)?|{TEACHER_FOLDER}/.*|"
    rf"{STALE_CHECKPOINT.pattern}|{OUR_CODE}"
)
# What means something in the folder alone: where a model came from, and code that is published on demand only.
PRIVATE_FIELDS = ("_name_or_path", "use_cache", "auto_map")


@dataclass(frozen=True)
class Upload:
    """The content of one repository, ready in a folder of its own, and what was found when it was checked."""

    repo_id: str
    folder: Path
    facts: ModelFacts

    def files(self) -> dict[str, Path]:
        """The files by their path in the repository."""
        found = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return dict(sorted(found.items()))

    def describe(self, private: bool | None) -> str:
        """What is uploaded, one line per file."""
        files = {path: file.stat().st_size for path, file in self.files().items()}
        width = max(map(len, files))
        license_name = self.facts.license or "none (add `license: NAME` to the metadata of README.md)"
        return "\n".join(
            [
                f"{self.repo_id} ({'private' if private else 'public, unless set otherwise on the Hub'})",
                f"  {self.facts.architecture}, {self.facts.parameters:,} parameters, licence: {license_name}",
                *(f"  {path:<{width}}  {readable_size(size):>9}" for path, size in files.items()),
                f"  {'together':<{width}}  {readable_size(sum(files.values())):>9}",
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
    Upload what a finished run, `hf-mim convert` or `hf-mim export` left in a folder.

    The model at the root of `folder` goes to `repo_id` with its image processor, its card, the pictures that the card
    shows and its metrics; one of ours with the `teacher/` beside it. With `full`, the model in `pretraining/` goes to
    `{repo_id}-pretrain`. The cards are given the names of their repositories. Everything is checked before anything is
    uploaded, and each repository gets one commit: it has all of it or nothing. Repeated after an interruption, files
    that have arrived are not sent again.

    Args:
        folder (`str` or `Path`): The folder; nothing in it is changed.
        repo_id (`str`): `"organisation/name"` or `"user/name"`. A repository that exists gets a new commit, in
            which weights, teacher, checkpoint and code of ours from before are removed; each is reported.
        full (`bool`, defaults to `False`): Whether the full pre-training model goes to a second repository.
        private (`bool`, *optional*): Whether new repositories are private; when not given they are as the user's or
            organisation's are by default. An existing one stays as it is.
        with_code (`bool`, defaults to `False`): Whether repositories with a model of ours get its code, so that
            `trust_remote_code=True` loads them without this package.
        dry_run (`bool`, defaults to `False`): Check and describe only; the Hub is not asked anything.
        api (`HfApi`, *optional*): The Hub and the token; those of the environment when not given.
        report (`Callable`): Gets the description and what happens, line by line.

    Returns:
        Addresses of the repositories; none after a dry run.

    Raises:
        ValueError: If something in the folder must not or cannot be published, or the options do not fit to it.
        PermissionError: If the token is missing, wrong, or may not write there.
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
            report(f"stays here: {', '.join(left)}")
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
                report(f"removed from {upload.repo_id}, where it was left from before: {', '.join(removed)}")
            urls.append(f"{api.endpoint}/{upload.repo_id}")
            report(f"uploaded: {urls[-1]}")
        return urls


def prepare(folder: Path, repo_id: str, full: bool, with_code: bool, temporary: Path) -> list[Upload]:
    """
    Put together and check what goes into each repository, in sub-folders of `temporary`.

    Raises:
        ValueError, OSError: If something is missing or must not be published.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model (there is no config.json): give the folder of a finished run"
        )
    is_ours = read_config(folder, str(folder)).model_type in AUTO_MAPS
    if full and not (folder / "pretraining" / "config.json").is_file():
        reason = f"the model in {folder} is the full one: leave out --full" if is_ours else "it holds an encoder alone"
        raise ValueError(f"--full uploads {folder}/pretraining, which is not there: {reason}")
    if with_code and not is_ours and not full:
        raise ValueError(
            f"--with_code is for models that need the code of hf_mim: the one in {folder} loads with transformers "
            "alone" + (" (with --full, that in pretraining/ gets it)" if (folder / "pretraining").is_dir() else "")
        )

    root = temporary / "root"
    card = rename_card(check_card(folder, str(folder)).content, repo_id, is_ours and with_code)
    patterns = (*MODEL_FILES, *TEACHER_FILES) if is_ours else MODEL_FILES
    _stage(folder, root, (*patterns, *CARD_FILES), card)
    for picture in shown_pictures(card):
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
    """Bring the files that match to `target`, weights as links, and the card as `README.md`."""
    check_safetensors(source)
    for pattern in patterns:
        for file in source.glob(pattern):
            staged = target / file.relative_to(source)
            staged.parent.mkdir(parents=True, exist_ok=True)
            if file.name in ("config.json", "preprocessor_config.json"):
                config = json.loads(file.read_text(encoding="utf-8"))
                config = {name: value for name, value in config.items() if name not in PRIVATE_FIELDS}
                staged.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            elif file.suffix in (".safetensors", ".onnx", ".data"):
                # Gigabytes, perhaps.
                os.symlink(file.resolve(), staged)
            else:
                shutil.copyfile(file, staged)
    (target / "README.md").write_text(card, encoding="utf-8")


def open_repositories(api: HfApi, repo_ids: list[str], private: bool | None) -> list[str]:
    """
    Make sure that the repositories are there and that the token may create them.

    Returns:
        Those that existed before.

    Raises:
        ValueError: If `private` and one of them is there for everyone.
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
                raise ValueError(f"{repo_id} exists and is public: take another name, or leave out --private")
            existing.append(repo_id)
        for repo_id in missing:
            api.create_repo(repo_id, private=private, exist_ok=True)
    except (HTTPError, OSError) as error:
        refusal = _refusal(error, api, repo_ids[0])
        if refusal is not None:
            raise refusal from error
        if isinstance(error, HfHubHTTPError):
            raise OSError(f"{api.endpoint} refuses the repository {repo_ids[0]}: {_first_line(error)}") from error
        raise ConnectionError(
            f"{api.endpoint} cannot be reached ({_first_line(error)}): check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE"
        ) from error
    return existing


def send(api: HfApi, repo_id: str, files: dict[str, Path], message: str, stale: re.Pattern = STALE) -> list[str]:
    """
    Upload files in one commit, which also removes what matches `stale` and is not among them.

    Args:
        api (`HfApi`): The Hub and the token.
        repo_id (`str`): The repository.
        files (`dict[str, Path]`): Files by their path in the repository.
        message (`str`): Title of the commit.
        stale (`re.Pattern`): Paths in the repository that are removed.

    Returns:
        The paths that were removed.

    Raises:
        ValueError: If the Hub does not take the metadata of the card.
        PermissionError, ConnectionError, OSError: As for [`publish`].
    """
    try:
        old = [path for path in api.list_repo_files(repo_id) if stale.fullmatch(path) and path not in files]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(path) for path in old]
        operations += [CommitOperationAdd(path, str(file)) for path, file in files.items()]
        # Not `upload_folder`, which makes several commits of a large folder.
        api.create_commit(repo_id, operations, commit_message=message)
    except (HTTPError, OSError, RuntimeError) as error:
        # The client says of a failed file only its name, and why in the cause.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        raise _refusal(cause, api, repo_id) or OSError(
            f"the upload to {repo_id} broke off ({_first_line(cause)}): nothing of it shows there. Repeated, it "
            "goes on: what has arrived is not sent again"
        ) from error
    return old


def _refusal(cause: BaseException, api: HfApi, repo_id: str) -> PermissionError | None:
    """Return the error to raise if the Hub refused the token."""
    advice = "make one with write permission at https://huggingface.co/settings/tokens"
    if isinstance(cause, LocalTokenNotFoundError):
        return PermissionError(
            f"there is no token of the Hub: {advice}, and give it to `hf auth login`, in HF_TOKEN or with --token"
        )
    if not isinstance(cause, HfHubHTTPError):
        return None
    status = cause.response.status_code
    if status == 401:
        return PermissionError(
            f"{api.endpoint} does not accept the token, which is mistyped, expired or of another Hub: {advice}"
        )
    if status in (402, 403):
        return PermissionError(
            f"the token may not write to {repo_id} ({cause.server_message or 'forbidden'}): it needs write "
            "permission, and its owner that of the organization"
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
