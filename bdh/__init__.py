"""Baby Dragon Hatchling (BDH): byte-level language models whose memory never grows.

```python
import bdh

model = bdh.load("user/repo")  # or a folder, or a file
stream = bdh.Stream(model)
```
"""

import os

# Threads that wait must sleep: on few cores a spinning one takes the core that the others' work needs, and a byte
# takes several times as long as soon as anything else runs. OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from . import checkpoint, convert, hub
from .checkpoint import Origin
from .config import (
    ComposedConfig,
    Config,
    FlatConfig,
    HebbianConfig,
    HierarchicalConfig,
    TransformerConfig,
)
from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HatcheryError,
    MergeError,
    StateError,
    TrainingError,
)
from .load import load, save
from .models import Composed, Flat, Hebbian, Hierarchical, Model, Output, Transformer, build
from .presets import PRESETS
from .publish import push
from .sampling import Sampling
from .stream import Stream

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "CheckpointError",
    "Composed",
    "ComposedConfig",
    "Config",
    "ConfigError",
    "DataError",
    "Flat",
    "FlatConfig",
    "HatcheryError",
    "Hebbian",
    "HebbianConfig",
    "Hierarchical",
    "HierarchicalConfig",
    "MergeError",
    "Model",
    "Origin",
    "Output",
    "Sampling",
    "StateError",
    "Stream",
    "TrainingError",
    "Transformer",
    "TransformerConfig",
    "__version__",
    "build",
    "checkpoint",
    "convert",
    "hub",
    "load",
    "push",
    "save",
]
