"""Every tutorial runs in its short mode, without a warning, and leaves its table and its figure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

for module in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(module)

FOLDER = Path(__file__).parent.parent / "tutorials"
# what the table of each tutorial has to say
SAYS = {
    "00_quickstart": "calibrated and regulated",
    "01_rescue_a_silent_network": "calibrated and two lines",
    "02_attach_to_your_model": "bias, bounded",
    "03_homeostasis_with_stdp": "busiest tenth",
    "04_delays": "too many",
    "05_extend_it": "with homeostasis",
}


@pytest.mark.parametrize(("tutorial", "phrase"), SAYS.items(), ids=SAYS)
def test_tutorial_runs_in_short_mode(tutorial, phrase, tmp_path):
    figure = tmp_path / "figure.png"
    script = FOLDER / f"{tutorial}.py"
    command = [sys.executable, "-W", "error", str(script), "--quick", "--output", str(figure)]
    here = os.environ | {"PYTHONPATH": str(FOLDER.parent)}  # this package, whatever is installed
    run = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert phrase in run.stdout
    assert figure.stat().st_size > 0


def test_every_tutorial_is_run():
    assert sorted(SAYS) == sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
