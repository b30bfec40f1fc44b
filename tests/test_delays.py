"""Delayed layers in both forms, against loops over synapses and against the layers of inferno."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from snn_homeostasis import ArgumentError, DelayedConv2d, DelayedLayer, DelayedLinear, LinearHomeostasis

T, BATCH, LONGEST = 9, 2, 4
INTERPOLATIONS = ["linear", "previous", "nearest"]
DELAYS = {
    "zero": torch.zeros_like,
    "longest": lambda delay: torch.full_like(delay, LONGEST),
    "integer": lambda delay: torch.randint_like(delay, 0, LONGEST + 1),
    "half": lambda delay: torch.randint_like(delay, 0, LONGEST) + 0.5,
    "random": lambda delay: torch.rand_like(delay) * LONGEST,
}
CONVOLUTIONS = {
    "plain": {},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": (1, 2)},
    "same": {"padding": "same", "dilation": (1, 2)},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": (1, 0), "padding_mode": "circular"},
    "dilation": {"dilation": (1, 2)},
    "groups": {"groups": 2},
    "all": {"stride": 2, "padding": (2, 1), "dilation": (2, 1), "groups": 2, "bias": False},
}


def linear(**options):
    return DelayedLinear(3, 5, LONGEST, dtype=torch.float64, **options)


def conv2d(**options):
    return DelayedConv2d(4, 6, (3, 2), LONGEST, dtype=torch.float64, **options)


LAYERS = {"linear": linear, "conv2d": conv2d}
BUILDS = {"linear": linear} | {
    f"conv2d-{name}": lambda options=options, **more: conv2d(**options, **more)
    for name, options in CONVOLUTIONS.items()
}


def pairwise(*factors):
    """Combinations in which each value of a factor meets each value of every other factor."""
    pairs = {row: set(itertools.combinations(enumerate(row), 2)) for row in itertools.product(*factors)}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(pairs, key=lambda row: len(pairs[row] & missing)))
        missing -= pairs[chosen[-1]]
    return chosen


def inputs(layer, *lead):
    shape = (3,) if isinstance(layer, nn.Linear) else (4, 5, 6)
    return torch.randn(*(lead or (T, BATCH)), *shape, dtype=torch.float64)


def stepped(layer, x):
    layer.reset()
    return torch.stack([layer.step(each) for each in x])


FORMS = {"step": stepped, "sequence": lambda layer, x: layer.sequence(x)}


def sample(x, delay, interpolation):
    """A signal ``[T, ...]`` after a delay, with 0 before its beginning."""

    def at(time):
        return x[time] if time >= 0 else torch.zeros_like(x[0])

    n = math.floor(delay)
    f = delay - n
    read = {
        "linear": lambda t: (1 - f) * at(t - n) + f * at(t - n - 1),
        "previous": lambda t: at(t - math.ceil(delay)),
        "nearest": lambda t: at(t - n) if f < 0.5 else at(t - n - 1),
    }[interpolation]
    return torch.stack([read(t) for t in range(len(x))])


def synapses(layer, x):
    """Yields the index of every synapse, its output channel, and its input without the delay."""
    if isinstance(layer, nn.Linear):
        for o, i in itertools.product(*map(range, layer.weight.shape)):
            yield (o, i), o, x[..., i]
        return
    mode = layer.padding_mode if layer.padding_mode != "zeros" else "constant"
    frames = functional.pad(x.flatten(0, -4), spatial_padding(layer), mode)
    frames = frames.reshape(*x.shape[:-2], *frames.shape[-2:])
    inputs_per_group, outputs_per_group = layer.weight.shape[1], layer.out_channels // layer.groups
    for f, c, *at in itertools.product(*map(range, layer.weight.shape)):
        first = [i * d for i, d in zip(at, layer.dilation, strict=True)]
        last = [
            size - (k - 1 - i) * d
            for size, k, i, d in zip(frames.shape[-2:], layer.kernel_size, at, layer.dilation, strict=True)
        ]
        rows, columns = map(slice, first, last, layer.stride)
        channel = f // outputs_per_group * inputs_per_group + c
        yield (f, c, *at), f, frames[..., channel, rows, columns]


def looped(layer, x):
    """The output by definition, synapse by synapse."""
    delay = layer.delay.detach().double().clamp(0, layer.max_delay)
    channels = [0.0] * len(layer.weight)
    for index, o, seen in synapses(layer, x):
        channels[o] = channels[o] + layer.weight[index] * sample(
            seen, delay[index].item(), layer.interpolation
        )
    if layer.bias is not None:
        channels = [channel + bias for channel, bias in zip(channels, layer.bias, strict=True)]
    return torch.stack(channels, channel_dim(layer))


def channel_dim(layer):
    return -1 if isinstance(layer, nn.Linear) else -3


def spatial_padding(layer):
    """Left, right, top and bottom."""
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [each for size in reversed(total) for each in (size // 2, size - size // 2)]
    return [size for size in reversed(layer.padding) for _ in range(2)]


def gradients(outputs, layer, x, weights):
    tensors = [each for each in (x, layer.weight, layer.bias, layer.delay) if each is not None]
    return torch.autograd.grad((outputs * weights).sum(), tensors, allow_unused=True)


@torch.no_grad()
def delay_slopes(layer, x, weights, h=1e-3):
    """The centred slope in each delay, inwards at a limit; exact, since outputs are piecewise linear."""
    slopes = torch.zeros_like(layer.delay)
    for index, o, seen in synapses(layer, x):
        delay = layer.delay[index].item()
        low, high = max(delay - h, 0.0), min(delay + h, LONGEST)
        rise = sample(seen, high, "linear") - sample(seen, low, "linear")
        slopes[index] = (
            layer.weight[index] * (rise * weights.select(channel_dim(layer), o)).sum() / (high - low)
        )
    return slopes


@pytest.mark.parametrize(
    ("build", "delays", "interpolation", "form"), pairwise(BUILDS, DELAYS, INTERPOLATIONS, FORMS)
)
def test_outputs_equal_a_loop_over_synapses(build, delays, interpolation, form):
    layer = BUILDS[build](interpolation=interpolation, delay_init=DELAYS[delays])
    x = inputs(layer)
    with torch.no_grad():
        torch.testing.assert_close(FORMS[form](layer, x), looped(layer, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", ["linear", "conv2d-all"])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_float32_equal_the_loop_in_float64(build, form):
    layer = BUILDS[build]()
    x = inputs(layer)
    with torch.no_grad():
        expected = looped(layer, x)
        found = FORMS[form](layer.float(), x.float())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("delays", "interpolation", "build", "form"),
    pairwise(DELAYS, INTERPOLATIONS, ["linear", "conv2d-groups", "conv2d-reflect"], FORMS),
)
def test_gradients_equal_the_gradients_of_the_loop(delays, interpolation, build, form):
    layer = BUILDS[build](interpolation=interpolation, delay_init=DELAYS[delays])
    x = inputs(layer).requires_grad_()
    outputs = FORMS[form](layer, x)
    weights = torch.randn_like(outputs)
    *found, slopes = gradients(outputs, layer, x, weights)
    *expected, _ = gradients(looped(layer, x), layer, x, weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    zero = torch.zeros_like(slopes)
    wanted = delay_slopes(layer, x, weights) if interpolation == "linear" else zero
    torch.testing.assert_close(slopes, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", LAYERS)
def test_gradcheck_passes_away_from_integers(build, form):
    layer = LAYERS[build](
        delay_init=lambda delay: torch.randint_like(delay, LONGEST) + 0.1 + 0.8 * torch.rand_like(delay)
    )
    names = [name for name, _ in layer.named_parameters()]

    class Form(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return FORMS[form](self.layer, x)

    def run(x, *values):
        return functional_call(Form(), dict(zip((f"layer.{n}" for n in names), values, strict=True)), (x,))

    x = inputs(layer)[:3, :1].requires_grad_()
    values = [value.detach().clone().requires_grad_() for value in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)
    assert build != "linear" or torch.autograd.gradgradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize("wanted", [1.0, 3.0])
def test_gradient_at_an_integer_points_to_the_target(wanted):
    layer = DelayedLinear(1, 1, LONGEST, bias=False, delay_init=2.0)
    nn.init.ones_(layer.weight)
    volley = torch.zeros(T, 1, 1)
    volley[0] = 1
    target = torch.zeros(T, 1, 1)
    target[int(wanted)] = 1
    (layer.sequence(volley) - target).square().sum().backward()
    assert layer.delay.grad.sign().item() == (1.0 if wanted < 2 else -1.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", LAYERS)
def test_delays_out_of_range_act_as_the_limit_and_can_come_back(build, form):
    layer, at_limit = LAYERS[build](), LAYERS[build]()
    at_limit.load_state_dict(layer.state_dict())
    with torch.no_grad():
        layer.delay.mul_(3).sub_(LONGEST)
        at_limit.delay.copy_(layer.delay.clamp(0, LONGEST))
    assert ((layer.delay < 0).any() and (layer.delay > LONGEST).any()).item()
    x = inputs(layer)
    outputs, expected = FORMS[form](layer, x), FORMS[form](at_limit, x)
    torch.testing.assert_close(outputs, expected)
    weights = torch.randn_like(outputs)
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(layer.delay.grad, at_limit.delay.grad)
    layer.clamp_delay_()
    assert torch.equal(layer.delay, at_limit.delay)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_max_delay_0_is_the_plain_layer(form, interpolation):
    for layer, plain in (
        (DelayedLinear(3, 5, 0, interpolation=interpolation), nn.Linear(3, 5)),
        (DelayedConv2d(4, 6, 3, 0, 2, 1, interpolation=interpolation), nn.Conv2d(4, 6, 3, 2, 1)),
    ):
        plain.load_state_dict({name: layer.state_dict()[name] for name in ("weight", "bias")})
        x = inputs(layer).float()
        torch.testing.assert_close(FORMS[form](layer, x), torch.stack(list(map(plain, x))))
        FORMS[form](layer, x).square().sum().backward()
        assert not layer.delay.grad.any()


@pytest.mark.parametrize(("build", "leads"), [("linear", [(), (2, 3, 2)]), ("conv2d", [()])])
def test_leading_dimensions_are_those_of_the_plain_layer(build, leads):
    layer = LAYERS[build]()
    for lead in leads:
        x = inputs(layer, T, *lead)
        torch.testing.assert_close(layer.sequence(x), looped(layer, x))
        torch.testing.assert_close(stepped(layer, x), looped(layer, x))


@pytest.mark.parametrize("build", LAYERS)
def test_an_empty_batch_is_no_error(build):
    layer = LAYERS[build]()
    for form in FORMS.values():
        assert form(layer, inputs(layer, T, 0)).shape[:2] == (T, 0)


def test_a_sequence_is_contiguous_and_leaves_the_history_alone():
    layer = linear()
    x = inputs(layer)
    first = layer(x[0])
    assert layer.sequence(x).is_contiguous()
    torch.testing.assert_close(torch.stack([first, layer(x[1])]), looped(layer, x[:2]))


@pytest.mark.parametrize("build", LAYERS)
def test_step_mode_chooses_the_form_of_a_call(build):
    layer = LAYERS[build](step_mode=False)
    x = inputs(layer)
    torch.testing.assert_close(layer(x), layer.sequence(x))
    layer.step_mode = True
    torch.testing.assert_close(layer(x[0]), layer.sequence(x[:1])[0])


def infernos(neural, layer, mode):
    """The layer of inferno with the same parameters."""
    common = {
        "synapse": neural.DeltaCurrent.partialconstructor(1.0, interp_mode=mode),
        "bias": True,
        "delay": float(LONGEST),
        "batch_size": BATCH,
        "weight_init": lambda _: layer.weight.detach(),
        "bias_init": lambda _: layer.bias.detach(),
        "delay_init": lambda _: layer.delay.detach(),
    }
    if isinstance(layer, nn.Linear):
        return neural.LinearDense(3, 5, 1.0, **common)
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return neural.Conv2D(5, 6, 4, 6, 1.0, layer.kernel_size, **geometry, **common)


@pytest.mark.parametrize(
    ("delays", "build", "mode", "form"),
    pairwise(
        DELAYS,
        ["linear", "conv2d-stride", "conv2d-padding", "conv2d-dilation"],
        ["previous", "nearest"],
        FORMS,
    ),
)
def test_layers_of_inferno_agree(delays, build, mode, form):
    neural = pytest.importorskip("inferno.neural")
    layer = BUILDS[build](interpolation=mode, delay_init=DELAYS[delays]).float()
    spikes = inputs(layer) > 0.5
    theirs = infernos(neural, layer, mode)
    with torch.no_grad():
        expected = torch.stack([theirs(each) for each in spikes])
        found = FORMS[form](layer, spikes.float())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", LAYERS)
def test_reset_forgets_the_past(build):
    layer = LAYERS[build]()
    x = inputs(layer)
    first = [layer(each) for each in x]
    layer.reset()
    assert all(map(torch.equal, first, map(layer, x)))


@pytest.mark.parametrize("build", LAYERS)
def test_another_batch_size_begins_a_new_history(build):
    layer, leaky = LAYERS[build](), snn.Leaky(beta=0.9, init_hidden=True)
    for batch in (3, 1, 3):
        x = inputs(layer, T, batch)
        outputs = torch.stack([layer(each) for each in x])
        torch.testing.assert_close(outputs, layer.sequence(x))
        leaky(outputs[0].detach())
        assert torch.equal(leaky.mem, outputs[0].detach())  # it began at 0


def test_detach_cuts_the_history_for_truncated_backpropagation():
    layer = linear()
    x = inputs(layer).requires_grad_()
    for half in (x[:4], x[4:]):
        sum(layer(each).sum() for each in half).backward()
        layer.detach()
    assert layer.history is not None
    full = x.detach().clone().requires_grad_()
    layer.zero_grad()
    layer.sequence(full).sum().backward()
    assert torch.equal(x.grad[4:], full.grad[4:])
    assert not torch.equal(x.grad[:4], full.grad[:4])


def test_a_second_backward_without_detach_raises():
    layer = linear()
    x = inputs(layer).requires_grad_()
    y = x * 2
    layer(y[0]).square().sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        layer(y[1]).square().sum().backward()


def test_state_dict_holds_only_the_parameters():
    layer = linear()
    layer(inputs(layer)[0])
    assert set(layer.state_dict()) == {"weight", "bias", "delay"}
    other = linear()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.delay, layer.delay)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("build", LAYERS)
def test_copies_continue_from_the_same_history(build, copied):
    layer = LAYERS[build]()
    x = inputs(layer).requires_grad_()
    before = [layer(each * 1) for each in x[:5]]
    other = copied(layer)
    assert layer.history.requires_grad
    assert not other.history.requires_grad
    with torch.no_grad():
        other.weight.mul_(2)
        torch.testing.assert_close(other(x[5]), looped(other, x)[5])
    torch.testing.assert_close(layer(x[5]), looped(layer, x)[5])
    sum(each.sum() for each in before).backward()


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_conversions_convert_the_history_and_the_kernel(grad):
    layer = linear()
    x = inputs(layer)
    with torch.set_grad_enabled(grad):
        layer(x[0])
        layer.float()(x[1].float())
        torch.testing.assert_close(layer.double()(x[2]), looped(layer, x)[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("build", "form", "dtype"), pairwise(LAYERS, FORMS, [torch.float16, torch.bfloat16]))
def test_half_precision_is_close_to_the_loop(build, form, dtype):
    layer = LAYERS[build]().to(dtype)
    x = inputs(layer).to(dtype)
    outputs = FORMS[form](layer, x)
    assert outputs.dtype == dtype
    expected = looped(copy.deepcopy(layer).double(), x.double())
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=0.1)
    outputs.float().sum().backward()
    assert layer.delay.grad.dtype == dtype


def test_half_precision_tells_1000_lags_apart():
    layer = DelayedLinear(1, 1, 1000, bias=False, delay_init=1000.0, dtype=torch.bfloat16)
    nn.init.ones_(layer.weight)
    x = torch.zeros(1001, 1, 1, dtype=torch.bfloat16)
    x[0] = 1
    assert layer.sequence(x).flatten().nonzero().tolist() == [[1000]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", LAYERS)
def test_autocast_is_close_to_full_precision(build, form, device):
    layer = LAYERS[build]().float()
    x = inputs(layer).float().requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        outputs = FORMS[form](layer, x)
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.float(), FORMS[form](layer, x), rtol=0, atol=0.1)
    outputs.float().sum().backward()
    assert layer.delay.grad.dtype == torch.float32


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", LAYERS)
# dynamo itself instantiates an autograd.Function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_into_one_graph(build, form):
    layer = LAYERS[build]()
    x = inputs(layer, 3, BATCH)
    call = getattr(layer, form)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    steps = [x] if form == "sequence" else x
    first = [compiled(each) for each in steps]
    layer.reset()
    torch.testing.assert_close(first, [call(each) for each in steps])
    layer.reset()
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.delay.mul_(0.5)
    again = [compiled(each) for each in steps]
    layer.reset()
    torch.testing.assert_close(again, [call(each) for each in steps])
    sum(each.sum() for each in again).backward()
    assert layer.delay.grad.any()


@pytest.mark.parametrize("build", LAYERS)
def test_sequences_work_under_func_and_checkpoint(build):
    layer = LAYERS[build](step_mode=False)
    x = inputs(layer, T, 3)
    parameters = dict(layer.named_parameters())

    def loss(values, each):
        return functional_call(layer, values, (each[:, None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
    expected = [
        torch.autograd.grad(loss(parameters, each), list(parameters.values())) for each in x.unbind(1)
    ]
    for name, each in zip(parameters, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(found[name], torch.stack(each))
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close(layer.delay.grad, found["delay"].sum(0))


@pytest.mark.parametrize("build", LAYERS)
def test_wrapping_keeps_the_parameters_and_the_outputs(build):
    if build == "linear":
        plain, wrap = nn.Linear(3, 5), DelayedLinear.from_linear
    else:
        options = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "padding_mode": "circular"}
        plain, wrap = nn.Conv2d(4, 6, (3, 2), **options), DelayedConv2d.from_conv2d
    plain.eval().weight.requires_grad_(False)
    state = torch.get_rng_state()
    layer = wrap(plain, 3, interpolation="nearest", step_mode=False)
    assert torch.equal(state, torch.get_rng_state())
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert (layer.max_delay, layer.interpolation, layer.training) == (3, "nearest", False)
    assert not layer.delay.any()
    x = inputs(layer).float()
    torch.testing.assert_close(layer(x), torch.stack(list(map(plain, x))))
    assert torch.equal(wrap(plain, 3, delay_init=2.0).delay, torch.full_like(plain.weight, 2.0))


def test_wrapping_a_layer_without_bias_adds_none():
    layer = DelayedLinear.from_linear(nn.Linear(3, 5, bias=False), 3)
    assert layer.bias is None
    assert set(dict(layer.named_parameters())) == {"weight", "delay"}


def test_wrapping_refuses_computed_and_lazy_parameters():
    for layer in (parametrizations.weight_norm(nn.Linear(3, 5)), nn.LazyLinear(5)):
        with pytest.raises(ArgumentError, match="plain Parameters") as caught:
            DelayedLinear.from_linear(layer, 3)
        assert "`weight`" in str(caught.value)


def test_delay_init_takes_numbers_tensors_and_functions():
    drawn = DelayedLinear(100, 100, 8).delay
    assert drawn.shape == (100, 100)
    assert 0 <= drawn.min() < 0.1
    assert 7.9 < drawn.max() <= 8
    assert drawn.mean().item() == pytest.approx(4, abs=0.1)
    assert linear(delay_init=2).delay.eq(2).all()
    rows = torch.arange(3.0)
    assert torch.equal(linear(delay_init=rows).delay, rows.double().expand(5, 3))
    assert linear(delay_init=nn.init.ones_).delay.eq(1).all()
    assert linear(delay_init=lambda delay: torch.full_like(delay, 1.5)).delay.eq(1.5).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_delay": -1}, "`max_delay` should be an integer >= 0"),
        ({"max_delay": 2.5}, "Found `max_delay = 2.5`"),
        ({"max_delay": True}, "`max_delay` should be an integer"),
        ({"interpolation": "cubic"}, "'linear', 'previous', 'nearest'"),
        ({"delay_init": 5.0}, "values from 5 to 5"),
        ({"delay_init": -0.5}, "within \\[0, 4\\]"),
        ({"delay_init": math.nan}, "within \\[0, 4\\]"),
        ({"delay_init": print}, "`delay_init` should return a tensor"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        DelayedLinear(3, 5, **({"max_delay": LONGEST} | options))


@pytest.mark.parametrize(
    ("build", "form", "shape", "words"),
    [
        ("linear", "step", (2, 4), r"\[..., in_features\].* call `sequence`"),
        ("linear", "sequence", (3,), r"\[T, ..., in_features\].* call `step`"),
        ("linear", "sequence", (0, 2, 3), "T > 0"),
        ("conv2d", "step", (T, 2, 4, 5, 6), r"\[B, C, H, W\].* call `sequence`"),
        ("conv2d", "step", (2, 3, 5, 6), r"Found shape \[2, 3, 5, 6\]"),
        ("conv2d", "sequence", (4, 5, 6), r"\[T, B, C, H, W\].* call `step`"),
    ],
)
def test_inputs_of_a_wrong_shape_are_refused(build, form, shape, words):
    layer = LAYERS[build]()
    with pytest.raises(ArgumentError, match=words):
        getattr(layer, form)(torch.zeros(shape))
    assert layer.history is None


def test_repr_shows_the_sizes_and_the_longest_delay():
    assert "in_features=3, out_features=5, bias=True, max_delay=4" in repr(linear())
    assert "kernel_size=(3, 2)" in repr(conv2d())


def intervals(trials, steps=14):
    """Two inputs spike once each, the second 2 or 6 steps after the first; the labels say which."""
    labels = torch.randint(2, (trials,))
    first = torch.randint(0, 4, (trials,))
    x = torch.zeros(steps, trials, 2)
    x[first, torch.arange(trials), 0] = 1
    x[first + 2 + 4 * labels, torch.arange(trials), 1] = 1
    return x, labels


def trained_accuracy(max_delay):
    """The accuracy after training step by step, with neurons that forget at once."""
    torch.manual_seed(1)
    neuron = {"beta": 0.1, "spike_grad": surrogate.fast_sigmoid(5), "init_hidden": True}
    net = nn.Sequential(
        DelayedLinear(2, 16, max_delay), snn.Leaky(**neuron), DelayedLinear(16, 2, 0), snn.Leaky(**neuron)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)

    def spikes(x):
        utils.reset(net)
        for layer in net:
            if isinstance(layer, DelayedLayer):
                layer.reset()
        return sum(net(each) for each in x)

    for _ in range(70):
        x, labels = intervals(64)
        optimizer.zero_grad()
        functional.cross_entropy(spikes(x), labels).backward()
        optimizer.step()
    x, labels = intervals(500)
    with torch.no_grad():
        return (spikes(x).argmax(1) == labels).float().mean().item()


def test_a_network_learns_intervals_only_with_delays():
    assert trained_accuracy(max_delay=8) > 0.95
    assert trained_accuracy(max_delay=0) < 0.65


def test_attach_finds_and_regulates_delayed_layers():
    net = nn.Sequential(
        DelayedConv2d(1, 3, 3, 4),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Flatten(),
        DelayedLinear(27, 5, 4),
        snn.Leaky(beta=0.9, init_hidden=True),
    )
    homeostasis = LinearHomeostasis(0.1, target=0.3, param="delay").attach(net)
    assert [cell.connection.delay for cell in homeostasis.cells.values()] == [net[0].delay, net[3].delay]
    before = [net[0].delay.clone(), net[3].delay.clone()]
    for _ in range(5):
        net(torch.rand(2, 1, 5, 5))
    homeostasis.step()
    assert not any(map(torch.equal, before, (net[0].delay, net[3].delay)))
