"""The example notebook runs as it stands."""

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_notebook_on_one_photograph_runs() -> None:
    folder = ROOT / "examples"
    notebook = nbformat.read(folder / "one_photo.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(folder)}}).execute()
    predicted, result, figure, _, is_same = (
        [each for each in cell.outputs if each.get("name") != "stderr"][-1].get("data", {})
        for cell in notebook.cells
        if cell.cell_type == "code"
    )
    assert predicted["text/plain"].startswith("[('moped', 0.5")
    assert result["text/plain"] == "<moped: 1 × 500 × 441, 4 steps>"
    assert "image/png" in figure
    assert is_same["text/plain"] == "True"
