"""The notebooks in examples/ run from top to bottom, and are stored with what they print."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="notebooks need nbclient: pip install 'ratlip_hf[dev]'")
LARGEST = 400_000  # bytes, images included


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_small(path):
    assert path.stat().st_size < LARGEST
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(len(cell.outputs) for cell in cells) > 0
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason="notebooks need nbclient: pip install 'ratlip_hf[dev]'")
    pytest.importorskip("ipykernel", reason="notebooks need ipykernel: pip install 'ratlip_hf[dev]'")
    source = str(Path(__file__).parents[1] / "src")
    monkeypatch.setenv("PYTHONPATH", source)
    client.NotebookClient(nbformat.read(path, 4), timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
