"""What is installed: every file of the package, and the studies, which lie beside it in a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

BUILD = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
FIND = "import ribray.sweep_file as f; print(f.__file__, *f.shipped_sweeps().values(), sep='\\n')"
IGNORED = shutil.ignore_patterns("__pycache__")


def test_a_wheel_holds_the_package_and_the_studies_and_finds_them(tmp_path):
    for folder in ("ribray", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=IGNORED)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")

    package = {file.relative_to(tmp_path).as_posix() for file in (tmp_path / "ribray").rglob("*") if file.is_file()}
    studies = {f"ribray/sweeps/{file.name}" for file in (ROOT / "sweeps").iterdir()}
    assert installed == package | studies

    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", FIND]
    found = subprocess.run(command, cwd=tmp_path / "site", env=environment, check=True, capture_output=True, text=True)
    module, *files = found.stdout.splitlines()
    assert module == str(tmp_path / "site/ribray/sweep_file.py")
    assert {Path(file).relative_to(tmp_path / "site").as_posix() for file in files} == studies


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_nothing_is_a_link():
    """A checkout on Windows has none."""
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line for line in listed.stdout.splitlines() if line.startswith("120000")] == []
