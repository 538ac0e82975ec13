"""python -m bdh export transformers: a checkpoint as a folder for the transformers library."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import save_file

from .. import checkpoint
from ..config import config_to_dict
from ..errors import CheckpointError
from ..models import Model

HERE = Path(__file__).parent
KINDS = {
    "flat": "BdhFlat",
    "hebbian": "BdhHebbian",
    "transformer": "BdhTransformer",
    "hierarchical": "BdhHierarchical",
    "composed": "BdhComposed",
}
"""How the names of a kind's classes begin."""
CODE = ("configuration_bdh.py", "layers_bdh.py", "memory_bdh.py", "modeling_bdh.py", "tokenization_bdh.py")
"""The files of this folder that are exported, as they stand."""
FURTHER = {
    "hierarchical": ("modeling_bdh_hierarchical.py",),
    "composed": ("modeling_bdh_composed.py", "modeling_bdh_hierarchical.py"),
}
"""What is exported beside these for some kinds, the file of the model first."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\\nUser: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\nBot: ' }}"
    "{% else %}{{ raise_exception('the roles are user and assistant') }}{% endif %}"
    "{{ message['content'] | trim | replace('\\n', ' ') }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nBot:' }}{% endif %}"
)
"""A conversation in the form that dialogues here have: lines of User and of Bot."""
_END = 10
"""The byte that ends a line."""


def export(
    model: Model[Any],
    folder: str | Path,
    *,
    name: str | None = None,
    dtype: torch.dtype | None = None,
    stop_at_newline: bool | None = None,
) -> Path:
    """Write a folder that transformers' `AutoModelForCausalLM` and `AutoTokenizer` load, and `bdh.load` too.

    Args:
        name: the title of the card, if the model has none; None is the folder's name.
        dtype: weights are stored in it; None keeps theirs.
        stop_at_newline: `generate` stops where a line ends, as an answer in a chat does; None is so for a model whose
            recipe asks it a question.

    Raises:
        CheckpointError: the folder is not empty or cannot be written, or the model's own card cannot be read.
    """
    folder = Path(os.path.abspath(folder))
    kind = model.config.kind
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is there and is not empty; choose a new or empty folder")
    provenance = model.origin.provenance if model.origin else {}
    if stop_at_newline is None:
        stop_at_newline = _asks(provenance)
    stored = {}
    for key, tensor in model.state_dict().items():
        cast = tensor.dtype if dtype is None or checkpoint.is_frequency(key) else dtype
        stored[key] = tensor.detach().to("cpu", cast).contiguous()
    texts = {
        checkpoint.CONFIG: _json(_config(model, dtype)),
        "generation_config.json": _json(_generation(stop_at_newline)),
        "tokenizer_config.json": _json(_tokenizer()),
        checkpoint.CARD: _card(model, name or folder.name),
        checkpoint.PROVENANCE: _json(provenance),
        **{file: (HERE / file).read_text(encoding="utf-8") for file in code_of(kind)},
    }
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        fresh.mkdir(parents=True)
        for file, text in texts.items():
            (fresh / file).write_text(text, encoding="utf-8")
        save_file(stored, fresh / checkpoint.WEIGHTS, metadata={"format": "pt"})
        # It is made readable by its owner alone.
        os.chmod(fresh / checkpoint.WEIGHTS, (fresh / checkpoint.CONFIG).stat().st_mode)
        if folder.exists():
            folder.rmdir()
        os.rename(fresh, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} could not be written: {checkpoint.cut(error)}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def code_of(kind: str) -> tuple[str, ...]:
    """The files that a model of the kind is exported with, and that transformers runs."""
    return tuple(sorted((*CODE, *FURTHER.get(kind, ()))))


def _asks(provenance: dict[str, Any]) -> bool:
    """Whether the recipe that made the model ends its prompt where an answer begins."""
    recipe = provenance.get("recipe")
    prompt = recipe.get("prompt") if isinstance(recipe, dict) else None
    return isinstance(prompt, str) and prompt.endswith("\nBot:")


def _config(model: Model[Any], dtype: torch.dtype | None) -> dict[str, Any]:
    kind = model.config.kind
    stem, file = KINDS[kind], FURTHER.get(kind, ("modeling_bdh.py",))[0]
    return {
        "architectures": [f"{stem}ForCausalLM"],
        "auto_map": {
            "AutoConfig": f"configuration_bdh.{stem}Config",
            "AutoModelForCausalLM": f"{file.removesuffix('.py')}.{stem}ForCausalLM",
        },
        "model_type": f"bdh_hatchery_{kind}",
        **config_to_dict(model.config),
        "torch_dtype": str(dtype or model.dtype).removeprefix("torch."),
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def _generation(stop_at_newline: bool) -> dict[str, Any]:
    """The page's own defaults; byte 0 fills up what has ended."""
    ends = {"eos_token_id": _END} if stop_at_newline else {}
    return {"do_sample": True, "temperature": 0.8, "top_k": 0, "max_new_tokens": 200, "pad_token_id": 0, **ends}


def _tokenizer() -> dict[str, Any]:
    return {
        "tokenizer_class": "BdhTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_bdh.BdhTokenizer", None]},
        "pad_token": "\x00",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _card(model: Model[Any], name: str) -> str:
    """The checkpoint's own card, for the other library."""
    own = ""
    if model.origin is not None and model.origin.folder is not None and model.origin.folder.is_dir():
        own = checkpoint.read_card(model.origin.folder)
    if not own.startswith("---\n"):
        own = f"---\npipeline_tag: text-generation\n---\n{own or _title(name, model.config.kind)}"
    try:
        card = ModelCard(own)
    except Exception as error:  # a front matter that is none, whatever reads it raises
        raise CheckpointError(f"the checkpoint's card cannot be read: {checkpoint.cut(error)}") from error
    data: Any = card.data
    data.library_name, data.pipeline_tag = "transformers", "text-generation"
    data.tags = sorted({*(data.tags or ()), "bdh", "byte-level", "custom_code"})
    files = ", ".join(f"`{file}`" for file in code_of(model.config.kind))
    return f"---\n{data}\n---\n{card.text.strip()}\n{_USAGE.format(files=files)}"


def _title(name: str, kind: str) -> str:
    what = "byte-level Transformer" if kind == "transformer" else f"{kind} byte-level Baby Dragon Hatchling model"
    return f"# {name}\n\nA {what}.\n"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


_USAGE = """
## With transformers

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

place = "user/repo"  # or this folder
model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=True)
inputs = tokenizer("In the beginning, ", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```

`trust_remote_code=True` runs {files}
of this repository: read them first, and name a `revision`. Tokens are bytes; what goes from call to call as
`past_key_values` is a memory of constant size. `bdh.load` of BDH Hatchery loads the same folder and runs none of its
code.
"""
