# %% [markdown]
# # Rescue a silent network
#
# A deep spiking net often never learns, because its later layers never fire: no spike, no gradient.
# First see it; then wake the net up with one line; then keep it awake with two lines in the
# training loop. Here is all of it:

# %%
import torch
from helpers import (
    STEPS,
    accuracy,
    batches,
    dense_net,
    digits,
    options,
    print_runs,
    spike_counts,
)
from torch.nn.functional import cross_entropy

from snn_homeostasis import LinearHomeostasis, RateHistory, plot_rates

torch.manual_seed(0)
train_x, train_y, test_x, test_y = digits()
net = dense_net(hidden=6)
homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
with homeostasis.watching() as seen, torch.no_grad():
    spike_counts(net, test_x)
print(seen.summary())
print(homeostasis.calibrate(train_x[:512], num_steps=STEPS, progress=False))

# %% [markdown]
# The first table is what the test images see in the new net: from the third hidden layer on
# nearly all neurons are silent. `calibrate` then shows 512 training images. It records what
# reaches each layer, finds the bias at which each neuron fires at 0.1 spikes per step, and goes on
# with the next layer. Its report says the rates before and after, and by how much the biases moved.
#
# ## Four trainings
#
# The same loop four times: the plain net; the two lines alone; the net calibrated and then left
# alone; the net calibrated and held by the two lines. Five seeds, eight epochs, a few minutes.
# `snn_homeostasis` needs neither labels nor gradients, so silence cannot stop it.

# %%
args = options("01_rescue_a_silent_network.png", seeds=[0, 1, 2, 3, 4], epochs=8)


def train(seed: int, *, calibrated: bool, regulated: bool) -> tuple[torch.nn.Module, RateHistory]:
    torch.manual_seed(seed)
    net = dense_net(hidden=6)
    homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)  # the first of two lines
    history = RateHistory(homeostasis)
    if calibrated:
        homeostasis.calibrate(train_x[:512], num_steps=STEPS, progress=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(args.epochs):
        for x, y in batches(train_x, train_y, seed):
            loss = cross_entropy(spike_counts(net, x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if regulated:
                homeostasis.step()  # the second
    return net, history


def judge(net: torch.nn.Module) -> dict[str, float]:
    """The figures of the test images; the readout, the last layer, counts as the others do."""
    with LinearHomeostasis(target=0.1, param="bias").attach(net).watching() as seen:
        score = accuracy(net, test_x, test_y)
    return {"accuracy": score, **seen.metrics()}


TREATMENTS = {
    "plain": {"calibrated": False, "regulated": False},
    "two lines": {"calibrated": False, "regulated": True},
    "calibrated": {"calibrated": True, "regulated": False},
    "calibrated and two lines": {"calibrated": True, "regulated": True},
}
results: dict[str, list[dict[str, float]]] = {}
histories: dict[str, RateHistory] = {}
for name, treatment in TREATMENTS.items():
    results[name] = []
    for seed in args.seeds:
        net, histories[name] = train(seed, **treatment)
        results[name].append(judge(net))

# %% [markdown]
# ## The table
#
# On the test images, mean ± standard deviation over the seeds. Chance is 10 %.

# %%
FIGURES = {"accuracy": ".1%", "rate": ".3f", "silent": ".1%", "saturated": ".1%"}
print_runs("net", results, FIGURES)

# %% [markdown]
# The plain net stays dead, and each of the other three learns. Between them the difference is within
# the spread. During training the optimizer moves the rates away from the target, since it wants
# more spikes than that, and λ falls, so that it may. The picture shows the last seed of "calibrated
# and two lines": one curve for each layer, the grey line is the target.

# %%
figure = plot_rates(histories["calibrated and two lines"])
figure.savefig(args.output)
