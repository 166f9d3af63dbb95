"""A hook of MkDocs: the site has the checkout's paths, so that a link works there as it does beside the code."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "tests/faults/README.md")
LINKED = ("LICENSE", "deploy/*", "entrypoints/*.py", "examples/*", "sweeps/*.yaml")
"""Files that pages link to, by pattern."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put what lies in `docs/` below that name, and what lies beside it where it is."""
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    found = {f"docs/{file.src_uri}": Path(file.abs_src_path) for file in files if file.src_dir == config.docs_dir}
    for pattern in (*PAGES, *LINKED):
        found |= {file.relative_to(ROOT).as_posix(): file for file in ROOT.glob(pattern)}
    return Files([*of_theme, *(File.generated(config, name, abs_src_path=str(file)) for name, file in found.items())])
