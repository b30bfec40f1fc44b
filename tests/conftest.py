"""What all tests share: device, seeds, and a clean list of snntorch's neurons."""

import os

import pytest
import snntorch as snn
import torch

torch.set_num_threads(1)  # the tensors here are small, and test machines are shared

DEVICE = torch.device(os.environ.get("SNN_HOMEOSTASIS_DEVICE", "cpu"))


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture(autouse=True)
def _fresh_seed_and_device():
    torch.manual_seed(0)
    with torch.device(DEVICE):
        yield
    snn.SpikingNeuron.instances.clear()
