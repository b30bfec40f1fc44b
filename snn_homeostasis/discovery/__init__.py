"""Which layer drives which neuron.

`chains` reads it off an `nn.Sequential`; `tracing` runs any other model on an example, on
copies (`isolation`), follows the data (`marks`) and checks what arrives (`alignment`). Both
give `links`, which `finding` turns into cells and `building` builds.
"""

from .building import announce, build_cells
from .finding import FoundCell, find_cells
from .links import Choice

__all__ = ["Choice", "FoundCell", "announce", "build_cells", "find_cells"]
