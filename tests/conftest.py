"""What all tests share: device, seeds, and a clean list of snntorch's neurons."""

import os
from contextlib import nullcontext

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
    # a default device is a mode, under which snntorch itself does not compile
    with torch.device(DEVICE) if DEVICE.type != "cpu" else nullcontext():
        yield
    snn.SpikingNeuron.instances.clear()
