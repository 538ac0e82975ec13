"""Models as folders that the transformers library loads by itself.

`configuration_bdh`, `modeling_bdh` and `tokenization_bdh` are what is exported, as they stand; they know nothing of
this project, and nothing here imports them.
"""

from .export import KINDS as KINDS
from .export import export as export
