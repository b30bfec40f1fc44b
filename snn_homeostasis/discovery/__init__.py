"""Finds which layer drives which neuron.

`chains` reads the order of calls from an `nn.Sequential`. `tracing` runs any other model on an
example: `arguments` reads the example, `isolation` copies what the run may change, `recorder` and
`provenance` follow the data from layers to neurons, and `alignment` compares channels with neurons.
Both give `links`. `pairing` holds what the user names against them, `readouts` says what to leave
out, `finding` names the cells and `building` builds them.
"""

from .arguments import arguments_of
from .building import build_cells, closed_on_error, warn_about
from .finding import FoundCell, find_cells, require_model
from .isolation import eagerly, isolated, keeping_random_states
from .links import Choice, Pairs

__all__ = [
    "Choice",
    "FoundCell",
    "Pairs",
    "arguments_of",
    "build_cells",
    "closed_on_error",
    "eagerly",
    "find_cells",
    "isolated",
    "keeping_random_states",
    "require_model",
    "warn_about",
]
