"""Other releases of snntorch: classes that they lack are no obstacle."""

import subprocess
import sys

import pytest

OPTIONAL = (
    "Alpha", "AssociativeLeaky", "DeltaLeaky", "Lapicque", "LeakyParallel", "LinearLeaky", "RLeaky",
    "RSynaptic", "SConv2dLSTM", "SLSTM", "StateLeaky", "Synaptic",
)  # fmt: skip

CODE = """
import sys
import snntorch as snn
for name in sys.argv[1:]:
    delattr(snn, name)
import torch
from snn_homeostasis import LinearHomeostasis
net = torch.nn.Sequential(torch.nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True))
homeostasis = LinearHomeostasis(0.1, 0.1, "bias").attach(net, torch.rand(2, 4))
net(torch.rand(2, 4))
homeostasis.step()
print(*homeostasis.cells)
"""


@pytest.mark.parametrize("lacking", [("AssociativeLeaky",), ("StateLeaky", "LinearLeaky"), OPTIONAL])
def test_a_release_without_some_neurons_works(lacking):
    command = [sys.executable, "-c", CODE, *lacking]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.stdout.split() == ["1"], run.stderr
