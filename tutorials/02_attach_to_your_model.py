# %% [markdown]
# # Attach to your model
#
# Your model is a class: layers as attributes, a `forward` with its own time loop, some pooling in
# between. `attach` takes it as it is, if you give it an example input:

# %%
import io

import snntorch as snn
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import accuracy_of, batches, digits, options, print_runs
from snntorch import surrogate
from torch import Tensor, nn

from snn_homeostasis import ClampBounds, LinearHomeostasis, RateHistory, plot_rates

STEPS = 15


def leaky() -> snn.Leaky:
    return snn.Leaky(beta=0.9, spike_grad=surrogate.fast_sigmoid(slope=25))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 8, 3, padding=1), leaky()
        self.conv2, self.lif2 = nn.Conv2d(8, 16, 3, padding=1), leaky()
        self.conv3, self.lif3 = nn.Conv2d(16, 16, 3, padding=1), leaky()
        self.fc, self.lif4 = nn.Linear(64, 10), leaky()

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 1, 8, 8)
        mem1, mem2, mem3, mem4 = (lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif3, self.lif4))
        counts = 0
        for _ in range(STEPS):
            spikes, mem1 = self.lif1(self.conv1(x), mem1)
            spikes, mem2 = self.lif2(F.max_pool2d(self.conv2(spikes), 2), mem2)
            spikes, mem3 = self.lif3(F.max_pool2d(self.conv3(spikes), 2), mem3)
            spikes, mem4 = self.lif4(self.fc(spikes.flatten(1)), mem4)
            counts = counts + spikes
        return counts


train_x, train_y, test_x, test_y = digits()
homeostasis = LinearHomeostasis(param="bias").attach(
    ConvNet(), train_x[:2], target={"lif1": 0.2, nn.Conv2d: 0.1, nn.Linear: 0.1}
)
print(homeostasis)
print(homeostasis.summary())

# %% [markdown]
# The model ran once on the example, and `attach` followed the data from each layer to each neuron;
# then it left the model as it was. A cell has the name of its neuron. A target is one number for
# all cells, or a dict by the name of a cell or by the type of its layer, as here: the first layer
# sees the image itself and may fire twice as much.
#
# `include=` and `exclude=` choose cells, and `pairs={"lif1": "conv1"}` says which layer drives a
# neuron where `attach` cannot know it.
#
# ## Train
#
# `follow(optimizer)` calls `step()` after every step of the optimizer, so that the training loop
# stays as it is. Four trainings, three seeds of six epochs each, some minutes:
#
# - **plain**: the rates are read, nothing is regulated.
# - **bias**: one number per channel, which shifts its working point and leaves its filter alone.
# - **weight**: the same amount is added to all weights of a channel.
# - **bias, bounded**: the bias stays inside [−0.05, 0.05].

# %%
args = options("02_attach_to_your_model.png", seeds=[0, 1, 2], epochs=6)
TARGETS = {"lif1": 0.2, "lif2": 0.1, "lif3": 0.1, "lif4": 0.1}


def build(
    param: str = "bias", **settings: object
) -> tuple[nn.Module, torch.optim.Optimizer, LinearHomeostasis]:
    net = ConvNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    homeostasis = LinearHomeostasis(param=param, **settings)
    return net, optimizer, homeostasis.attach(net, train_x[:2], target=TARGETS)


def learn(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    loss = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(seed: int, *, regulate: bool = True, **settings: object) -> tuple[dict[str, float], RateHistory]:
    torch.manual_seed(seed)
    net, optimizer, homeostasis = build(**settings)
    history = RateHistory(homeostasis)
    if regulate:
        homeostasis.follow(optimizer)
    for _ in range(args.epochs):
        for x, y in batches(train_x, train_y, seed):
            learn(net, optimizer, x, y)
    with homeostasis.watching() as seen:
        score = accuracy_of(net, test_x, test_y)
    return {"accuracy": score, **seen.metrics()}, history


TREATMENTS = {
    "plain": {"regulate": False},
    "bias": {},
    "weight": {"param": "weight"},
    "bias, bounded": {"bounds": ClampBounds(-0.05, 0.05)},
}
results: dict[str, list[dict[str, float]]] = {}
histories: dict[str, RateHistory] = {}
for name, treatment in TREATMENTS.items():
    results[name] = []
    for seed in args.seeds:
        result, histories[name] = train(seed, **treatment)
        results[name].append(result)

FIGURES = {"accuracy": ".1%", **{f"lif{i}/rate": ".3f" for i in (1, 2, 3, 4)}, "silent": ".1%"}
print_runs("test images", results, FIGURES)

# %% [markdown]
# Mean ± standard deviation over the seeds. Without homeostasis some layers are nearly silent at
# first; the rule wakes them, and then the optimizer decides, because λ falls with each step. So the
# rates end near the targets and not on them. A constant λ holds them better and costs accuracy:
# try `LinearHomeostasis(plasticity=0.01, …)`.
#
# ## Save and resume
#
# Save `homeostasis.state_dict()` with the model and the optimizer: it holds estimates, settings,
# and how far λ has fallen. Below a net trains for ten batches and is saved; then it goes on, and so
# does a fresh one that has loaded the file.

# %%
going = build()
going[2].follow(going[1])
first, second = list(batches(train_x, train_y))[:10], list(batches(train_x, train_y, seed=1))[:10]
for x, y in first:
    learn(*going[:2], x, y)
file = io.BytesIO()  # or a path
torch.save([part.state_dict() for part in going], file)
file.seek(0)
resumed = build()
for part, state in zip(resumed, torch.load(file), strict=True):
    part.load_state_dict(state)
resumed[2].follow(resumed[1])
for net, optimizer, _ in (going, resumed):
    for x, y in second:
        learn(net, optimizer, x, y)
pairs = zip(going[0].parameters(), resumed[0].parameters(), strict=True)
print(f"Resumed net equal to the last bit: {all(torch.equal(one, other) for one, other in pairs)}")

# %% [markdown]
# ## The picture
#
# The last seed of "bias": the rate of each layer at each step of the rule, with its targets in grey,
# and the shares of silent and saturated neurons.

# %%
figure = plot_rates(histories["bias"])
figure.savefig(args.output)
