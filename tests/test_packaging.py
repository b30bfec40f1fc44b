"""What is shipped: the contents and the metadata of the wheel, and that it runs alone."""

import email
import subprocess
import sys
import textwrap
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import snn_homeostasis

EXTRAS = {"pandas", "matplotlib", "inferno", "lightning", "tqdm", "sklearn"}
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"no wheel can be built here: {built.stderr[-300:]}")
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_its_licence_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in names if name.startswith("snn_homeostasis/")}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "snn_homeostasis").rglob("*.py")}
    assert here <= shipped
    assert {name.partition("/")[2] for name in shipped - here} == {"LICENSE", "py.typed"}
    assert all(name.startswith("snn_homeostasis") for name in names)


def test_the_metadata_names_licence_authors_and_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
    metadata = email.message_from_string(archive.read(name).decode())
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Author"] or metadata["Author-email"]
    needs = [need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need]
    assert sorted(need.partition(">")[0] for need in needs) == ["numpy", "snntorch", "torch"]


def test_the_wheel_alone_runs_two_lines(wheel, tmp_path):
    """Nothing of the checkout or of the extras is on the path: torch, snntorch and NumPy are."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(wheel)!r})

            class Missing:
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] in {EXTRAS}:
                        raise ModuleNotFoundError(name, name=name)

            sys.meta_path.insert(0, Missing())
            import snntorch as snn, torch
            from torch import nn
            from snn_homeostasis import LinearHomeostasis
            import snn_homeostasis
            assert ".whl" in snn_homeostasis.__file__
            net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
            homeostasis = LinearHomeostasis(0.05, target=0.1, param="bias").attach(net)
            net(torch.rand(16, 4))
            homeostasis.step()
            print(homeostasis.summary())
            """
        )
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert "Linear → Leaky" in ran.stdout


def test_the_version_is_that_of_the_metadata():
    assert snn_homeostasis.__version__ == version("snn-homeostasis")
