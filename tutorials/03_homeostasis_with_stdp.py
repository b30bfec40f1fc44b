# %% [markdown]
# # Homeostasis with STDP
#
# Spike-timing-dependent plasticity (STDP) learns without labels and without gradients: a synapse
# grows if its input spiked shortly before the neuron, and shrinks if it did not. Alone it fails.
# The neuron that fires first learns to fire first, and in the end a few neurons take all the
# spikes. Homeostasis brings the others back.
#
# Here one layer sees handwritten digits. 64 pixels spike at random, the brighter the more often.
# Each spike of a neuron inhibits all other neurons, so that they compete for the image.

# %%
import snntorch as snn
import torch
from helpers import batches, digits, options, print_runs
from torch import Tensor, nn

from snn_homeostasis import Cell, LinearHomeostasis

STEPS, NEURONS, STRONGEST = 50, 64, 0.03  # the strongest weight; a threshold is 1


class Competition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, NEURONS)
        self.lif = snn.Leaky(beta=0.95, init_hidden=True, reset_mechanism="zero")
        nn.init.uniform_(self.fc.weight, 0, STRONGEST / 2)
        nn.init.zeros_(self.fc.bias)

    @torch.no_grad()
    def forward(self, images: Tensor, learn: bool = False) -> Tensor:
        """Shows a batch of images and returns the spike counts of the neurons, [B, 64]."""
        self.lif.reset_mem()
        traces, spikes, counts = torch.zeros_like(images), torch.zeros(len(images), NEURONS), 0
        for _ in range(STEPS):
            pixels = torch.bernoulli(0.5 * images)
            others = spikes.sum(1, keepdim=True) - spikes
            spikes = self.lif(self.fc(pixels) - 0.3 * others)
            traces = torch.maximum(0.8 * traces, pixels)
            if learn:  # the weights of a neuron that spikes move toward the traces of its inputs
                change = STRONGEST * spikes.T @ traces - spikes.sum(0).unsqueeze(1) * self.fc.weight
                self.fc.weight.add_(change, alpha=0.1 / len(images))
            counts = counts + spikes
        return counts


# %% [markdown]
# ## With and without
#
# Two layers with the same start see each image twice. STDP owns the weights, homeostasis the
# biases, which act as thresholds that adapt. The target is one spike in five steps for the whole
# layer, shared by its neurons. `Cell` names the layer and its neurons by hand, and `step()` comes
# once per batch.

# %%
train_x, train_y, test_x, test_y = digits()


def live(seed: int, epochs: int, *, learn: bool, regulate: bool) -> tuple[Competition, LinearHomeostasis]:
    torch.manual_seed(seed)
    net = Competition()
    homeostasis = LinearHomeostasis(target=0.2 / NEURONS, param="bias")
    homeostasis.register_cell("layer", Cell(net.fc, net.lif))
    for _ in range(epochs):
        for x, _ in batches(train_x, train_y, seed):
            net(x, learn)
            if regulate:
                homeostasis.step()
    return net, homeostasis


for regulate in (False, True):
    net, homeostasis = live(seed=0, epochs=2, learn=True, regulate=regulate)
    with homeostasis.watching() as seen:
        net(test_x)
    print(seen.summary())

# %% [markdown]
# The first table is STDP alone: nearly all neurons are silent. In the second, with homeostasis,
# all of them take part.
#
# ## Three treatments
#
# What has a layer learnt? Ask a linear read-out (logistic regression) that sees nothing but spike
# counts. It learns from the training images and names the digits of the test images. As a check the
# third treatment is homeostasis without any learning. Five seeds, four epochs, about 40 seconds.

# %%
from sklearn.linear_model import LogisticRegression  # noqa: E402

args = options("03_homeostasis_with_stdp.png", seeds=[0, 1, 2, 3, 4], epochs=4)
TREATMENTS = {
    "STDP alone": {"learn": True, "regulate": False},
    "STDP and homeostasis": {"learn": True, "regulate": True},
    "homeostasis alone": {"learn": False, "regulate": True},
}


def shares(counts: Tensor) -> Tensor:
    """The share that each neuron has in all spikes."""
    return counts.sum(0) / counts.sum()


def judge(net: Competition, homeostasis: LinearHomeostasis) -> dict[str, float]:
    net.eval()  # freezes homeostasis, too
    read_out = LogisticRegression(max_iter=5000).fit(net(train_x), train_y)
    with homeostasis.watching() as seen:
        counts = net(test_x)
    busiest = shares(counts).topk(NEURONS // 10).values.sum().item()
    return {**seen.metrics(), "busiest tenth": busiest, "read-out": read_out.score(counts, test_y)}


results: dict[str, list[dict[str, float]]] = {name: [] for name in TREATMENTS}
nets: dict[str, Competition] = {}
for name, treatment in TREATMENTS.items():
    for seed in args.seeds:
        nets[name], homeostasis = live(seed, args.epochs, **treatment)
        results[name].append(judge(nets[name], homeostasis))

# %% [markdown]
# ## The table
#
# On the test images, mean ± standard deviation over the seeds. "silent" are neurons that never
# spiked, "busiest tenth" is the share that the busiest tenth of the neurons has in all spikes,
# "read-out" is how many digits the read-out names. Chance is 10 %.

# %%
print_runs("layer", results, {"silent": ".1%", "busiest tenth": ".1%", "rate": ".4f", "read-out": ".1%"})

# %% [markdown]
# STDP alone learns little more than the average of all digits. With homeostasis the read-out names
# most digits. But look at the last row: the random weights of the start, with homeostasis alone, do
# nearly as well. That all neurons take part is the larger half of the gain.
#
# ## The picture
#
# Left and middle is what each neuron has learnt, for the last seed. A square is one neuron: its 64
# weights, laid out as the pixels they come from, the busiest neuron first. Right is who spikes.

# %%
import matplotlib.pyplot as plt  # noqa: E402

figure, panels = plt.subplots(1, 3, figsize=(13, 5), layout="constrained", width_ratios=(1, 1, 1.2))
ranked = {name: shares(net(test_x)).sort(descending=True) for name, net in nets.items()}
for axes, name in zip(panels, ("STDP alone", "STDP and homeostasis"), strict=False):
    fields = nets[name].fc.weight.detach()[ranked[name].indices].reshape(8, 8, 8, 8)
    framed = nn.functional.pad(fields, (0, 1, 0, 1), value=torch.nan)
    page = framed.permute(0, 2, 1, 3).reshape(72, 72)
    axes.imshow(page.numpy(), cmap="gray_r", vmin=0, vmax=STRONGEST)
    axes.set(title=name, xticks=[], yticks=[])
for form, (name, (share, _)) in zip((":", "-", "--"), ranked.items(), strict=True):
    panels[2].plot(100 * share.numpy(), form, color="black", linewidth=2, label=name)
panels[2].set(title="Who spikes", xlabel="neurons, the busiest first", ylabel="share of all spikes [%]")
panels[2].set(yscale="log", ylim=(0.01, 100))
figure.legend(loc="outside lower right", ncols=3, frameon=False)
figure.savefig(args.output)

# %% [markdown]
# ## Other learning rules
#
# STDP above is two lines of this script. The trainers of the `inferno` library (`STDP`,
# `TripletSTDP`, `MSTDP`, `MSTDPET`) run on a `Cell` as they are, through
# `trainer.register_cell("layer", cell)`, and may share the weights with homeostasis. A rule of your own
# that sees both sides of a synapse is in the last tutorial.
#
# The homeostatic rule comes from Nadafian and Ganjtabesh (2020), "Bio-plausible Unsupervised Delay
# Learning for Extracting Temporal Features in Spiking Neural Networks", arXiv 2011.09380.
