"""What all tests share: device, seeds, and a clean list of snntorch's neurons."""

import os
from contextlib import nullcontext

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

torch.set_num_threads(1)  # the tensors here are small, and test machines are shared

DEVICE = torch.device(os.environ.get("SNN_HOMEOSTASIS_DEVICE", "cpu"))
LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.LSTMCell, nn.RNN)
DTYPE = getattr(torch, os.environ.get("SNN_HOMEOSTASIS_DTYPE", "float32"))


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture(autouse=True)
def _fresh_seed_and_device():
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPE)
    # a default device is a mode, under which snntorch itself does not compile
    with torch.device(DEVICE) if DEVICE.type != "cpu" else nullcontext():
        yield
    torch.set_default_dtype(torch.float32)
    snn.SpikingNeuron.instances.clear()


@pytest.fixture(scope="module")
def reports(request, tmp_path_factory):
    """What becomes of the scenarios of a file in each process."""
    import processes  # torch may be built without them

    name = request.module.__name__
    with processes.started(name, tmp_path_factory.mktemp(name)) as running:
        yield running


def pytest_generate_tests(metafunc):
    if "scenario_name" in metafunc.fixturenames:
        metafunc.parametrize("scenario_name", metafunc.module.scenario)


@pytest.fixture(autouse=True, scope="session")
def _inputs_in_the_dtype_of_their_layer():
    """snntorch's spikes are float32 whatever the dtype of a model, and its own layers do not take them."""
    handle = None if DTYPE is torch.float32 else register_module_forward_pre_hook(_cast)
    yield
    if handle is not None:
        handle.remove()


def _cast(module, args):
    weight = next(iter(module._parameters.values()), None)
    if not isinstance(module, LAYERS) or weight is None or not weight.is_floating_point():
        return None
    return tuple(each.to(weight.dtype) if isinstance(each, torch.Tensor) else each for each in args)
