"""Models as folders that the transformers library loads by itself.

The files whose names have `_bdh` are what is exported, as they stand; they know nothing of this project, and nothing
here imports them. `configuration_bdh`, `tokenization_bdh`, `memory_bdh`, `layers_bdh` and `modeling_bdh` go with every
model, `modeling_bdh_hierarchical` and `modeling_bdh_composed` with those that need them.
"""

from .export import KINDS as KINDS
from .export import export as export
