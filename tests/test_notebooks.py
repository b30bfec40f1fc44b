"""The notebook beside each tutorial is that tutorial, executed.

TQDM_DISABLE=1 python -m jupytext --to ipynb --set-kernel python3 --execute tutorials/[0-9]*.py
"""

from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

TUTORIALS = sorted((Path(__file__).parent.parent / "tutorials").glob("[0-9]*.py"))
AGAIN = f"Make it again: {__doc__.splitlines()[2].strip()}"


def cells(path):
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_the_notebook_has_the_code_and_the_text_of_its_script(script):
    notebook = script.with_suffix(".ipynb")
    assert notebook.exists(), AGAIN
    assert cells(notebook) == cells(script), AGAIN


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_the_notebook_was_run_whole(script):
    code = [cell for cell in jupytext.read(script.with_suffix(".ipynb")).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), AGAIN
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
