# %% [markdown]
# # Extend it
#
# Your own rule, neuron, layer, estimate of the rate or bound is one registration or one small class.
# The rest of the package stays as it is. First a rule. It counts in factors: a rate that is twice
# too high pushes as hard as one that is twice too low. The page takes about ten seconds.

# %%
import snntorch as snn
import torch
from helpers import STEPS, digits, options, print_table
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from snn_homeostasis import Cell, Homeostasis, Settings


class FactorHomeostasis(Homeostasis):
    def drive(self, rate: Tensor, target: float) -> Tensor:  # how much a neuron wants its bias to rise
        return torch.log2(target / rate.clamp_min(0.001))

    def parts(self, cell: Cell, state: object, rate: Tensor, target: float) -> tuple[Tensor, Tensor]:
        return super().parts(cell, state, rate.mean(0, keepdim=True), target)


torch.manual_seed(0)
images, _, test_images, _ = digits()
net = nn.Sequential(nn.Linear(64, 50), snn.Leaky(beta=0.9, init_hidden=True))
homeostasis = FactorHomeostasis(Settings(plasticity=0.01, target=0.1, param="bias")).attach(net)
for _ in range(50):
    net[1].reset_mem()
    with torch.no_grad():
        for _ in range(STEPS):
            net(images[:256])
    homeostasis.step()
print(homeostasis.summary())

# %% [markdown]
# `drive` is all that a rule needs. It is asked for each sample, and the answers are averaged. The
# mean of a logarithm is not the logarithm of the mean, so this rule also overrides `parts` and hands
# on the mean rate of the batch. The base class `Homeostasis` takes the settings as one object.
#
# ## The bench
#
# Each net below is one layer and 50 neurons. The bench regulates it round by round, one batch of
# images each, and then watches it on the test images.

# %%
from snn_homeostasis import LinearHomeostasis  # noqa: E402
from snn_homeostasis.monitoring import Watch  # noqa: E402

args = options("05_extend_it.png", rounds=100)


@torch.no_grad()
def show(net: nn.Sequential, x: Tensor) -> None:
    net[1].reset_mem()
    for _ in range(STEPS):
        net(x)


def regulated(net: nn.Sequential, homeostasis: Homeostasis, batch: int = 64) -> Watch:
    homeostasis.attach(net)
    for _ in range(args.rounds):
        show(net, images[torch.randint(len(images), (batch,))])
        homeostasis.step()
    with homeostasis.watching() as seen:
        show(net, test_images)
    return seen


def leaky() -> snn.Leaky:
    return snn.Leaky(beta=0.9, init_hidden=True)


# %% [markdown]
# ## Your neuron
#
# This neuron tires: each spike raises its threshold, which then relaxes. It is no class of snntorch,
# and it returns a dictionary. One registration says where the spikes are. Then `attach` finds it.

# %%
from snn_homeostasis import one_step, spikes_of  # noqa: E402


class Tiring(nn.Module):
    def reset_mem(self) -> None:
        self.mem = self.fatigue = torch.zeros(())

    def forward(self, current: Tensor) -> dict[str, Tensor]:
        self.mem = 0.9 * self.mem + current
        spikes = (self.mem > 1 + self.fatigue).float()
        self.mem = self.mem * (1 - spikes)
        self.fatigue = 0.95 * self.fatigue + 0.5 * spikes
        return {"spikes": spikes, "threshold": 1 + self.fatigue}


@spikes_of.register
def _(neuron: Tiring, output: dict[str, Tensor]) -> tuple[Tensor]:
    return one_step(output["spikes"])  # [B, *N]


net = nn.Sequential(nn.Linear(64, 50), Tiring())
print(regulated(net, LinearHomeostasis(plasticity=0.02, target=0.1, param="bias")).summary())

# %% [markdown]
# ## Your layer
#
# The weights of this layer are all excitatory: it keeps a raw parameter and takes its softplus. A
# rule sees a layer only through its connection, which knows how the neurons lie against the
# parameters. Here they lie as in any dense layer, and one line says which parameter plays the
# weight. The rule presumes that more of the parameter means more spikes. Softplus rises, so it does.

# %%
from snn_homeostasis import DenseConnection, connect  # noqa: E402


class Excitatory(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(outputs, inputs) - 6)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, softplus(self.raw))


@connect.register(Excitatory)
class ExcitatoryConnection(DenseConnection):
    names = {"weight": "raw"}  # noqa: RUF012


net = nn.Sequential(Excitatory(64, 50), leaky())
print(regulated(net, LinearHomeostasis(plasticity=0.1, target=0.1, param="weight")).summary())

# %% [markdown]
# ## Your estimate of the rate
#
# The default, `RecentRate`, knows only what came since the last step. `CumulativeRate` never forgets,
# so that spikes fired under old parameters still count. The one below lies in between: it forgets
# half at each step.
#
# An estimator keeps a `total` of spikes, `[B, *N]`; the rate is this total divided by `weight`. It
# defines `update` and `weight`. The base class saves and loads the tensors that `state` names.

# %%
from snn_homeostasis import CumulativeRate, RateEstimator, RecentRate  # noqa: E402


class HalvingRate(RateEstimator):
    state = (*RateEstimator.state, "seen")

    def reset(self) -> None:
        super().reset()
        self.seen = torch.zeros(())  # steps, the older ones for less

    def update(self, spikes: Tensor) -> None:  # [T, B, *N]
        self.total_for(spikes[0]).add_(spikes.sum(0))
        self.seen += len(spikes)
        self.count(len(spikes), spikes.device)

    def close(self) -> None:  # after each step of the rule
        self.total /= 2
        self.seen /= 2

    @property
    def weight(self) -> float:
        return self.seen.item()


rows = []
for estimator in (CumulativeRate, RecentRate, HalvingRate):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 50), leaky())
    seen = regulated(
        net, LinearHomeostasis(plasticity=0.02, target=0.1, param="bias", rate=estimator), batch=8
    )
    rows.append([estimator.__name__, f"{seen.metrics()['rate']:.3f}", f"{seen.metrics()['error']:.1%}"])
print_table(["estimate", "rate", "error"], rows)

# %% [markdown]
# Each saw 8 images per step. "error" is how far a neuron is from its target, on average.
#
# ## Your bound
#
# A bound turns the two magnitudes of an update, up and down, into the change of the parameter. Any
# function of the three can be one; a bound with limits subclasses `Bounds` and defines `__call__`.
# With this function no weight changes its sign, so that excitation stays excitation.


# %%
def keep_sign(param: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    change = pos - neg
    nearly_zero = -0.9 * param
    return torch.where(param > 0, torch.maximum(change, nearly_zero), torch.minimum(change, nearly_zero))


rows = []
for name, bound in (("no bound", None), ("your bound", keep_sign)):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 50), leaky())
    before = net[0].weight.detach().clone()
    seen = regulated(net, LinearHomeostasis(0.002, target=0.1, param="weight", bounds=bound))
    changed = (before * net[0].weight < 0).float().mean().item()
    rows.append([name, f"{seen.metrics()['rate']:.3f}", f"{changed:.1%}"])
print_table(["weights", "rate", "signs changed"], rows)

# %% [markdown]
# ## Your rule, with both sides of a synapse
#
# A rule such as STDP also needs the spikes that enter a layer. `listen_to_inputs` hands them to a
# listener, step by step. `presyn_receptive` and `postsyn_receptive` lay both sides out against the
# weight: multiply, and sum over the positions. The same lines work for `Linear` and for
# convolutions. The result goes into the slot of the cell, as two magnitudes, up and down.
#
# This rule grows a synapse whose input spiked shortly before the neuron, and shrinks the others.


# %%
class Stdp:
    training = True  # a listener may be switched off

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.reset()
        cell.listen_to_inputs(self)

    def reset(self) -> None:
        self.trace = torch.zeros(())

    def update_step(self, inputs: Tensor) -> None:  # [B, *in]
        self.trace = torch.maximum(0.8 * self.trace, inputs.float())

    def __call__(self) -> None:  # after each step
        connection = self.cell.connection
        before = connection.presyn_receptive(self.trace)
        after = connection.postsyn_receptive(self.cell.neuron.spike.float())
        up = (before * after).sum(-1).mean(0)
        down = after.sum(-1).mean(0) * connection.weight
        self.cell.updater.weight = (0.0005 * up, 0.0005 * down)


# %% [markdown]
# Two layers with the same start see the same images, whose pixels spike at random. Both learn by
# this rule. In the second one homeostasis adds to the same slot: `homeostasis()` is the rule alone,
# here for one cell. `update()` applies the slots of all cells: what several rules have added is
# summed, bounded once and applied once.

# %%
import copy  # noqa: E402

from snn_homeostasis import ClampBounds, RateHistory, plot_rates  # noqa: E402

torch.manual_seed(0)
first = nn.Linear(64, 50, bias=False)
nn.init.uniform_(first.weight, 0, 0.05)
cells = {"STDP alone": Cell(first, leaky()), "with homeostasis": Cell(copy.deepcopy(first), leaky())}
rules = [Stdp(cell) for cell in cells.values()]
homeostasis = LinearHomeostasis(plasticity=0.005, target=0.1, param="weight", bounds=ClampBounds(0, 1))
for name, cell in cells.items():
    homeostasis.register_cell(name, cell)
history = RateHistory(homeostasis)


@torch.no_grad()
def learn(x: Tensor) -> None:
    for rule in rules:
        rule.reset()
        rule.cell.neuron.module.reset_mem()
    for _ in range(STEPS):
        pixels = torch.bernoulli(0.5 * x)
        for rule in rules:
            layer, neuron = rule.cell.connection.layer, rule.cell.neuron.module
            neuron(layer(pixels))
            rule()


for _ in range(args.rounds):
    learn(images[torch.randint(len(images), (64,))])
    homeostasis(cells=["with homeostasis"])
    homeostasis.update()
print(homeostasis.summary())

# %% [markdown]
# STDP alone runs away: more spikes, more growth, more spikes. With homeostasis the rate stays where
# the two rules balance, a little above the target, which is the grey line.

# %%
figure = plot_rates(history)
figure.savefig(args.output)
