"""Whether the output of a layer rises with its weight, judged on the example and told at attach."""

import warnings

import pytest
import torch
from nets import leaky
from snntorch import utils
from torch import Tensor, nn
from torch.nn import functional

from snn_homeostasis import DelayedLinear, HomeostasisWarning, LinearHomeostasis

CANCELS, FALLS = "changes nothing", "does not only raise"


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class CentredLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class SoftmaxLinear(nn.Linear):
    """Its weights compete: the softmax of a row does not see what is added to all of it."""

    def forward(self, x: Tensor) -> Tensor:
        return 9 * functional.linear(x, self.weight.softmax(1), self.bias)


class UnitRows(nn.Linear):
    """Rows of length 1 through the origin: a change along the row is lost, others are not."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, functional.normalize(self.weight, dim=1), self.bias)


class Inhibiting(nn.Linear):
    """Dale's law: its weights count by their size, and always inhibit."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, -self.weight.abs(), self.bias)


class LoRA(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.lora_A = nn.Linear(inputs, 4, bias=False)
        self.lora_B = nn.Linear(4, outputs, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        with torch.no_grad():
            self.lora_A.weight.copy_(torch.linspace(1.0, -0.5, 4)[:, None].expand(4, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


def images():
    return torch.rand(4, 2, 6, 6)


def vectors():
    return torch.rand(4, 6)


DOUBTFUL = {
    "standardised convolution": (lambda: StandardisedConv(2, 3, 3), images, "0", CANCELS),
    "centred rows": (lambda: CentredLinear(6, 5), vectors, "0", CANCELS),
    "softmax of rows": (lambda: SoftmaxLinear(6, 5), vectors, "0", CANCELS),
    "centred inputs": (lambda: nn.Sequential(Centred(), nn.Linear(6, 5)), vectors, "0.1", CANCELS),
    "negative inputs": (lambda: nn.Linear(6, 5), lambda: -vectors(), "0", FALLS),
    "inputs of both signs": (lambda: nn.Linear(60, 5), lambda: torch.randn(4, 60), "0", FALLS),
    "inhibiting": (lambda: Inhibiting(6, 5), vectors, "0", FALLS),
    "LoRA": (lambda: LoRA(6, 5), vectors, "0.lora_B", FALLS),
    "batch norm in front": (
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5)),
        lambda: torch.cat([vectors(), vectors()]) * torch.tensor([1.0, 9, 1, 9, 1, 9]),
        "0.4",
        FALLS,
    ),
}


def told(layer, example, param="weight", **choice):
    """The warnings about effects that an attach gives, and what it attached."""
    model = nn.Sequential(layer, leaky())
    homeostasis = LinearHomeostasis(0.1, 0.2, param)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        homeostasis.attach(model, example, **choice)
    messages = [str(each.message) for each in caught if issubclass(each.category, HomeostasisWarning)]
    return [each for each in messages if CANCELS in each or FALLS in each], homeostasis


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_a_weight_that_does_not_raise_the_output_is_told_once(kind):
    build, example, path, words = DOUBTFUL[kind]
    (message,), _ = told(build(), example())
    assert f"`{path}`" in message
    assert words in message
    assert "param='bias'" in message
    assert "exclude" in message


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_the_bias_rule_is_silent_there_and_works(kind):
    build, example, _, _ = DOUBTFUL[kind]
    inputs = example()
    layer = build().eval()  # a norm keeps its statistics
    messages, homeostasis = told(layer, inputs, "bias", **({"exclude": "0.lora_B"} if kind == "LoRA" else {}))
    assert messages == []
    model = nn.Sequential(layer, *(cell.neuron.module for cell in list(homeostasis.cells.values())[:1]))
    for _ in range(60):
        homeostasis.clear()
        utils.reset(model)
        with torch.no_grad():
            for _ in range(20):
                model(inputs)
        homeostasis.step()
    for rate in homeostasis.rates().values():
        assert rate.mean().item() == pytest.approx(0.2, abs=0.03)


RISING = {
    "linear": (lambda: nn.Linear(6, 5), vectors),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1), images),
    "grouped": (lambda: nn.Conv2d(2, 4, 3, groups=2), images),
    "transposed": (lambda: nn.ConvTranspose2d(2, 4, 3, groups=2), images),
    "delayed": (lambda: DelayedLinear(6, 5, 3), vectors),
    "positions": (lambda: nn.Linear(6, 5), images),
    "unit rows": (lambda: UnitRows(6, 5), vectors),
    "a few negative inputs": (lambda: nn.Linear(6, 5), lambda: vectors() - 0.05),
    "silent inputs": (lambda: nn.Linear(6, 5), lambda: 0 * vectors()),
    "half precision": (lambda: nn.Linear(6, 5).bfloat16(), lambda: vectors().bfloat16()),
    "frozen": (lambda: nn.Linear(6, 5).requires_grad_(False), vectors),
}


@pytest.mark.parametrize("kind", RISING)
def test_a_weight_that_raises_the_output_is_attached_in_silence(kind):
    build, example = RISING[kind]
    messages, homeostasis = told(build(), example(), **({"pairs": {"1": "0"}} if kind == "frozen" else {}))
    assert messages == []
    assert list(homeostasis.cells) == ["1"]


def test_layers_of_one_kind_are_told_together():
    model = nn.Sequential(
        StandardisedConv(2, 3, 3), leaky(), StandardisedConv(3, 3, 3), leaky(), nn.Conv2d(3, 3, 2), leaky()
    )
    with torch.no_grad():
        model[0].bias.fill_(2.0)
    with pytest.warns(HomeostasisWarning) as caught:
        LinearHomeostasis(0.1, 0.2).attach(model, images() + 5)
    (message,) = [str(each.message) for each in caught]
    assert "`0`, `2` changes nothing that reaches `1`, `3`" in message


def test_pairs_do_not_silence_the_judgement():
    messages, _ = told(StandardisedConv(2, 3, 3), images(), pairs={"1": "0"})
    assert len(messages) == 1


def test_without_an_example_nothing_is_judged():
    messages, _ = told(StandardisedConv(2, 3, 3), None)
    assert messages == []
