"""Find access tokens, passwords and local paths in what is about to be published."""

import re
import urllib.parse
from collections.abc import Iterator

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector


# Tokens that detect-secrets does not know, or not in their current form, by the name of the service.
TOKENS = {
    "Hugging Face": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "GitHub": re.compile(r"\bgithub_pat_\w{20,}"),
    "npm": re.compile(r"\bnpm_[A-Za-z0-9]{30,}"),
    "Anthropic": re.compile(r"\bsk-ant-[\w-]{20,}"),
    "OpenAI": re.compile(r"\bsk-(?:proj-|svcacct-)?[\w-]{40,}"),
    "Google": re.compile(r"\bAIza[\w-]{35}"),
    "Weights & Biases": re.compile(r"\bwandb_v1_\w{20,}|(?i:wandb)[^\n]{0,60}?\b[0-9a-f]{40}\b"),
    "AWS": re.compile(r"(?i:aws|secret)[^\n]{0,40}?[\"'\s:=]([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"),
    "password or key": re.compile(
        r"(?i:\b\w*(?:passw(?:or)?d|passphrase|api_?key|secret_?key|private_?key|access_?key|client_?secret))"
        r"[\"']?\s*[:=]\s*[\"']?[^\s\"',}]{8,}"
    ),
}
# Addresses are no secrets.
IGNORED = ("IPPublicDetector",)

# A slash or backslash after a letter does not start a path, as in and/or and https://host/page.
START = r"(?<![\w./\\:~%$}-])"
MACHINE_PATHS = (
    # /home/me, ~/data, ~me/data
    re.compile(START + r"/[\w.@+-]+/[\w.@+-][^\s\"'`)\]<>}|]*"),
    re.compile(r"(?<=[:=,;(])/[\w.@+-]+/[\w.@+-][^\s\"'`)\]<>}|]*"),
    re.compile(START + r"~[\w.-]*[/\\]\w[^\s\"'`)\]<>}|]*"),
    # //server/share, \\server\share
    re.compile(START + r"//[\w.-]+/[\w.$-]+[^\s\"'`)\]<>}|]*"),
    re.compile(r"(?<![\w\\])\\{2,4}[A-Za-z][\w.-]+\\{1,2}[\w.$-]+[^\s\"'`)\]<>}|]*"),
    # C:\data, D:/data
    re.compile(r"(?<![\w])[A-Za-z]:(?:\\+|/(?!/))\w[^\s\"'`)\]<>}|]*"),
    # $HOME/data, ${SCRATCH}/data, %USERPROFILE%\data
    re.compile(
        r"\$\{?(?:HOME|USER|USERPROFILE|PWD|TMPDIR|SCRATCH|WORK|DATA)\}?[/\\]\w[^\s\"'`)\]<>}|]*",
    ),
    re.compile(r"%[A-Z_]{3,}%[/\\]\w[^\s\"'`)\]<>}|]*"),
    # file:///data
    re.compile(r"\bfile:/+[^\s\"'`)\]<>}|]+"),
    # ../../data
    re.compile(START + r"(?:\.\.[/\\])+\w[^\s\"'`)\]<>}|]*"),
    # home folders wherever they stand
    re.compile(r"/(?:home|Users|root)/[\w.@+-][^\s\"'`)\]<>}|]*"),
)


def find_secret(text: str) -> tuple[str, int] | None:
    """
    Find an access token, a private key or a password.

    Tokens of many services are known to `detect-secrets`.

    Args:
        text (`str`): Contents of a file.

    Returns:
        `tuple[str, int]`: What it is, such as "GitHub Token", and the number of the line; None if there is none.
    """
    for kind, pattern in TOKENS.items():
        if found := pattern.search(text):
            return kind, _line(text, found.start())
    detectors = [detector() for detector in _detectors()]
    for number, line in enumerate(text.splitlines(), start=1):
        # Long lines of numbers and base64 take long and hold no tokens.
        for part in _parts(line):
            for detector in detectors:
                secret = next(iter(detector.analyze_string(part)), None)
                if secret is not None:
                    return detector.secret_type, number
    return None


def find_local_path(text: str) -> tuple[str, int] | None:
    """
    Find a path of a file system: absolute, below a home folder, of Windows, of a server, a file:// address or one
    that leads upward; also with the escapes of JSON and addresses.

    Returns:
        `tuple[str, int]`: The path and the number of its line; None if there is none.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        for form in _forms(line):
            for pattern in MACHINE_PATHS:
                if found := pattern.search(form):
                    return found[0], number
    return None


def _forms(line: str) -> Iterator[str]:
    """Yield a line as it stands and without the escapes of JSON and of addresses, where it has any."""
    yield line
    if "\\" in line:
        plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda escape: chr(int(escape[1], 16)), line)
        yield re.sub(r"\\[nrt]", " ", plain.replace("\\/", "/"))
    if "%" in line:
        yield urllib.parse.unquote(line)


def _parts(line: str, length: int = 2000) -> Iterator[str]:
    for start in range(0, len(line), length - 200):
        yield line[start : start + length]


def _detectors() -> list[type[RegexBasedDetector]]:
    classes: set[type] = set(get_mapping_from_secret_type_to_class().values())
    found = [cls for cls in classes if issubclass(cls, RegexBasedDetector) and cls.__name__ not in IGNORED]
    return sorted(found, key=lambda cls: cls.__name__)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
