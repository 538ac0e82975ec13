"""What `python -m bdh export transformers` writes, loaded with the real library."""

from __future__ import annotations

import ast
import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from zoo import ZOO, assert_close, fresh, model, text

import bdh
from bdh import state as states
from bdh.cli import main
from bdh.errors import CheckpointError
from bdh.models import build
from bdh.state import HierarchicalMemory, Window
from bdh.transformers_export.export import HERE, code_of, export

ROOT = Path(__file__).parents[1]
PATCHES = ("hierarchical", "hierarchical-damped", "hierarchical-transformer")
COMPOSED = ("average", "mixture", "deep")
QUESTION = b'\nUser: What does "river" mean?\nBot:'


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The library, with a place of its own for the code that it loads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        import transformers  # noqa: PLC0415 - seconds that other tests need not wait for

        transformers.logging.set_verbosity_error()
        yield transformers


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("exported")
    return {name: export(model(name), home / name.replace("-", "_")) for name in ZOO}


@pytest.fixture(scope="module")
def loaded(library: Any, exported: dict[str, Path]) -> dict[str, Any]:
    load = library.AutoModelForCausalLM.from_pretrained
    return {name: load(folder, trust_remote_code=True).eval() for name, folder in exported.items()}


@pytest.fixture(scope="module")
def tokenizer(library: Any, exported: dict[str, Path]) -> Any:
    return library.AutoTokenizer.from_pretrained(exported["flat"], trust_remote_code=True)


def padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts of several lengths with padding before them, and the mask."""
    longest = max(len(one) for one in texts)
    ids = torch.stack([F.pad(one, (longest - len(one), 0), value=77) for one in texts])
    return ids, torch.stack([F.pad(torch.ones_like(one), (longest - len(one), 0)) for one in texts])


def assert_remembers(hears: Any, memory: Any, state: Any) -> None:
    """Both remember the same of each stream; ours has zeros where the other may have nothing yet."""
    assert torch.equal(memory.position, state.position)
    for kept, own in zip(getattr(memory, "members", ()), getattr(state, "members", ()), strict=True):
        assert_remembers(None, kept, own)
    if hasattr(state, "log_weights"):
        assert_close(memory.log_weights, state.log_weights, 10)
        assert_close(memory.predictions, state.predictions, 10)
    layers = state.memory if hasattr(state, "memory") else getattr(state, "layers", ())
    if isinstance(state, HierarchicalMemory):
        layers = (*state.global_layers, *state.local_layers)
        assert_close(memory.context, state.context, 10)
        places = torch.arange(state.patch.shape[1]) < (state.position % state.patch.shape[1])[:, None]
        assert torch.equal(memory.patch.any(-1), places)
        if hears is not None:
            assert_close(memory.patch, hears.get_input_embeddings()(state.patch) * places[..., None])
    for kept, own in zip(memory.layers, layers, strict=True):
        expected = torch.stack(own, 1) if isinstance(own, Window) else own
        assert_close(torch.zeros_like(expected) if kept is None else kept, expected, 10)


def picked(memory: Any, index: int) -> Any:
    """What is remembered of one stream."""
    one = copy.deepcopy(memory)
    one.batch_select_indices(torch.tensor([index]))
    return one


def test_the_exported_files_need_this_project_for_nothing() -> None:
    for file in code_of("composed"):
        for node in ast.walk(ast.parse((HERE / file).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in code_of("composed")
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                tops = {name.split(".")[0] for name in names}
                assert tops <= {"torch", "transformers", *sys.stdlib_module_names}


def test_the_shipped_chat_gives_our_logits_our_greedy_bytes_and_answers_in_a_pipeline(
    library: Any, tmp_path: Path
) -> None:
    own = bdh.load(ROOT / "checkpoints" / "chat", device="cpu")
    folder = export(own, tmp_path / "chat")
    other = library.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = library.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    long = tokenizer("In the beginning, " * 20, return_tensors="pt")
    with torch.no_grad():
        assert (other(**long).logits - own(long["input_ids"]).logits).abs().max() <= 1e-4
    chat = library.pipeline("text-generation", model=other, tokenizer=tokenizer)
    question = [{"role": "user", "content": 'What does "river" mean?'}]
    said = chat(question, do_sample=False, max_new_tokens=50)[0]["generated_text"][-1]
    stream = bdh.Stream(own)
    stream.feed(QUESTION)
    greedy = stream.generate(bdh.Sampling(temperature=0, max_bytes=50))
    assert said == {"role": "assistant", "content": bytes(written.byte for written in greedy).decode()}


def test_the_shipped_nestling_gives_our_logits_and_our_greedy_bytes(
    library: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nestling"
    assert main(["export", "transformers", "nestling", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "hierarchical" and set(code_of("hierarchical")) < set(told["files"])
    assert "`modeling_bdh_hierarchical.py`" in (folder / "README.md").read_text()
    own = bdh.load(folder, device="cpu")
    other = library.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    prompt = b"In the beginning, there was a small"
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        assert (other(ids).logits - own(ids).logits).abs().max() <= 1e-4
    stream = bdh.Stream(own)
    stream.feed(prompt)
    greedy = [written.byte for written in stream.generate(bdh.Sampling(temperature=0, max_bytes=40))]
    written = other.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
    assert written[0, len(prompt) :].tolist() == greedy


@pytest.mark.parametrize("name", ZOO)
def test_logits_and_memory_are_ours_however_the_bytes_are_split(loaded: dict[str, Any], name: str) -> None:
    ids = text(300, batch=2)
    own, memory = model(name)(ids), None
    with torch.no_grad():
        assert_close(loaded[name](ids).logits, own.logits, 10)
        for part in ids.split([1, 2, 127, 1, 150, 19], dim=1):
            before = own.logits[:, : part.shape[1]] if memory is None else own.logits[:, memory.length :]
            output = loaded[name](part, past_key_values=memory, use_cache=True)
            memory = output.past_key_values
            assert_close(output.logits, before[:, : part.shape[1]], 10)
    assert memory.position.tolist() == [300, 300] and memory.length == 300
    assert_remembers(loaded[name], memory, own.state)


@pytest.mark.parametrize(
    "name", ["hierarchical-damped", "hierarchical-transformer", "transformer", "average", "mixture"]
)
def test_byte_by_byte_is_one_pass(loaded: dict[str, Any], name: str) -> None:
    ids = text(37, batch=2)
    own, memory, said = model(name)(ids), None, []
    with torch.no_grad():
        for byte in ids.split(1, dim=1):
            alone = loaded[name](byte, past_key_values=memory, use_cache=False).logits
            output = loaded[name](byte, past_key_values=memory, use_cache=True)
            memory = output.past_key_values
            assert_close(output.logits, alone)
            said.append(output.logits)
    assert_close(torch.cat(said, 1), own.logits, 10)
    assert_remembers(loaded[name], memory, own.state)


@pytest.mark.parametrize("name", ZOO)
def test_padding_anywhere_is_not_heard(loaded: dict[str, Any], name: str) -> None:
    texts = [text(length, seed=length)[0] for length in (5, 150, 40)]
    ids, mask = padded(texts)
    spread, spread_mask = F.pad(ids, (3, 2)), F.pad(mask, (3, 2))
    spread = torch.cat((spread[:, :150], torch.full((3, 4), 9), spread[:, 150:]), 1)
    spread_mask = torch.cat((spread_mask[:, :150], torch.zeros(3, 4, dtype=torch.int64), spread_mask[:, 150:]), 1)
    with torch.no_grad():
        for given, heard in ((ids, mask), (spread, spread_mask)):
            output = loaded[name](given, attention_mask=heard, use_cache=True)
            for index, one in enumerate(texts):
                alone = model(name)(one[None])
                assert_close(output.logits[index, heard[index].bool()], alone.logits[0], 10)
                assert_remembers(loaded[name], picked(output.past_key_values, index), alone.state)


@pytest.mark.parametrize("name", ["hierarchical", "hierarchical-transformer", "transformer", "mixture-shared", "deep"])
def test_streams_at_different_places_are_heard_together_in_any_pieces(loaded: dict[str, Any], name: str) -> None:
    texts = [text(length, seed=length)[0] for length in (5, 60, 31, 1)]
    ids, mask = torch.full((4, 70), 9), torch.zeros(4, 70, dtype=torch.int64)
    for index, one in enumerate(texts):
        places = torch.randperm(70, generator=torch.Generator().manual_seed(index))[: len(one)].sort().values
        ids[index, places], mask[index, places] = one, 1
    memory, said = None, []
    with torch.no_grad():
        for start, end in ((0, 9), (9, 10), (10, 12), (12, 33), (33, 34), (34, 70)):
            output = loaded[name](
                ids[:, start:end], attention_mask=mask[:, :end], past_key_values=memory, use_cache=True
            )
            memory = output.past_key_values
            said.append(output.logits)
    for index, one in enumerate(texts):
        alone = model(name)(one[None])
        assert_close(torch.cat(said, 1)[index, mask[index].bool()], alone.logits[0], 10)
        assert_remembers(loaded[name], picked(memory, index), alone.state)


@pytest.mark.parametrize("name", ["flat-damped", "hebbian", *PATCHES, "transformer", *COMPOSED])
def test_a_padded_batch_writes_what_each_writes_alone_with_and_without_a_memory(
    loaded: dict[str, Any], name: str
) -> None:
    texts = [text(length, seed=length)[0] for length in (3, 17, 9)]
    ids, mask = padded(texts)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
    together = loaded[name].generate(ids, attention_mask=mask, **options)
    assert torch.equal(together, loaded[name].generate(ids, attention_mask=mask, use_cache=False, **options))
    for one, written in zip(texts, together[:, ids.shape[1] :], strict=True):
        stream = bdh.Stream(model(name))
        stream.feed(bytes(one.tolist()))
        greedy = stream.generate(bdh.Sampling(temperature=0, max_bytes=12))
        assert written.tolist() == [item.byte for item in greedy]


@pytest.mark.parametrize("name", ["flat-damped", "hierarchical-damped", "transformer", "mixture"])
def test_beams_keep_each_its_own_memory(loaded: dict[str, Any], name: str) -> None:
    ids, mask = padded([text(4, seed=1)[0], text(11, seed=2)[0]])
    options: dict[str, Any] = {"do_sample": False, "num_beams": 3, "max_new_tokens": 10, "attention_mask": mask}
    with_memory = loaded[name].generate(ids, **options)
    assert torch.equal(with_memory, loaded[name].generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("name", ["flat", "hierarchical"])
def test_writing_goes_on_from_a_memory_given_all_bytes_or_only_the_new_ones(loaded: dict[str, Any], name: str) -> None:
    hears, old, new = loaded[name], text(202), text(5, seed=3)
    whole = torch.cat((old, new), 1)
    # Without a mask the library takes each byte 0 for padding.
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "attention_mask": torch.ones_like(whole)}
    expected = hears.generate(whole, **options)[:, -8:]
    with torch.no_grad():
        memory = hears(old, use_cache=True).past_key_values
    other = copy.deepcopy(memory)
    assert torch.equal(hears.generate(whole, past_key_values=memory, **options)[:, -8:], expected)
    assert torch.equal(hears.generate(new, past_key_values=other, **options)[:, -8:], expected)
    with pytest.raises(ValueError, match="give input_ids from the beginning"):
        hears.generate(new, past_key_values=memory, max_new_tokens=8)
    with pytest.raises(ValueError, match=r"keep a copy\.deepcopy"):
        memory.crop(-1)


@pytest.mark.parametrize("name", ["flat-damped", "hierarchical", "hierarchical-transformer", "transformer"])
def test_the_memory_has_one_size_and_what_is_only_read_is_not_written(loaded: dict[str, Any], name: str) -> None:
    hears = loaded[name]
    with torch.no_grad():
        short = hears(text(7), use_cache=True).past_key_values
        long = hears(text(2003), use_cache=True).past_key_values
        before = [sums.clone() for sums in short.layers]
        hears(text(140), past_key_values=short, use_cache=False)
    assert [sums.shape for sums in short.layers] == [sums.shape for sums in long.layers]
    assert all(torch.equal(one, other) for one, other in zip(short.layers, before, strict=True))
    own = model(name).empty_state()
    beside = states.state_bytes((own.patch, own.context)) if name in PATCHES else 0
    assert short.length == 7
    assert sum(sums.nbytes for sums in long.layers) == model(name).state_bytes() - own.position.nbytes - beside


@pytest.mark.parametrize("name", ZOO)
def test_loss_and_gradients_are_those_of_our_model(library: Any, exported: dict[str, Path], name: str) -> None:
    ids, own = text(40, batch=2), fresh(name).eval()
    other = library.AutoModelForCausalLM.from_pretrained(exported[name], trust_remote_code=True).eval()
    labels = ids.clone()
    labels[0, :7] = -100
    output = other(ids, labels=labels, use_cache=False)
    expected = F.cross_entropy(own(ids).logits[:, :-1].transpose(1, 2), labels[:, 1:])
    output.loss.backward()
    expected.backward()
    assert_close(output.loss, expected)
    gradients = {key: parameter.grad for key, parameter in own.named_parameters()}
    for key, parameter in other.named_parameters():
        assert (parameter.grad is None) == (gradients[key] is None), key
        if parameter.grad is not None:
            assert_close(parameter.grad, gradients[key], 100)


@pytest.mark.parametrize("name", ["flat", "hierarchical", "transformer"])
def test_gradients_go_through_a_memory_unless_it_is_cut_off(loaded: dict[str, Any], name: str) -> None:
    first, second = text(10), text(10, seed=1)
    embedded = loaded[name].get_input_embeddings()(first).detach().requires_grad_()
    memory = loaded[name](inputs_embeds=embedded, use_cache=True).past_key_values
    loaded[name](second, past_key_values=copy.copy(memory), use_cache=False).logits.square().sum().backward()
    assert (embedded.grad.abs().sum(-1) > 0).all()
    memory.detach_()
    assert not any(kept.requires_grad for kept in memory.layers)


def test_training_reaches_what_the_first_patch_is_told_through_a_memory(loaded: dict[str, Any]) -> None:
    hears = loaded["hierarchical"]
    with torch.no_grad():
        memory = hears(text(2), use_cache=True).past_key_values
    logits = hears(text(1), past_key_values=memory, use_cache=False).logits
    assert torch.autograd.grad(logits.square().sum(), hears.local_model.start_embed)[0].abs().sum() > 0


def test_what_a_kind_cannot_hear_is_refused_in_words(loaded: dict[str, Any]) -> None:
    with torch.no_grad():
        memory = loaded["flat"](text(3), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values is a BdhMemory"):
        loaded["hierarchical"](text(3), past_key_values=memory)
    with pytest.raises(ValueError, match="each member embeds bytes in its own way"):
        loaded["average"](inputs_embeds=torch.zeros(1, 3, 16))


@pytest.mark.parametrize("name", ["flat", "hierarchical"])
def test_hidden_states_are_those_of_every_layer_and_few_logits_are_the_last(loaded: dict[str, Any], name: str) -> None:
    hears, ids = loaded[name], text(150)
    with torch.no_grad():
        output = hears(ids, output_hidden_states=True)
        last = hears(ids, logits_to_keep=1).logits
        assert hears(ids, return_dict=False)[0].shape == (1, 150, 256)
        weight = hears.lm_head if name == "flat" else hears.lm_head.weight.T
        assert_close(output.hidden_states[-1] @ weight, output.logits)
    assert [tuple(hidden.shape) for hidden in output.hidden_states] == [(1, 150, hears.config.hidden_size)] * 3
    assert_close(last, output.logits[:, -1:])


@pytest.mark.parametrize("name", ["flat-damped", "hebbian", "hierarchical-damped", "transformer", *COMPOSED])
def test_saved_again_it_is_the_same_for_both_libraries(
    library: Any, loaded: dict[str, Any], tmp_path: Path, name: str
) -> None:
    loaded[name].save_pretrained(tmp_path / "again")
    again = library.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True, device_map="cpu")
    ids = text(20)
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, loaded[name](ids).logits)
    for folder in (tmp_path / "again", loaded[name].name_or_path):
        own = bdh.load(folder, device="cpu")
        assert own.checksum() == model(name).checksum() and own.config == model(name).config


@pytest.mark.parametrize("name", ["flat-damped", "hierarchical"])
def test_in_bfloat16_frequencies_and_memory_stay_float32(library: Any, tmp_path: Path, name: str) -> None:
    folder = export(model(name), tmp_path / "half", dtype=torch.bfloat16)
    own, ids = bdh.load(folder, device="cpu", dtype=torch.bfloat16), text(62)
    for options in ({}, {"dtype": torch.bfloat16}):
        half = library.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()
        layer, its = (one if name == "flat-damped" else one.local_model.layers[1] for one in (half, model(name)))
        assert layer.encoder.dtype == torch.bfloat16 and layer.attn.freqs.dtype == torch.float32
        assert torch.equal(layer.attn.freqs, its.attn.freqs)
        with torch.no_grad():
            output = half(ids, use_cache=True)
            assert (output.logits.float() - own(ids).logits.float()).abs().max() < 0.2
        assert all(sums.dtype == torch.float32 for sums in output.past_key_values.layers)
        half.to(torch.float16)
        assert layer.attn.freqs.dtype == torch.float32


def test_a_fresh_model_of_the_configuration_begins_as_ours_do(library: Any, exported: dict[str, Path]) -> None:
    config = library.AutoConfig.from_pretrained(exported["flat"], trust_remote_code=True)
    made = library.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert torch.equal(made.attn.freqs, model("flat").attn.freqs)
    assert 0.015 < made.encoder.std() < 0.025 and 0.015 < made.embed.weight.std() < 0.025
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    with pytest.raises(ValueError, match="for each of the 2 heads"):
        type(config)(n_head=2, decay=[0.5])
    config = library.AutoConfig.from_pretrained(exported["hierarchical-transformer"], trust_remote_code=True)
    made = library.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    own = build(model("hierarchical-transformer").config, seed=0).state_dict()
    for key, weight in made.state_dict().items():
        spread = weight.std() if weight.numel() > 32 else own[key].std()
        assert 0.7 * own[key].std() <= spread <= 1.4 * own[key].std(), key
        assert ".ln" not in key or torch.equal(weight, own[key])
    with pytest.raises(ValueError, match="leave it empty"):
        type(config)(use_bdh_attention=False, global_decay=[0.5] * 8)


@given(words=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40))
def test_text_is_its_bytes_and_comes_back(tokenizer: Any, words: str) -> None:
    ids = tokenizer(words)["input_ids"]
    assert bytes(ids) == words.encode()
    assert tokenizer.decode(ids, skip_special_tokens=True) == words


def test_shorter_texts_of_a_batch_are_filled_up_before_them_and_masked(tokenizer: Any, tmp_path: Path) -> None:
    batch = tokenizer(["abc", "é"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[97, 98, 99], [0, 0xC3, 0xA9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert len(tokenizer) == 256 and tokenizer.decode([0xC3, 65]) == "\ufffdA"
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["padding_side"] == "left"


def test_a_conversation_has_the_form_of_the_dialogues(tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": " Hi\nthere "},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    told = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert told == "\nUser: Hi there\nBot: Hello.\nUser: Bye\nBot:"
    with pytest.raises(Exception, match="the roles are user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be kind"}], tokenize=False)


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        export(model("flat"), tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_command_writes_the_folder_and_says_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", "transformers", "chat", str(out), "--dtype", "bfloat16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "flat" and told["files"] == {path.name: path.stat().st_size for path in out.iterdir()}
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 10
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and "- bdh\n" in card and "# chat" in card
    assert main(["export", "transformers", "english", str(tmp_path / "prose"), "--dtype", "bfloat16"]) == 0
    assert "eos_token_id" not in json.loads((tmp_path / "prose" / "generation_config.json").read_text())
    assert main(["export", "transformers", "english", str(tmp_path / "prose")]) == 2
    assert "is not empty" in capsys.readouterr().err
