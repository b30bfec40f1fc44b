# %% [markdown]
# # Quickstart
#
# A spiking net with six hidden layers comes out of its constructor dead: each layer passes fewer
# spikes on, until there are none. One call brings every layer to 0.1 spikes per step. It needs no
# labels and no gradients, and there is nothing to tune. `before` and `after` count spikes on images
# that the call has not seen. The page takes about half a minute.

# %%
import torch
from helpers import STEPS, accuracy, batches, before_and_after, dense_net, digits, options, spike_counts

from snn_homeostasis import LinearHomeostasis

torch.manual_seed(0)
train_x, train_y, test_x, test_y = digits()
net = dense_net(hidden=6)
homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
with homeostasis.watching() as before, torch.no_grad():
    spike_counts(net, test_x)
print(before.summary())

# %%
report = homeostasis.calibrate(train_x[:512], num_steps=STEPS, progress=False)
with homeostasis.watching() as after, torch.no_grad():
    spike_counts(net, test_x)
print(after.summary())

# %% [markdown]
# `attach` found the seven pairs of `Linear` and `Leaky`; a cell is named by the path of its neuron
# in the model. "silent" are neurons that did not spike at all, "saturated" those that spiked at
# every step.
#
# ## Does it learn now?
#
# Two more nets with the same start: one is trained as it is, the other after `calibrate`, with one
# added line in the loop. `step()` comes after `optimizer.step()`. It moves each bias toward the
# target, at first by up to 0.05 and later less and less, so that in the end the optimizer decides.

# %%
from snn_homeostasis import RateHistory, plot_rates  # noqa: E402

args = options("00_quickstart.png", epochs=4)


def trained(*, regulate: bool) -> tuple[float, RateHistory]:
    torch.manual_seed(0)
    net = dense_net(hidden=6)
    homeostasis = LinearHomeostasis(target=0.1, param="bias").attach(net)
    history = RateHistory(homeostasis)
    if regulate:
        homeostasis.calibrate(train_x[:512], num_steps=STEPS, progress=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(args.epochs):
        for x, y in batches(train_x, train_y):
            loss = torch.nn.functional.cross_entropy(spike_counts(net, x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if regulate:
                homeostasis.step()
    return accuracy(net, test_x, test_y), history


plain, _ = trained(regulate=False)
regulated, history = trained(regulate=True)
print(f"accuracy after {args.epochs} epochs: plain {plain:.1%}, calibrated and regulated {regulated:.1%}")

# %% [markdown]
# ## Look at it
#
# `history` holds the rate of each layer at each step, and the shares of silent and saturated
# neurons. The grey line is the target.

# %%
plot_rates(history)

# %% [markdown]
# And the first net, before and after `calibrate`, on the test images:

# %%
figure = before_and_after(before, after, target=0.1)
figure.savefig(args.output)
