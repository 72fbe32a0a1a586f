"""Run the core tests against the lowest and the highest versions of the libraries that polymodal may be used with.

    python tools/test_versions.py [lowest] [highest]
    python tools/test_versions.py lowest --with torch==2.13.0+cpu

The second line replaces the version of one library, such as a torch that has no build for this machine. Each set of
versions has a virtual environment of its own in the cache folder (`--cache`, 2 to 8 GB each).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "transformers", "datasets", "peft")
VERSIONS = {
    "lowest": ("torch==2.10.0", "transformers==5.6.0", "datasets==5.0.0", "peft==0.18.0"),
    "highest": ("torch", "transformers", "datasets", "peft"),
}
TOOLS = (
    "beartype",
    "hypothesis",
    "pytest",
    "pytest-xdist",
    "faker",
    "h5py",
    "onnxruntime",
    "onnxscript",
    "sentence-transformers",
)
CORE = ("layers_and_encoders", "training", "pretrained", "export")
LEFT_OUT = "onnxruntime and not default or card or needs_no_polymodal"  # slow, and the same as others for a version


def requirements(name: str, replaced: Iterable[str]) -> list[str]:
    """Return the versions of a set. replaced: requirements that take the place of those of the same library."""
    by_library = {library_of(one): one for one in (*VERSIONS[name], *replaced)}
    return list(by_library.values())


def library_of(requirement: str) -> str:
    """Return the name of the library: 'torch' of 'torch==2.13.0'."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def environment(name: str, folder: Path, versions: Iterable[str]) -> Path:
    """Return the Python of the environment of a set of versions, which is made again where the versions changed."""
    python = folder / name / "bin" / "python"
    done = folder / name / ".installed"
    wanted = "\n".join(versions)
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / name], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--editable", f"{ROOT}[hub]", *versions, *TOOLS], check=True)
        done.write_text(wanted)
    return python


def versions_of(python: Path) -> str:
    program = f"import importlib.metadata as m; print(*[f'{{n}} {{m.version(n)}}' for n in {LIBRARIES!r}], sep=', ')"
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Run the tests of every set of versions; return 1 where some failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*VERSIONS], help=f"sets of versions: {', '.join(VERSIONS)}")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "versions", help="folder of the environments")
    parser.add_argument("--with", action="append", default=[], dest="replaced", metavar="LIBRARY==VERSION")
    given = parser.parse_args()
    if unknown := {*given.names} - {*VERSIONS}:
        parser.error(f"there are no versions {', '.join(sorted(unknown))}; there are {', '.join(VERSIONS)}")
    if unknown := {library_of(one) for one in given.replaced} - {*LIBRARIES}:
        parser.error(f"--with takes a version of {', '.join(LIBRARIES)}, not of {', '.join(sorted(unknown))}")
    files = [f"tests/test_{name}.py" for name in CORE]
    failed = 0
    for name in given.names:
        python = environment(name, given.cache.resolve(), requirements(name, given.replaced))
        begun = time.monotonic()
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(
            [python, "-m", "pytest", "-q", "-k", f"not ({LEFT_OUT})", *files], cwd=ROOT, env=variables, check=False
        )
        failed += done.returncode != 0
        outcome = "passed" if done.returncode == 0 else "failed"
        print(f"{name} ({versions_of(python)}): {outcome} in {time.monotonic() - begun:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
