# %% [markdown]
# # Delays
#
# A spike takes time to arrive. With a delay for each synapse, a neuron can ask *when* its inputs
# spike, not only how often. Here is one neuron with two inputs, of which the second spikes five steps
# late. It spikes if both arrive together, and a delay of the first one sees to that. The page takes
# about a minute.

# %%
import snntorch as snn
import torch
from torch import Tensor, nn

from snn_homeostasis import DelayedLinear

inputs = torch.zeros(20, 1, 2)  # [T, B, inputs]
inputs[3, 0, 0] = inputs[8, 0, 1] = 1
layer = DelayedLinear(2, 1, max_delay=10, bias=False, step_mode=False)  # takes all steps at once
lif = snn.Leaky(beta=0.5, init_hidden=True)
nn.init.constant_(layer.weight, 0.6)  # a threshold is 1
for delays in ([0.0, 0.0], [5.0, 0.0]):
    with torch.no_grad():
        layer.delay.copy_(torch.tensor([delays]))
    lif.reset_mem()
    steps = [step for step, current in enumerate(layer(inputs)) if lif(current) > 0]
    print(f"delays {delays}: the neuron spikes at steps {steps}")

# %% [markdown]
# ## A task that lies in time
#
# Delays can be learnt. Two ears of ten fibres each hear one click. Each fibre spikes once, so that
# spike counts say nothing. The lag between the ears says where the click came from: five lags, five
# classes. The onset is random, and each spike jitters by up to one step.

# %%
from helpers import mean_and_spread, options, print_table  # noqa: E402
from snntorch import surrogate  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

args = options("04_delays.png", seeds=[0, 1, 2], batches=400, windows=125)
FIBRES, DURATION = 10, 30
LAGS = torch.tensor([-8, -4, 0, 4, 8])  # steps by which the right ear is late


def clicks(count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns spikes [T, B, fibres of both ears], and the class of each click."""
    place = torch.randint(len(LAGS), (count,), generator=source)
    lag = LAGS[place].unsqueeze(1)
    late = torch.cat([(-lag).clamp_min(0), lag.clamp_min(0)], 1).repeat_interleave(FIBRES, 1)
    onset = torch.randint(1, 5, (count, 1), generator=source)
    jitter = torch.randint(-1, 2, late.shape, generator=source)
    spikes = torch.zeros(DURATION, *late.shape)
    return spikes.scatter_(0, (late + onset + jitter).unsqueeze(0), 1.0), place


# %% [markdown]
# The net is one layer of five neurons, one for each class. The neuron with the most spikes names the
# lag. The membranes forget by half in each step, so that they detect coincidence. There are four
# nets:
#
# - without delays;
# - without delays and with a slow membrane, which remembers some of the order;
# - with random delays that stay as they are;
# - with delays that are learnt.
#
# Surrogate gradients reach the delays, so these are one more group of the optimizer. An optimizer
# knows no limits: `clamp_delay_` comes after each of its steps.


# %%
class Locator(nn.Module):
    def __init__(self, *, delayed: bool, beta: float = 0.5) -> None:
        super().__init__()
        sizes = 2 * FIBRES, len(LAGS)
        self.layer = DelayedLinear(*sizes, max_delay=10, step_mode=False) if delayed else nn.Linear(*sizes)
        self.lif = snn.Leaky(beta=beta, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=5))
        nn.init.uniform_(self.layer.weight, 0, 0.3)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        self.lif.reset_mem()
        return sum(self.lif(current) for current in self.layer(x))


def train(seed: int, *, learn_delays: bool = False, **settings: bool | float) -> tuple[Locator, float]:
    torch.manual_seed(seed)
    net, source = Locator(**settings), torch.Generator().manual_seed(seed)
    groups = [{"params": [net.layer.weight, net.layer.bias], "lr": 0.01}]
    if learn_delays:
        groups.append({"params": [net.layer.delay], "lr": 0.2})  # in steps
    optimizer = torch.optim.Adam(groups)
    for _ in range(args.batches):
        x, place = clicks(64, source)
        loss = cross_entropy(net(x), place)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if learn_delays:
            net.layer.clamp_delay_()
    with torch.no_grad():
        x, place = clicks(2000, torch.Generator().manual_seed(1000))
        return net, (net(x).argmax(1) == place).float().mean().item()


NETS = {
    "no delays": {"delayed": False},
    "no delays, slow membrane": {"delayed": False, "beta": 0.95},
    "random delays, kept": {"delayed": True},
    "delays learnt": {"delayed": True, "learn_delays": True},
}
trained = {name: [train(seed, **settings) for seed in args.seeds] for name, settings in NETS.items()}
print_table(
    ["net", "test accuracy"],
    ([name, mean_and_spread(score for _, score in runs)] for name, runs in trained.items()),
)

# %% [markdown]
# Chance is 20 %. Random delays help already: with many synapses to choose from, the weights pick those
# that fit. Try them first. Learnt delays are better.
#
# What have they learnt? For the last seed, here is the lag of each neuron's class, and by how much
# more its synapses delay the left ear than the right one (means weighted by the weights). The closer
# the two columns, the better the early ear waits for the late one:

# %%
net, _ = trained["delays learnt"][-1]
weight, delay = net.layer.weight.detach().clamp_min(0), net.layer.delay.detach()
left, right = ((w * d).sum(1) / w.sum(1) for w, d in zip(weight.chunk(2, 1), delay.chunk(2, 1), strict=True))
print_table(
    ["neuron", "lag", "delay left - right"],
    ([f"{i + 1}", f"{LAGS[i]}", f"{left[i] - right[i]:.1f}"] for i in range(len(LAGS))),
)

# %% [markdown]
# ## Homeostasis of a delay
#
# `param="delay"` reverses the sign: a neuron that spikes too little gets *shorter* delays. The rule
# moves all delays of a neuron together. That changes when spikes arrive, not how many, and not how
# well they coincide. What changes the rate is the limit: delays that reach 0 stay there, the next
# ones join them, and spikes that left together arrive together.
#
# Four cells share one homeostasis, with settings of their own. Each is 32 neurons with 64 inputs
# and random delays of 0 to 16 steps:
#
# - **volleys**: all inputs spike at once, every 16 steps, and too few spikes come out;
# - **Poisson**: the same mean rate without synchrony, again too few;
# - **too many**: volleys, stronger weights, and a target below the rate;
# - **by bias**: as the first, with the bias regulated in place of the delays.

# %%
import warnings  # noqa: E402

from snn_homeostasis import Cell, LinearHomeostasis, RateHistory, plot_rates  # noqa: E402

PERIOD = 16
CASES = {  # the weight of all synapses, and the settings
    "volleys": (0.04, {}),
    "Poisson": (0.04, {}),
    "too many": (0.06, {"target": 0.02}),
    "by bias": (0.04, {"param": "bias", "plasticity": 0.002}),
}
torch.manual_seed(0)
homeostasis = LinearHomeostasis(plasticity=0.1, target=0.05, param="delay")
cells = {}
for name, (weight, settings) in CASES.items():
    layer = DelayedLinear(64, 32, max_delay=PERIOD)
    nn.init.constant_(layer.weight, weight)
    nn.init.zeros_(layer.bias)
    cells[name] = layer, snn.Leaky(beta=0.8, init_hidden=True)
    homeostasis.register_cell(name, Cell(*cells[name]), **settings)
history = RateHistory(homeostasis)


@torch.no_grad()
def show_volleys(count: int = 6) -> None:
    for step in range(count * PERIOD):
        volley = torch.full((8, 64), float(step % PERIOD == 0))
        poisson = torch.bernoulli(torch.full((8, 64), 1 / PERIOD))
        for name, (layer, lif) in cells.items():
            lif(layer(poisson if name == "Poisson" else volley))


def print_delays() -> None:
    """Prints the mean delay of each cell, and how far the delays of a neuron spread."""
    found = {name: layer.delay.detach() for name, (layer, _) in cells.items()}
    rows = [[name, f"{delay.mean():.1f}", f"{delay.std(1).mean():.1f}"] for name, delay in found.items()]
    print_table(["cell", "mean delay", "spread"], rows)


show_volleys()
print(homeostasis.summary())
print_delays()
with warnings.catch_warnings(record=True) as heard:  # they are printed below
    warnings.simplefilter("always")
    for _ in range(args.windows):
        homeostasis.step()
        show_volleys()

# %%
print(homeostasis.summary())
print_delays()
print("\nWarnings:", *(warning.message for warning in heard), sep="\n")

# %% [markdown]
# - **volleys**: It works. Delays become shorter until enough of them stand at 0, where their spikes
#   coincide. The rule holds the rate there. It costs a part of the spread of the delays.
# - **Poisson**: It does nothing. Delays run toward 0, and the rate stays too low. Which spikes come
#   together is chance before and after.
# - **too many**: It makes matters worse. Longer delays also end together, at the other limit, so the
#   rate does not fall, and the library warns.
# - **by bias**: It works, and leaves the delays alone.
#
# So regulate the delays of neurons that are too quiet and driven by volleys, and where timing is
# what you want to change. To lower a rate, regulate the bias or the weight. What was learnt in the
# differences of delays is lost where they meet a limit.
#
# The picture shows the rates. The grey lines are the two targets, the lower one that of "too many".

# %%
figure = plot_rates(history)
figure.savefig(args.output)
