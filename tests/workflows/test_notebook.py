"""The API in a notebook: objects display as HTML, and nothing is printed to stdout."""

from __future__ import annotations

import pytest
from tests.workflows.conftest import TINY

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


@pytest.mark.filterwarnings("default")  # warnings of the libraries of the kernel
def test_notebook_trains_and_displays_the_run(photos, tmp_path):
    cells = [
        f"import efficientnetv2 as ev2\nrun = ev2.train({str(photos)!r}, output='run', **{dict(TINY)!r})",
        "run",
        f"ev2.evaluate(run, {str(photos)!r}, workers=0, device='cpu')",
        f"ev2.predict(run, {str(photos)!r}, workers=0, device='cpu').head()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert not [one for one in outputs if one.output_type == "stream" and one.name == "stdout"]
    shown = [one.data.get("text/html", "") for one in outputs if one.output_type == "execute_result"]
    assert len(shown) == 3
    assert "<td>macro_f1</td>" in shown[0]
    assert "Evaluation" in shown[1]
    assert "probability" in shown[2]
