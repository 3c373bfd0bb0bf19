"""Token data: what is read, masked and counted, and that a run can stop and go on anywhere."""

import gzip
import json
import os
import shutil
import sys
import types
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from foredraft import records
from foredraft.data import regenerate as room
from foredraft.data import tokenizer as tokenizers
from foredraft.data.chat import ChatTemplate
from foredraft.data.prepare import Prepared, prepare
from foredraft.data.rows import Message
from foredraft.data.samples import samples
from foredraft.data.sources import Skips
from foredraft.data.token_writer import TokenWriter
from foredraft.data.tokens import Packing, TokenFolder, check, shuffled
from foredraft.models.load import load

SPOKEN = "the quick brown fox jumps over the lazy dog and runs away from seven small birds"
WORDS = SPOKEN.split()
CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
MARKED = """{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {{- message['content'] | trim + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TALK = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Who jumps?"),
    Message(role="assistant", content=" The fox, of course: é ∑ 狐.\n"),
    Message(role="user", content="Over what? Say fox"),
    Message(role="assistant", content="fox"),
    Message(role="user", content="Thanks"),
)


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentences(num: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(3, 40)))) + "." for _ in range(num)]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    tokenizers.train(sentences(50), 300, folder)
    return folder


@pytest.fixture(scope="module")
def chatml(bpe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with ChatML's tokens, and a beginning token that its post-processor puts before plain text."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("tokenizer") / "chatml"
    tokenizer: Any = tokenizers.load(bpe)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|bos|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.convert_tokens_to_ids("<|bos|>"))]
    )
    tokenizer.save_pretrained(folder)
    return folder


def token_folder(tmp_path: Path, tokenizer: Path, rows: list[Any], name: str = "data", **options: Any) -> TokenFolder:
    prepare([str(lines(tmp_path / f"{name}.jsonl", rows))], tmp_path / name, tokenizer, **options)
    return TokenFolder.open(tmp_path / name)


def written(folder: Path, documents: list[list[int]], vocab_size: int) -> TokenFolder:
    with ExitStack() as files:
        writer = TokenWriter(folder, vocab_size, 0, files)
        for document in documents:
            writer.add(np.array([*document, 0]), np.ones(len(document) + 1))
        writer.finish("0" * 64, (), None)
    return TokenFolder.open(folder)


# Packing


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
def test_the_shuffle_is_a_permutation_of_its_own_in_every_epoch(size: int) -> None:
    orders = [shuffled(size, 7, epoch).tolist() for epoch in range(4)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size >= 16:
        assert len({tuple(order) for order in orders}) == 4


def test_the_shuffle_sends_every_window_everywhere_equally_often() -> None:
    """χ² over (place, window) of 23 windows in 4,600 epochs of seed 0; false alarms 1 in 1,000 over seeds."""
    from scipy.stats import chi2

    size, epochs = 23, 4600
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        counts[np.arange(size), shuffled(size, 0, epoch)] += 1
    expected = epochs / size
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, (size - 1) ** 2)


def test_packing_visits_each_window_once_an_epoch_and_starts_anywhere(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", [list(range(1, 30)) for _ in range(9)], 40)
    packing = Packing(folder, 8, seed=3)
    windows = len(packing)
    assert windows == 270 // 8
    epochs = packing.batch(0, 3 * windows)
    stored = np.asarray(folder.tokens[: windows * 8]).reshape(windows, 8)
    expected = Counter(map(tuple, stored.tolist()))
    for epoch in range(3):
        epoch_windows = epochs.tokens_BT[epoch * windows : (epoch + 1) * windows].tolist()
        assert Counter(map(tuple, epoch_windows)) == expected
    assert not torch.equal(epochs.tokens_BT[:windows], epochs.tokens_BT[windows : 2 * windows])
    again = Packing(TokenFolder.open(tmp_path / "data"), 8, seed=3)
    for first, count in ((0, 5), (windows - 2, 7), (2 * windows + 3, 1)):  # any position, over an epoch's end too
        part = again.batch(first, count)
        for window, all_of_it in zip(part, epochs, strict=True):
            assert torch.equal(window, all_of_it[first : first + count])
    ranks = [again.batch(4 * step + 2 * rank, 2).tokens_BT for step in range(5) for rank in range(2)]
    assert torch.equal(torch.cat(ranks), epochs.tokens_BT[:20])
    assert not torch.equal(Packing(folder, 8, seed=4).batch(0, windows).tokens_BT, epochs.tokens_BT[:windows])


def test_a_window_knows_its_documents(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", [[1, 1], [2, 2, 2], [3]], 10)
    batch = Packing(folder, 9, seed=0).batch(0, 1)
    assert batch.tokens_BT.tolist() == [[1, 1, 0, 2, 2, 2, 0, 3, 0]]
    assert batch.documents_BT.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 2]]
    assert batch.mask_BT.all()
    apart = Packing(folder, 9, seed=0, reset_at_documents=True).batch(0, 1)
    assert (~apart.mask_BT).nonzero()[:, 1].tolist() == [0, 3, 7]
    assert (batch.tokens_BT.dtype, batch.mask_BT.dtype, batch.documents_BT.dtype) == (
        torch.int64,
        torch.bool,
        torch.int32,
    )
    second = Packing(folder, 4, seed=0)
    assert {tuple(row) for row in second.batch(0, 2).documents_BT.tolist()} == {(0, 0, 0, 1), (0, 0, 0, 1)}


@pytest.mark.parametrize(("vocab", "dtype", "size"), [(65536, "uint16", 2), (65537, "uint32", 4)])
def test_ids_take_two_bytes_or_four(tmp_path: Path, vocab: int, dtype: str, size: int) -> None:
    folder = written(tmp_path / "data", [[vocab - 1, 5]], vocab)
    assert folder.data.dtype == dtype
    assert (tmp_path / "data" / "tokens.bin").stat().st_size == 3 * size
    assert Packing(folder, 3, 0).batch(0, 1).tokens_BT.tolist() == [[vocab - 1, 5, 0]]
    with pytest.raises(ValueError, match="outside the vocabulary"):
        written(tmp_path / "wrong", [[vocab]], vocab)


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", [[1, 2, 3]], 10)
    with pytest.raises(ValueError, match="hold no window of length 5"):
        Packing(folder, 5, 0)
    os.truncate(tmp_path / "data" / "mask.bin", 2)
    with pytest.raises(ValueError, match=r"mask.bin: 2 bytes, data.json says 4"):
        TokenFolder.open(tmp_path / "data")
    (tmp_path / "data" / "mask.bin").unlink()
    with pytest.raises(ValueError, match=r"mask.bin: no such file"):
        TokenFolder.open(tmp_path / "data")
    with pytest.raises(ValueError, match="it holds some: data; give one of them"):
        TokenFolder.open(tmp_path)


# Tokenizers


def test_a_trained_tokenizer_keeps_any_text(bpe: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(bpe)
    assert len(tokenizer) == 300
    for sample in (" two  spaces\n\tand a tab", "é ∑ 狐 🦊 \u2028 \r\n", "".join(map(chr, range(32, 0x250)))):
        ids = tokenizer(sample)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == sample
    assert tokenizer.eos_token_id is not None
    assert len(tokenizer("the lazy dog")["input_ids"]) < 8 < len("the lazy dog")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "User: Hi\nAssistant:"


@pytest.mark.parametrize("name", ["none", "owner/name", "bpe/none", "/none/bpe", "bpe/empty"])
def test_a_missing_folder_is_told_without_transformers_or_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bpe" / "empty").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=f"^{name}: no tokenizer"):
        tokenizers.load(name)


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be at least 258"):
        tokenizers.train(["a"], 200, tmp_path / "t")
    assert tokenizers.train(["ab ab"], 400, tmp_path / "t") < 400


def test_another_tokenizer_or_vocabulary_is_refused(tmp_path: Path, bpe: Path, chatml: Path) -> None:
    folder = token_folder(tmp_path, bpe, [{"text": "the fox"}])
    check(folder, 300, bpe)
    check(folder, 304, bpe)
    with pytest.raises(ValueError, match=r"vocabulary of 300, but the target's vocab_size is 299"):
        check(folder, 299)
    with pytest.raises(
        ValueError, match=r"made with the tokenizer [0-9a-f]{12} \(300 ids\), the target's is [0-9a-f]{12} \(303 ids\)"
    ):
        check(folder, 400, chatml)
    respelt = tmp_path / "respelt"
    respelt.mkdir()
    same = json.loads((bpe / "tokenizer.json").read_text())
    (respelt / "tokenizer.json").write_text(json.dumps(same | {"truncation": None}, indent=7))
    check(folder, 300, respelt)
    same["model"]["merges"] = same["model"]["merges"][::-1]
    (respelt / "tokenizer.json").write_text(json.dumps(same))
    with pytest.raises(ValueError, match="made with the tokenizer"):
        check(folder, 300, respelt)


# Plain text


def test_ids_are_those_of_transformers(tmp_path: Path, bpe: Path, chatml: Path) -> None:
    texts = [*sentences(30), "é ∑ 狐", "  ", "a <|im_end|> b"]
    for tokenizer in (bpe, chatml):
        folder = token_folder(tmp_path, tokenizer, [{"text": text} for text in texts], tokenizer.name)
        loaded: Any = tokenizers.load(tokenizer)
        for i, text in enumerate(texts):
            ids, mask = folder.document(i)
            assert ids.tolist() == [*loaded(text)["input_ids"], loaded.eos_token_id]
            assert mask.all()
        assert folder.data.raw_tokens == folder.data.num_tokens == folder.data.predicted_tokens


def test_every_packing_and_a_folder_of_files_give_the_same_tokens(tmp_path: Path, bpe: Path) -> None:
    rows = [{"text": text, "id": i} for i, text in enumerate(sentences(40))]
    plain = lines(tmp_path / "a.jsonl", rows)
    raw, parts = plain.read_bytes(), tmp_path / "parts"
    parts.mkdir()
    frames = [zstandard.ZstdCompressor().compress(raw[i : i + 700]) for i in range(0, len(raw), 700)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(raw[:900]) + gzip.compress(raw[900:]))
    lines(parts / "1.jsonl", rows[:15])
    (parts / "2.jsonl.gz").write_bytes(gzip.compress(lines(tmp_path / "rest", rows[15:39]).read_bytes()))
    (parts / "3.txt").write_text(rows[39]["text"])
    (parts / "README").write_text("not data")
    expected = None
    for name in ("a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "parts"):
        prepare([str(tmp_path / name)], tmp_path / f"{name}.data", bpe)
        folder = TokenFolder.open(tmp_path / f"{name}.data")
        bytes = [(folder.path / file).read_bytes() for file in ("tokens.bin", "mask.bin", "documents.bin")]
        expected = expected or bytes
        assert bytes == expected
        assert sum(source.documents for source in folder.data.sources) == 40
    assert [source.name for source in folder.data.sources] == ["1.jsonl", "2.jsonl.gz", "3.txt"]


@pytest.mark.parametrize("ending", ["zst", "gz"])
def test_a_cut_off_file_is_no_whole_one(tmp_path: Path, bpe: Path, ending: str) -> None:
    raw = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in sentences(4000))
    packed = zstandard.ZstdCompressor().compress(raw) if ending == "zst" else gzip.compress(raw)
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(packed[:-40])
    with pytest.raises(ValueError, match=rf"a.jsonl.{ending}:\d+: truncated or corrupt"):
        prepare([str(path)], tmp_path / "data", bpe)
    prepared = prepare([str(path)], tmp_path / "data", bpe, on_error="skip")
    assert prepared.skipped >= 1
    assert 1000 < prepared.folders[""].num_documents < 4000


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "a', "broken line"),
        (b'{"text": "\xff\xfe"}', "broken line"),
        (b'["text"]', "broken line"),
        (b'{"text": 7}', "'text' must be a string, got int"),
        (b'{"body": "a"}', "no 'text', 'messages'"),
        (b'{"turns": ["a"]}', "prompts without answers"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "pass --chat"),
    ],
)
def test_a_broken_line_is_named_and_stops_or_is_skipped(tmp_path: Path, bpe: Path, line: bytes, why: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "four\\u2028"}\n{"text": ""}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:3: ") as caught:
        prepare([str(path)], tmp_path / "data", bpe)
    assert why in str(caught.value)
    assert not (tmp_path / "data").exists()
    prepared = prepare([str(path)], tmp_path / "data", bpe, on_error="skip")
    assert (prepared.skipped, prepared.folders[""].num_documents) == (1, 2)
    assert prepared.folders[""].sources[0].skipped == 1
    assert "a.jsonl:3" in prepared.named[0]


def test_an_empty_corpus_is_an_error(tmp_path: Path, bpe: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": ""}\n')
    with pytest.raises(ValueError, match="an empty corpus"):
        prepare([str(tmp_path / "a.jsonl")], tmp_path / "data", bpe)
    (tmp_path / "a.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"an empty corpus.*1 broken rows were skipped, such as .*a.jsonl:1"):
        prepare([str(tmp_path / "a.jsonl")], tmp_path / "data", bpe, on_error="skip")
    (tmp_path / "none").mkdir()
    for name, why in (("none", "no data in the folder"), ("b.jsonl", "No such file"), ("a.csv", "unknown ending")):
        (tmp_path / "a.csv").touch()
        with pytest.raises(ValueError, match=why):
            prepare([str(tmp_path / name)], tmp_path / "data", bpe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.jsonl", "none"]


def test_held_out_documents_are_others(tmp_path: Path, bpe: Path) -> None:
    rows = [{"text": text} for text in sentences(400)]
    source = lines(tmp_path / "a.jsonl", rows + rows)
    prepared = prepare([str(source)], tmp_path / "data", bpe, val_share=0.25)
    sides = [TokenFolder.open(tmp_path / "data" / name) for name in ("train", "val")]
    documents = [{tuple(side.document(i)[0]) for i in range(side.data.num_documents)} for side in sides]
    assert not documents[0] & documents[1]
    assert [len(side_documents) for side_documents in documents] == [side.data.num_documents / 2 for side in sides]
    assert len(documents[0] | documents[1]) == len({row["text"] for row in rows})
    assert 60 < len(documents[1]) < 140  # binomial(400, 1/4), six standard deviations
    assert {name: data.num_tokens for name, data in prepared.folders.items()} == {
        "train": sides[0].data.num_tokens, "val": sides[1].data.num_tokens,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no document fell to it"):
        prepare([str(source)], tmp_path / "few", bpe, val_share=0.25, documents=1)


def test_a_full_disk_leaves_nothing(tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token file is the device on which every write fails with ENOSPC."""
    source, opened = lines(tmp_path / "a.jsonl", [{"text": text} for text in sentences(10)]), Path.open

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        return opened(Path("/dev/full") if self.name == "tokens.bin" else self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="the disk is full") as caught:
        prepare([str(source)], tmp_path / "data", bpe)
    assert caught.value.filename == str(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    monkeypatch.undo()
    prepare([str(source)], tmp_path / "data", bpe)
    with pytest.raises(ValueError, match="exists already"):
        prepare([str(source)], tmp_path / "data", bpe)


def test_rows_of_a_hub_data_set(tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[Any] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict[str, Any]]:
        requested.append((name, config, split, streaming))
        return [{"body": "the fox", "talk": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    prepare(["hf:some/set@small:test:body"], tmp_path / "body", bpe)
    prepare(["hf:some/set::talk"], tmp_path / "talk", bpe, chat=True)
    assert requested == [("some/set", "small", "test", True), ("some/set", None, "train", True)]
    loaded: Any = tokenizers.load(bpe)
    assert loaded.decode(TokenFolder.open(tmp_path / "body").document(0)[0]) == "the fox<|endoftext|>"
    assert loaded.decode(TokenFolder.open(tmp_path / "talk").document(0)[0]) == "User: a\nAssistant: b<|endoftext|>"
    with pytest.raises(ValueError, match=r"hf:some/set:train:1: no 'text'"):
        prepare(["hf:some/set"], tmp_path / "wrong", bpe)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'foredraft\[hub\]'"):
        prepare(["hf:some/set"], tmp_path / "wrong", bpe)


# Conversations


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_only_what_the_assistant_says_is_to_be_predicted(tmp_path: Path, chatml: Path, template: str) -> None:
    turns = [{"role": turn.role, "content": turn.content} for turn in TALK]
    folder = token_folder(tmp_path, chatml, [{"messages": turns}], chat=True, template=template)
    (sample,) = samples(folder, tokenizers.load(folder.path), 1)
    pieces = [(piece.text, piece.predicted) for piece in sample.pieces]
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho jumps?<|im_end|>\n<|im_start|>assistant\n"
    between = "\n<|im_start|>user\nOver what? Say fox<|im_end|>\n<|im_start|>assistant\n"
    assert pieces == [
        (head, False), ("The fox, of course: é ∑ 狐.<|im_end|>", True), (between, False), ("fox<|im_end|>", True), ("<|endoftext|>", False),
    ]  # fmt: skip
    assert folder.data.predicted_tokens == sum(piece.num_tokens for piece in sample.pieces if piece.predicted)
    assert folder.data.template == template


def test_marked_templates_are_rendered_and_masked_as_transformers_does(chatml: Path) -> None:
    tokenizer: Any = tokenizers.load(chatml)
    turns = [{"role": turn.role, "content": turn.content} for turn in TALK[:5]]
    theirs = tokenizer.apply_chat_template(
        turns, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    (rendered,) = ChatTemplate(tokenizer, MARKED).render(TALK).texts
    assert rendered.text == tokenizer.apply_chat_template(turns, chat_template=MARKED, tokenize=False)
    encoding = tokenizer.backend_tokenizer.encode(rendered.text, add_special_tokens=False)
    ours = [int(any(start < b and a < end for start, end in rendered.spans)) for a, b in encoding.offsets]
    assert encoding.ids == theirs["input_ids"]
    assert ours == theirs["assistant_masks"]
    assert 0 < sum(ours) < len(ours)


def test_marks_inside_a_macro_are_refused(chatml: Path) -> None:
    """Transformers says of them where the macro's text begins, not where the answer does."""
    answer = "{% generation %}{{ m.content }}{% endgeneration %}"
    loop = "{% for m in messages %}{{ say(m) }}" + answer + "{% endfor %}"
    inside = (
        "{% macro say(m) %}{{ m.role }}: " + answer + "{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}"
    )
    outside = "{% macro say(m) %}{{ m.role }}: {% endmacro %}" + loop
    with pytest.raises(ValueError, match="inside a macro"):
        ChatTemplate(tokenizers.load(chatml), inside)
    (rendered,) = ChatTemplate(tokenizers.load(chatml), outside).render(TALK[4:5]).texts
    assert [rendered.text[slice(*span)] for span in rendered.spans] == ["fox"]


def test_templates_without_an_end_token_end_with_the_documents(tmp_path: Path, bpe: Path) -> None:
    words = "{% for m in messages %}### {{ m['role'] }}\n{{ m['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}### assistant\n{% endif %}"
    turns = [{"from": "human", "value": "Go on"}, {"from": "gpt", "value": "No."}] * 2
    folder = token_folder(tmp_path, bpe, [{"conversations": turns}], chat=True, template=words)
    (sample,) = samples(folder, tokenizers.load(bpe), 1)
    predicted = [piece.text for piece in sample.pieces if piece.predicted]
    assert predicted == ["No.", "No.<|endoftext|>"]


THINKING = CHATML.replace(
    "message['content'] | trim",
    "(message['content'].split('</think>')[-1] if not loop.last else message['content']) | trim",
)


def answers_of(tokenizer: Any, template: str, messages: tuple[Message, ...]) -> list[list[str]]:
    texts = ChatTemplate(tokenizer, template).render(messages).texts
    return [[text.text[slice(*span)] for span in text.spans] for text in texts]


def test_a_template_that_rewrites_what_was_said_makes_a_text_of_every_turn(chatml: Path) -> None:
    """Each as the target would have read it when it was to speak."""
    tokenizer: Any = tokenizers.load(chatml)
    alone = (TALK[1], Message(role="assistant", content="<think>fox?</think>fox"))
    assert answers_of(tokenizer, THINKING, alone) == [["<think>fox?</think>fox<|im_end|>"]]
    fox = "The fox, of course: é ∑ 狐.<|im_end|>"
    assert answers_of(tokenizer, THINKING, TALK[:5]) == [[fox, "fox<|im_end|>"]]
    thought = (TALK[1], Message(role="assistant", content="<think>dog?</think>fox"), *TALK[3:5])
    assert answers_of(tokenizer, THINKING, thought) == [["<think>dog?</think>fox<|im_end|>"], ["fox<|im_end|>"]]
    shouting = CHATML.replace(
        "message['content'] | trim", "(message['content'] | upper if not loop.last else message['content'])"
    )
    with pytest.raises(ValueError, match="does not keep the words of turn 5"):  # not even where it is to be answered
        ChatTemplate(tokenizer, shouting).render(TALK[:5])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "no turn of the assistant"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "'role' is 'wizard'"),
        ({"messages": [{"role": "user"}]}, "an object with 'role' and 'content'"),
        ({"conversations": "hello"}, "'conversations' must be a list"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"},
                       {"role": "assistant", "content": "d"}]}, "the chat template fails: no tools"),
    ],
)  # fmt: skip
def test_a_conversation_that_cannot_be_masked_is_a_broken_line(
    tmp_path: Path, chatml: Path, row: Any, why: str
) -> None:
    strict = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
        + CHATML
    )
    fine = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(ValueError, match=r"data\.jsonl:2: ") as caught:
        token_folder(tmp_path, chatml, [fine, row], chat=True, template=strict)
    assert why in str(caught.value)
    folder = token_folder(tmp_path, chatml, [fine, row, fine], chat=True, template=strict, on_error="skip")
    assert (folder.data.num_documents, folder.data.sources[0].skipped) == (2, 1)


def test_a_prompt_is_given_and_its_completion_predicted(tmp_path: Path, bpe: Path) -> None:
    folder = token_folder(tmp_path, bpe, [{"prompt": "the quick", "completion": " brown fox"}])
    (sample,) = samples(folder, tokenizers.load(bpe), 1)
    assert [(piece.text, piece.predicted) for piece in sample.pieces] == [
        ("the quick", False),
        (" brown fox<|endoftext|>", True),
    ]


def test_no_template_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="no chat_template; give one with --template"):
        token_folder(tmp_path, checkpoint, [{"text": "a"}], chat=True)


# The verbs


def test_the_verbs_make_and_show_a_folder(tmp_path: Path, cli: Callable[..., Any]) -> None:
    conversation = {
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The [b]fox[/b]"}]
    }
    source = lines(tmp_path / "a.jsonl", [conversation, conversation, "broken"])
    done = cli("data", "tokenizer", str(source), "-o", str(tmp_path / "t"), "--vocab", "260", "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert "260 ids" in done.stderr
    command = ("data", "prepare", str(source), "-o", str(tmp_path / "d"), "-t", str(tmp_path / "t"), "--chat")
    stopped = cli(*command)
    assert (stopped.returncode, stopped.stdout) == (2, "")
    assert f"error: {source}:3: broken line" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    done = cli(*command, "--on-error", "skip", "--licence", "CC0", "--json")
    assert f"skipped 1 broken: {source}:3" in done.stderr
    assert json.loads(done.stdout)["data"]["sources"][0]["licence"] == "CC0"
    shown = cli("data", "show", str(tmp_path / "d"))
    assert "⟦User: Who?\nAssistant:⟧ The [b]fox[/b]<|endoftext|>\n" in shown.stdout
    shown_json = json.loads(cli("data", "show", str(tmp_path / "d"), "--json", "--num", "1").stdout)
    assert [piece["predicted"] for piece in shown_json["samples"][0]["pieces"]] == [False, True]


# Regeneration


@pytest.fixture(scope="module")
def target(bpe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 300 ids with the tokenizer of 300 and its chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("talker") / "target"
    shutil.copytree(bpe, folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, eos_token_id=None, bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [0, *range(2, 300, 12)]
    model.save_pretrained(folder)
    return folder


def answer(target: Path, unanswered: list[room.UnansweredPrompt], out: Path, **changes: Any) -> room.Regeneration:
    settings = {"max_tokens": 12, "temperature": 1.3, "batch": 2, "seed": 5, "context": 200} | changes
    return room.regenerate(unanswered, target, out, room.RegenerateSettings(**settings))


@pytest.fixture(scope="module")
def unanswered(tmp_path_factory: pytest.TempPathFactory) -> list[room.UnansweredPrompt]:
    rows = [{"question_id": i, "turns": [text[:30], "and then?"]} for i, text in enumerate(sentences(21, seed=2))]
    return room.prompts([str(lines(tmp_path_factory.mktemp("prompts") / "p.jsonl", rows))], False, Skips("stop"))


def test_an_interrupted_regeneration_goes_on_as_if_nothing_had_been(
    tmp_path: Path, target: Path, unanswered: list[room.UnansweredPrompt]
) -> None:
    """Sampled answers, cut off at bytes of chance (seed 0), within a line and between lines, in every group."""
    done = answer(target, unanswered, tmp_path / "whole.jsonl")
    uninterrupted = (tmp_path / "whole.jsonl").read_bytes()
    assert (done.written, done.existing, uninterrupted.count(b"\n")) == (21, 0, 21)
    ends = [i + 1 for i, byte in enumerate(uninterrupted) if byte == 10]
    cuts = [
        0,
        ends[2],
        ends[17],
        len(uninterrupted),
        *np.random.default_rng(0).integers(1, len(uninterrupted), 4).tolist(),
    ]
    for cut in cuts:
        out = tmp_path / f"{cut}.jsonl"
        out.write_bytes(uninterrupted[:cut])
        shutil.copy(tmp_path / "whole.jsonl.settings.json", tmp_path / f"{cut}.jsonl.settings.json")
        again = answer(target, unanswered, out)
        assert out.read_bytes() == uninterrupted
        assert again.written + again.existing == 21
        assert again.existing == uninterrupted[:cut].count(b"\n")


def test_answers_do_not_hang_on_their_company(
    tmp_path: Path, target: Path, unanswered: list[room.UnansweredPrompt]
) -> None:
    """Sampled in batches of two and of five: the same answers (float32)."""
    for name, changes in (("two", {"batch": 2}), ("five", {"batch": 5})):
        answer(target, unanswered, tmp_path / name, **changes)
    two, five = (
        sorted(records.read_lines(dict, tmp_path / name), key=lambda row: row["id"]) for name in ("two", "five")
    )
    assert two == five


def test_other_settings_are_refused_with_the_difference(
    tmp_path: Path, target: Path, unanswered: list[room.UnansweredPrompt]
) -> None:
    answer(target, unanswered[:3], tmp_path / "a.jsonl")
    with pytest.raises(
        ValueError, match=r"begun with other settings \(prompts_sha256 \w{12} → \w{12}, max_tokens 12 → 13\)"
    ):
        answer(target, unanswered[:2], tmp_path / "a.jsonl", max_tokens=13)
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="exists already"):
        answer(target, unanswered[:3], tmp_path / "b.jsonl")


def test_rows_hold_the_very_tokens_of_the_target_and_prepare_counts_them(
    tmp_path: Path, target: Path, unanswered: list[room.UnansweredPrompt], chatml: Path
) -> None:
    answer(target, unanswered, tmp_path / "a.jsonl", temperature=0.0)
    tokenizer: Any = tokenizers.load(target)
    rows = sorted(records.read_lines(dict, tmp_path / "a.jsonl"), key=lambda row: int(row["id"]))
    model = load(target)
    for row, prompt in zip(rows, unanswered, strict=True):
        tokens, answers = row["regenerated"]["tokens"], row["regenerated"]["answers"]
        with torch.inference_mode():
            greedy = model(torch.tensor([tokens])).logits_BTV[0].argmax(-1).tolist()
        for start, end in answers:  # every answered token is the target's own choice at its place
            assert tokens[start:end] == greedy[start - 1 : end - 1]
        assert tokenizer.decode(tokens[: answers[0][0]]) == f"User: {str(prompt.turns[0].content).strip()}\nAssistant:"
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * len(answers)
    assert {len(row["regenerated"]["answers"]) for row in rows} == {1, 2}  # some were cut off, some ended and went on
    prepared: Prepared = prepare(
        [str(tmp_path / "a.jsonl"), str(lines(tmp_path / "b.jsonl", [{"text": "the fox"}]))],
        tmp_path / "d",
        target,
        chat=True,
    )
    data = prepared.folders[""]
    assert data.raw_tokens == len(tokenizer("the fox")["input_ids"]) + 1
    assert data.regenerated_tokens == data.num_tokens - data.raw_tokens > 100
    folder = TokenFolder.open(tmp_path / "d")
    for i, line in enumerate((tmp_path / "a.jsonl").read_text().splitlines()):
        (ids, mask), regenerated = folder.document(i), json.loads(line)["regenerated"]
        assert ids.tolist()[: len(regenerated["tokens"])] == regenerated["tokens"]
        assert np.flatnonzero(mask).tolist() == [
            at for start, end in regenerated["answers"] for at in range(start, end)
        ]
    with pytest.raises(ValueError, match=r"a\.jsonl:1: regenerated with the tokenizer"):
        prepare([str(tmp_path / "a.jsonl")], tmp_path / "e", chatml, chat=True)


def test_a_tokenizer_with_python_of_its_own_is_refused(tmp_path: Path, bpe: Path) -> None:
    folder = shutil.copytree(bpe, tmp_path / "own")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Tok", None]}, "tokenizer_class": "Tok"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as Tok\n"
    )
    with pytest.raises(ValueError, match="no tokenizer"):
        tokenizers.load(folder)
    assert not (tmp_path / "ran").exists()


def test_plain_texts_are_gone_on_from(tmp_path: Path, target: Path, cli: Callable[..., Any]) -> None:
    source = lines(tmp_path / "p.jsonl", [{"text": text} for text in sentences(5, seed=4)])
    done = cli(
        "data", "regenerate", str(source), "--target", str(target), "-o", str(tmp_path / "a.jsonl"), "--plain", "--prompt-tokens", "6",
        "--max-tokens", "9", "--draft", "ngram", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == 5
    assert "tokens per step" in done.stderr
    for row in records.read_lines(dict, tmp_path / "a.jsonl"):
        assert row["regenerated"]["answers"][0][0] == 6
        assert set(row) == {"id", "prompt", "completion", "regenerated"}
    again = cli(
        "data", "regenerate", str(source), "--target", str(target), "-o", str(tmp_path / "a.jsonl"), "--plain", "--prompt-tokens", "7",
        "--max-tokens", "9", "--draft", "ngram",
    )  # fmt: skip
    assert again.returncode == 2
    assert "prompt_tokens 6 → 7" in again.stderr


def test_a_prompt_that_does_not_fit_is_named_or_skipped(
    tmp_path: Path, target: Path, unanswered: list[room.UnansweredPrompt]
) -> None:
    long = room.UnansweredPrompt("long", (Message(role="user", content="the quick brown fox " * 80),))
    with pytest.raises(ValueError, match="prompt long: too long for max_tokens 12 in a context of 200"):
        answer(target, [*unanswered[:2], long], tmp_path / "a.jsonl")
    skips, settings = Skips("skip"), room.RegenerateSettings(max_tokens=12, batch=2, context=200)
    done = room.regenerate([*unanswered[:2], long], target, tmp_path / "b.jsonl", settings, skips=skips)
    assert (done.written, skips.count) == (2, 1)
    done = room.regenerate([*unanswered[:2], long], target, tmp_path / "b.jsonl", settings, skips=skips)
    assert (done.written, done.existing, len(done.steps)) == (0, 2, 0)


def test_another_target_or_template_does_not_go_on(
    tmp_path: Path, target: Path, unanswered: list[room.UnansweredPrompt]
) -> None:
    """One bit of the last byte of the weights, or a chat template that says the same, is another condition."""
    answer(target, unanswered[:3], tmp_path / "a.jsonl")
    tuned = shutil.copytree(target, tmp_path / "tuned")
    weights = bytearray((tuned / "model.safetensors").read_bytes())
    weights[-1] ^= 0x80
    (tuned / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"begun with other settings \(target_sha256 \w{12} → \w{12}\)"):
        answer(tuned, unanswered[:3], tmp_path / "a.jsonl")
    retold = shutil.copytree(target, tmp_path / "retold")
    (retold / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(ValueError, match=r"begun with other settings \(template_sha256 \w{12} → \w{12}\)"):
        answer(retold, unanswered[:3], tmp_path / "a.jsonl")


def test_a_second_run_beside_the_first_ends_at_once(
    tmp_path: Path, target: Path, unanswered: list[room.UnansweredPrompt]
) -> None:
    refusals = []

    def second(work: str, part: int, total: int) -> None:
        with pytest.raises(ValueError, match=r"a\.jsonl: another run is at work on it") as refused:
            answer(target, unanswered[:3], tmp_path / "a.jsonl")
        refusals.append(refused)

    settings = room.RegenerateSettings(max_tokens=4, context=200)
    room.regenerate(unanswered[:3], target, tmp_path / "a.jsonl", settings, progress=second)
    assert len(refusals) >= 4  # while it hashed, and at each row
    rows = records.read_lines(dict, tmp_path / "a.jsonl")
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert answer(target, unanswered[:3], tmp_path / "b.jsonl").written == 3


def test_prompts_of_every_kind_of_row(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "turns": ["a", "b"]},
        {
            "id": "x",
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "no"},
            ],
        },
        {"text": "d"},
    ]
    path = lines(tmp_path / "p.jsonl", rows)
    prompts = room.prompts([str(path)], False, Skips("stop"))
    assert [prompt.id for prompt in prompts] == ["x", "x#2", "p.jsonl:3"]
    assert [[turn.content for turn in prompt.turns] for prompt in prompts] == [["a", "b"], ["s", "c"], ["d"]]
    assert [prompt.text for prompt in room.prompts([str(path)], True, Skips("stop"))] == ["a", "c", "d"]
