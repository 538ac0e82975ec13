"""Looking inside a model: activations by the names of their places, edits for causal tests, synapses.

```python
from bdh import probe

heard = probe.record(model, b"What is a river?", ["layer.*.x_sparse"])
with probe.edited([probe.Silence("layer.0.x_sparse", [(1, 17)])], model):
    stream.feed(b"What is a river?")
```
"""

from .edits import Drive, Edit, Replace, ScaleNeurons, ScaleSynapses, Silence, edited
from .points import Point, active, points, selected
from .record import MOST_BYTES, Recorded, record
from .synapses import Synapse, strongest, synapses, turned_memory

__all__ = [
    "MOST_BYTES",
    "Drive",
    "Edit",
    "Point",
    "Recorded",
    "Replace",
    "ScaleNeurons",
    "ScaleSynapses",
    "Silence",
    "Synapse",
    "active",
    "edited",
    "points",
    "record",
    "selected",
    "strongest",
    "synapses",
    "turned_memory",
]
