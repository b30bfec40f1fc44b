"""Every tutorial runs in its short mode, without a warning, and leaves its table and its figure."""

import subprocess
import sys
from pathlib import Path

import pytest

for module in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(module)

TUTORIALS = sorted((Path(__file__).parent.parent / "tutorials").glob("[0-9]*.py"))


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs_in_short_mode(tutorial, tmp_path):
    figure = tmp_path / "figure.png"
    command = [sys.executable, "-W", "error", str(tutorial), "--quick", "--output", str(figure)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "accuracy" in run.stdout
    assert figure.stat().st_size > 0


def test_there_are_tutorials():
    assert TUTORIALS
