"""The tokenizer of a GGUF file against the one that it was made of, and against transformers' reading of the file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import write_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from foredraft.data.tokenizer import sha256
from foredraft.models.convert import convert
from foredraft.models.gguf_tokenizer import gguf_tokenizer

TEXTS = (
    "Hello world", "I've got 3.14 apples\n\n\n  and 2024 pears", "  1 two   22 ", "def f(x):\n\treturn x**2 # done\r\n", "naïve café 你好 🙂",
    " lead", "trail ", "DON'T", "<|eos|>Hello<think>", "a<|eos|> b", "", "x" * 50,
)  # fmt: skip
LEARNED = [
    "hello world and all the pears 2024 22 222",
    "don't you've done the naïve café",
    "def f(x): return x  \n\n\n\n  ",
] * 5
LLAMA3 = PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CUTS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
    "qwen2": [pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
}  # fmt: skip
CONTROL, USER_DEFINED = 3, 4


def original(cut: str) -> Tokenizer:
    """A byte-level BPE of 400 words as its model's tokenizer.json has it."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=cut == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut])
    tokenizer.decoder = decoders.ByteLevel()
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LEARNED, trainer)
    tokenizer.add_tokens(["<think>"])
    return tokenizer


def metadata(tokenizer: Tokenizer, cut: str, **more: Any) -> dict[str, Any]:
    import json

    model = json.loads(tokenizer.to_str())["model"]
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    types = [{"<|eos|>": CONTROL, "<think>": USER_DEFINED}.get(word, 1) for word, _ in words]
    return {
        "ggml.model": "gpt2", "ggml.pre": cut, "ggml.tokens": [word for word, _ in words], "ggml.token_type": types,
        "ggml.merges": [" ".join(pair) for pair in model["merges"]], "ggml.eos_token_id": 0, "ggml.add_bos_token": False, **more,
    }  # fmt: skip


def file_of(path: Path, tokenizer: dict[str, Any], kind: Any = LlamaConfig) -> Path:
    torch.manual_seed(0)
    config = kind(
        vocab_size=len(tokenizer["ggml.tokens"]), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    return write_model(path, AutoModelForCausalLM.from_config(config), tokenizer=tokenizer)


def theirs(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("cut", CUTS)
def test_ids_are_those_of_the_tokenizer_it_was_made_of(tmp_path, cut):
    source = original(cut)
    path = file_of(tmp_path / "tiny.gguf", metadata(source, cut), Qwen2Config if cut == "qwen2" else LlamaConfig)
    ours = gguf_tokenizer(path)
    assert [ours(words)["input_ids"] for words in TEXTS] == [source.encode(words).ids for words in TEXTS]
    assert [ours.decode(ours(words)["input_ids"]) for words in TEXTS] == list(TEXTS)
    assert (ours.eos_token, ours.eos_token_id, ours.bos_token) == ("<|eos|>", 0, None)


@pytest.mark.parametrize("cut", ["gpt-2", "llama-bpe", "qwen2"])
def test_ids_are_those_that_transformers_reads(tmp_path, cut):
    path = file_of(tmp_path / "tiny.gguf", metadata(original(cut), cut))
    ours, expected = gguf_tokenizer(path), theirs(path)
    assert [ours(words)["input_ids"] for words in TEXTS] == [expected(words)["input_ids"] for words in TEXTS]
    assert ours.get_vocab() == {word: i for word, i in expected.get_vocab().items() if i < len(ours)}


def test_digits_stand_alone_though_transformers_leaves_that_out(tmp_path):
    """Two blanks before a number are a word of their own with SmolLM's tokenizer."""
    source = original("smollm")
    path = file_of(tmp_path / "tiny.gguf", metadata(source, "smollm"))
    words = "x  1"
    assert gguf_tokenizer(path)(words)["input_ids"] == source.encode(words).ids != theirs(path)(words)["input_ids"]


def test_a_piece_that_is_a_word_is_not_put_together_from_others(tmp_path):
    """Llama 3's `ignore_merges`: a word that no merge makes."""
    words = metadata(original("llama-bpe"), "llama-bpe")
    words["ggml.tokens"][300], words["ggml.merges"] = "unmade", words["ggml.merges"][:1]
    assert gguf_tokenizer(file_of(tmp_path / "tiny.gguf", words))("unmade")["input_ids"] == [300]


def test_tokens_matched_whole_keep_their_ids_whatever_their_letters(tmp_path):
    words = metadata(original("qwen2"), "qwen2")
    words["ggml.tokens"][301], words["ggml.token_type"][301] = "<｜User｜>", CONTROL
    words["ggml.merges"] = words["ggml.merges"][:1]
    tokenizer = gguf_tokenizer(file_of(tmp_path / "tiny.gguf", words))
    ids = tokenizer("<｜User｜>!")["input_ids"]
    assert (ids[0], len(ids), len(tokenizer)) == (301, 2, len(words["ggml.tokens"]))
    assert tokenizer.decode(ids, skip_special_tokens=True) == "!"


def test_texts_begin_with_the_token_that_the_file_asks_for(tmp_path):
    words = metadata(
        original("llama-bpe"),
        "llama-bpe",
        **{"ggml.bos_token_id": 5, "ggml.add_bos_token": True, "ggml.add_eos_token": True},
    )
    path = file_of(tmp_path / "tiny.gguf", words)
    ids = gguf_tokenizer(path)("done")["input_ids"]
    assert (ids[0], ids[-1]) == (5, 0)
    assert theirs(path)("done")["input_ids"] == ids
    del words["ggml.add_bos_token"]
    assert gguf_tokenizer(file_of(tmp_path / "silent.gguf", words))("done")["input_ids"] == ids


def sentencepiece() -> dict[str, Any]:
    """<unk>, ends, a token of the user's own, bytes, then pieces by their scores."""
    pieces = ["▁", "t", "h", "e", "a", "o", "n", "th", "he", "▁the", "▁t", "the", "▁a", "on", "▁on", "▁▁", "é"]
    tokens = ["<unk>", "<s>", "</s>", "<tool>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [2, CONTROL, CONTROL, USER_DEFINED, *([6] * 256), *([1] * len(pieces))]
    scores = [*([0.0] * 260), *(-float(i) for i in range(len(pieces)))]
    return {
        "ggml.model": "llama", "ggml.tokens": tokens, "ggml.token_type": types, "ggml.scores": scores, "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0,
    }  # fmt: skip


def test_sentencepiece_words_are_put_together_by_score(tmp_path):
    path = file_of(tmp_path / "tiny.gguf", sentencepiece())
    ours, expected = gguf_tokenizer(path), theirs(path)
    texts = ("the hat on a tone", " the  the", "é ü 你", "<s>the</s> the<tool>the", "", "\n\nthe\t")
    assert [ours(words)["input_ids"] for words in texts] == [expected(words)["input_ids"] for words in texts]
    assert [ours.decode(ours(words)["input_ids"]) for words in texts] == [
        expected.decode(expected(words)["input_ids"]) for words in texts
    ]
    assert ours("the hat")["input_ids"][:2] == [1, 269]


def test_no_blank_is_put_before_words_where_the_file_says_so(tmp_path):
    path = file_of(tmp_path / "tiny.gguf", sentencepiece() | {"ggml.add_space_prefix": False})
    assert gguf_tokenizer(path)("the")["input_ids"] == [1, 271]


TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def test_the_chat_template_and_the_whole_tokenizer_outlive_the_conversion(tmp_path):
    words = metadata(
        original("llama-bpe"),
        "llama-bpe",
        **{"ggml.bos_token_id": 5, "ggml.add_bos_token": True, "chat_template": TEMPLATE},
    )
    words["ggml.eot_token_id"] = 7
    path = file_of(tmp_path / "tiny.gguf", words)
    convert(path, tmp_path / "out")
    assert sha256(path) == sha256(tmp_path / "out")
    loaded, ours, expected = AutoTokenizer.from_pretrained(tmp_path / "out"), gguf_tokenizer(path), theirs(path)
    assert [loaded(text)["input_ids"] for text in TEXTS] == [ours(text)["input_ids"] for text in TEXTS]
    turns = [{"role": "user", "content": "Hello"}]
    chats = [t.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for t in (loaded, ours, expected)]
    assert chats == ["<user>Hello<assistant>"] * 3
    from foredraft import text

    assert text.stop_ids(tmp_path / "out", loaded) == text.stop_ids(path, ours) == {0, 7}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ggml.pre": "klingon"}, "how its tokenizer cuts text is not known: tokenizer.ggml.pre 'klingon'"),
        ({"ggml.pre": "default"}, "tokenizer.ggml.pre 'default'"),
        ({"ggml.model": "bert"}, "its tokenizer is of the sort 'bert'"),
        ({"ggml.merges": ["no word"]}, "its merges do not fit its words"),
    ],
)
def test_what_cannot_be_known_to_be_right_is_refused(tmp_path, change, match):
    path = file_of(tmp_path / "tiny.gguf", metadata(original("gpt-2"), "gpt-2") | change)
    with pytest.raises(ValueError, match=match) as caught:
        gguf_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_the_originals_tokenizer_can_take_its_place(tmp_path):
    path = file_of(tmp_path / "tiny.gguf", metadata(original("gpt-2"), "klingon"))
    folder = tmp_path / "original"
    folder.mkdir()
    original("smollm").save(str(folder / "tokenizer.json"))
    with pytest.raises(ValueError, match="klingon") as caught:
        convert(path, tmp_path / "out")
    assert "--tokenizer DIR" in caught.value.__notes__[0]
    assert not (tmp_path / "out").exists()
    convert(path, tmp_path / "out", tokenizer=folder)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
