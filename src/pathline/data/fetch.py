"""Packages of data, fetched by name and pinned version through the ordinary package clients.

A `Package` records the sha256 of its archive; `fetch` returns the folder of its content and
downloads it at most once. Content is unpacked under a temporary name and then renamed: what is in
the cache is whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pathline.core.errors import PathlineError
from pathline.core.progress import progress

__all__ = ["FetchError", "Package", "cache_folder", "fetch", "sha256_of"]


class FetchError(PathlineError):
    """A package cannot be fetched, or is not the one whose checksum is recorded."""


@dataclass(frozen=True)
class Package:
    """One version of a package in a public registry.

    Args:
        client: what fetches it: npm, apt or pip.
        name: as the client writes it.
        version: as the client writes it.
        sha256: of the archive that the client downloads.
    """

    client: Literal["npm", "apt", "pip"]
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def folder(self) -> Path:
        """Where its content is, or will be."""
        flat = self.name.lstrip("@").replace("/", "-")
        return cache_folder() / "packages" / f"{self.client}-{flat}-{self.version}"


def cache_folder() -> Path:
    """Return where data is kept: $PATHLINE_CACHE, or ~/.cache/pathline."""
    chosen = os.environ.get("PATHLINE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "pathline"


def sha256_of(*paths: Path) -> str:
    """Return the sha256 of the content of files, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fetch(package: Package) -> Path:
    """Return the folder with a package's content, downloaded on first use.

    Returns:
        For npm what lies under `package/`; for Debian and PyPI the root of the package.

    Raises:
        FetchError: the client is missing or fails, the checksum is not the recorded one, or the
            cache cannot be written to.
    """
    home = package.folder
    if home.is_dir():
        return home
    download, unpack = _CLIENTS[package.client]
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-")
    except OSError as error:
        raise FetchError(
            f"the cache {home.parent} cannot be written to ({error.strerror}); name another place "
            "in PATHLINE_CACHE."
        ) from error
    with scratch as name, progress() as bar:
        bar.add_task(f"fetching {package}", total=None)
        archive = download(package, Path(name))
        _verify(archive, package)
        _settle(unpack(archive, Path(name) / "content"), home)
    return home


def _from_npm(package: Package, folder: Path) -> Path:
    what = f"{package.name}@{package.version}"
    _run("npm", ["pack", "--loglevel=error", what], folder, package)
    return _only(folder, "*.tgz", package)


def _from_apt(package: Package, folder: Path) -> Path:
    what = f"{package.name}={package.version}"
    _run("apt-get", ["download", "-q", what], folder, package)
    return _only(folder, "*.deb", package)


def _from_pip(package: Package, folder: Path) -> Path:
    what = f"{package.name}=={package.version}"
    pip = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", what]
    _run(sys.executable, pip, folder, package)
    return _only(folder, "*.whl", package)


def _untar(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def _undeb(archive: Path, folder: Path) -> Path:
    _run("dpkg", ["-x", archive.name, folder.name], archive.parent, None)
    return folder


def _unzip(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder)
    return folder


_Download = Callable[[Package, Path], Path]
_Unpack = Callable[[Path, Path], Path]
_CLIENTS: dict[str, tuple[_Download, _Unpack]] = {
    "npm": (_from_npm, _untar),
    "apt": (_from_apt, _undeb),
    "pip": (_from_pip, _unzip),
}

_ORIGIN = {
    "npm": "it comes with Node.js",
    "apt-get": "it comes with Debian and Ubuntu",
    "dpkg": "it comes with Debian and Ubuntu",
}


def _run(client: str, arguments: list[str], folder: Path, package: Package | None) -> None:
    """Run a client in `folder`; its absence or failure becomes one sentence."""
    program = shutil.which(client)
    what = str(package or "the package")
    if program is None:
        raise FetchError(f"{client} is needed to fetch {what}, and is not here; {_ORIGIN[client]}.")
    done = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = _reason(done.stderr) or f"exit code {done.returncode}"
        hint = " (`apt-get update` renews what it knows)" if client == "apt-get" else ""
        raise FetchError(f"{Path(client).name} cannot fetch {what}: {said}{hint}.")


def _reason(stderr: str) -> str:
    """Return the first line of a client's errors that is a sentence."""
    lines = [line for line in stderr.splitlines() if re.match(r"(npm err|E:|error)", line, re.I)]
    bare = [re.sub(r"^(npm err(or|!)( \w+)?|E:|error:) ", "", line, flags=re.I) for line in lines]
    return next((line.strip(" .") for line in bare if len(line.split()) > 3), "")


def _only(folder: Path, pattern: str, package: Package) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise FetchError(f"{package.client} left {len(found)} archives of {package}, not one.")
    return found[0]


def _verify(archive: Path, package: Package) -> None:
    found = sha256_of(archive)
    if found != package.sha256:
        raise FetchError(
            f"{package} has the checksum {found[:12]}…, and {package.sha256[:12]}… is recorded: it "
            "was changed after it was pinned, and is not used."
        )


def _settle(content: Path, home: Path) -> None:
    """Move `content` to `home`; if another process was faster, keep its copy."""
    try:
        content.rename(home)
    except OSError:
        if not home.is_dir():
            raise
