"""Chats as people have them: every spelling reaches the template whole, and what a template leaves out is named."""

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from foredraft.data import tokenizer as tokenizers
from foredraft.data.chat import ChatTemplate
from foredraft.data.prepare import Prepared, prepare
from foredraft.data.remarks import Remarks
from foredraft.data.rows import document_of
from foredraft.data.samples import samples
from foredraft.data.tokens import TokenFolder

START, END = "<|im_start|>", "<|im_end|>"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
PLAIN = "{%- for m in messages -%}" + TURN + "{%- endfor -%}" + PROMPT
TOOLS = (
    "{%- if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif -%}{%- for m in messages -%}"
    "{{ '<|im_start|>' + m.role + '\n' }}{%- if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif -%}"
    "{%- if m.content %}{{ m.content }}{% endif -%}{%- for call in m.tool_calls or [] %}{{ '<call>' + call.function | tojson + '</call>' }}"
    "{% endfor -%}{{ '<|im_end|>\n' }}{%- endfor -%}" + PROMPT
)
SPLIT = "{%- set c = m.content.split('</think>')[-1].lstrip('\n') -%}{%- set r = m.reasoning_content or "
SPLIT += "(m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '') -%}"
THINKS = (  # as Qwen3's: the thoughts behind the last user's turn alone
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}{%- for m in messages -%}{%- if m.role == 'assistant' -%}"
    + SPLIT
    + "{{ '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last -%}{{ '<think>\n' + r.strip('\n') + '\n</think>\n\n' }}{%- endif -%}{{ c }}"
    "{%- for call in m.tool_calls or [] %}{{ '<call>' + call.function | tojson + '</call>' }}{% endfor -%}{{ '<|im_end|>\n' }}"
    "{%- else -%}" + TURN + "{%- endif -%}{%- endfor -%}" + PROMPT
)
OPENS = (  # as DeepSeek-R1's: no thoughts at all, but the prompt opens one
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{ '<|im_start|>A:' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
    "{%- else -%}{{ '<|im_start|>U:' + m.content }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>A:<think>\n' }}{%- endif -%}"
)
MARKED = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ (m.content if loop.last else m.content.split('</think>')[-1]) + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{%- else -%}" + TURN + "{%- endif -%}{%- endfor -%}" + PROMPT
)
WANTS_NULL = (  # as DeepSeek-V3's: calls where the content is null, their arguments in a text
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' and m.content is none -%}"
    "{%- for call in m.tool_calls %}{{ call.function.name + '(' + call.function.arguments + ')' }}{% endfor -%}"
    "{%- else -%}{{ m.content }}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}" + PROMPT
)
LISTS = (  # as templates of models that see: parts alone
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}{%- for part in m.content -%}{{ part['text'] }}{%- endfor -%}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}" + PROMPT
)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes with ChatML's tokens, and a beginning token that is put before plain text."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train(["the quick brown fox"], 260, folder / "bytes")
    tokenizer: Any = tokenizers.load(folder / "bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": [START, END], "bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    )
    tokenizer.chat_template = PLAIN
    tokenizer.save_pretrained(folder / "chatml")
    return folder / "chatml"


Read = Callable[..., tuple[list[str], Prepared]]


@pytest.fixture
def read(tmp_path: Path, chatml: Path) -> Read:
    """What becomes of a file's bytes: every text, what is not to be predicted in ⟦brackets⟧."""

    def run(data: bytes | Any, name: str = "a.jsonl", chat: bool = True, **options: Any) -> tuple[list[str], Prepared]:
        source, out = tmp_path / name, tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        source.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        prepared = prepare([str(source)], out, chatml, chat=chat, **options)
        texts = [
            "".join(piece.text if piece.predicted else f"⟦{piece.text}⟧" for piece in sample.pieces)
            for sample in samples(TokenFolder.open(out), tokenizers.load(chatml), 99, 9999)
        ]
        return [text.removesuffix("⟦<|endoftext|>⟧").removesuffix("<|endoftext|>") for text in texts], prepared

    return run


USER = {"role": "user", "content": "2+2?"}
ASKED = "⟦<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟧"
CALL = {"function": {"name": "f", "arguments": {"city": "Paris"}}}
RESULT = {"role": "tool", "content": "20"}
LAST = {"role": "assistant", "content": "It is 20."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, {"role": "assistant", "content": "4"}]},
        {"conversations": [USER, {"role": "assistant", "content": "4"}]},
        {"conversation": [USER, {"role": "Assistant", "content": "4"}]},
        *({"conversations": [{"from": "human", "value": "2+2?"}, {"from": name, "value": "4"}]} for name in ("gpt", "chatgpt", "bing", "bard")),
        {"messages": json.dumps([USER, {"role": "assistant", "content": "4"}])},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, {"role": "assistant", "content": ["4"]}]},
        {"prompt": "2+2?", "response": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"question": "2+2?", "answer": "4"},
        {"prompt": [USER], "completion": [{"role": "assistant", "content": "4"}]},
        {"prompt": [USER], "completion": "4"},
        {"conversations": [{"from": "user", "text": "2+2?"}, {"from": "assistant", "text": "4"}]},
        {"messages": [{"speaker": "human", "message": "2+2?"}, {"speaker": "gpt", "message": "4"}]},
        {"messages": [USER, {"role": "assistant", "content": None, "refusal": "4"}]},
        {"conversations": {"role": ["user", "assistant"], "content": ["2+2?", "4"]}},
    ],
)  # fmt: skip
def test_every_spelling_of_a_chat_is_the_same_text(read: Read, row: Any) -> None:
    texts, prepared = read(row)
    assert texts == [f"{ASKED}4{END}"]
    assert not prepared.warnings


@pytest.mark.parametrize(
    ("row", "system"),
    [
        ({"system": "Be terse.", "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, "Be terse."),
        ({"system_prompt": "Be terse.", "question": "2+2?", "response": "4"}, "Be terse."),
        ({"system": "S", "messages": [{"role": "system", "content": "S"}, USER, {"role": "assistant", "content": "4"}]}, "S"),
    ],
)  # fmt: skip
def test_a_system_beside_the_turns_is_the_first_of_them(read: Read, row: Any, system: str) -> None:
    texts, _ = read(row)
    assert texts == [f"⟦{START}system\n{system}{END}\n{ASKED[1:]}4{END}"]


def test_an_instruction_has_its_input_below_it(read: Read) -> None:
    texts, _ = read({"instruction": "Add.", "input": "2+2", "output": "4"})
    assert texts == [f"⟦{START}user\nAdd.\n\n2+2{END}\n{START}assistant\n⟧4{END}"]


CALLED = [f'<call>{{"name": "f", "arguments": {{"city": "Paris"}}}}</call>{END}', f"It is 20.{END}"]


@pytest.mark.parametrize(
    "turns",
    [
        [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT, LAST],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT, LAST],
        [USER, {"role": "assistant", "tool_calls": [CALL["function"]]}, RESULT, LAST],
        [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Paris"}'}}]}, RESULT, LAST],
        [USER, {"role": "assistant", "tool_calls": json.dumps([CALL])}, {"role": "function", "content": "20"}, LAST],
        [USER, {"role": "assistant", "content": None, "function_call": CALL["function"]}, RESULT, LAST],
        [{"from": "human", "value": "2+2?"}, {"from": "function_call", "value": json.dumps(CALL["function"])},
         {"from": "observation", "value": "20"}, {"from": "gpt", "value": "It is 20."}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("tools", [[{"type": "function", "function": {"name": "f"}}], json.dumps([{"name": "f"}])])
def test_calls_and_tools_reach_the_template_whole(read: Read, turns: Any, tools: Any) -> None:
    texts, prepared = read({"tools": tools, "messages": turns}, template=TOOLS)
    system = '<|im_start|>system\n[{"type": "function", "function": {"name": "f"}}]<|im_end|>\n'
    between = f"\n{START}tool\n20{END}\n{START}assistant\n"
    assert texts == [f"⟦{system}{ASKED[1:]}{CALLED[0]}⟦{between}⟧{CALLED[1]}"]
    assert not prepared.warnings


def test_calls_are_spelt_as_the_template_wants_them_or_the_row_is_refused(read: Read, tmp_path: Path) -> None:
    """Of templates that know no calls an answer would be left that ends at once."""
    row = {
        "messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL | {"id": "call-1"}]}, RESULT, LAST]
    }
    texts, prepared = read(row, template=WANTS_NULL)
    assert f'⟧f({{"city": "Paris"}}){END}⟦' in texts[0]
    (warning,) = prepared.warnings
    assert (
        warning
        == f"the chat template leaves out assistant tool_calls.id (1 row, first {tmp_path}/a.jsonl:1 ('call-1'))"
    )
    for template in (PLAIN, MARKED):
        with pytest.raises(
            ValueError,
            match=r"a\.jsonl:1: the chat template leaves out the call of turn 2 \('f'\); give one that has tools",
        ):
            read(row, template=template)


def test_a_call_that_names_no_function_is_passed_on_as_words_and_named(read: Read) -> None:
    turns = [
        {"from": "human", "value": "w?"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "x"},
    ]
    texts, prepared = read({"system": "s", "tools": "[]", "conversations": turns})
    assert f"⟧{{}}{END}⟦" in texts[0]
    assert "turns of function_call that name no function" in prepared.warnings[0]


THOUGHT = [
    {"role": "assistant", "content": "<think>easy</think>\n\n4"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "<think>hm</think>\n\n6"},
]
APART = [
    {"role": "assistant", "content": "4", "reasoning_content": "easy"},
    THOUGHT[1],
    {"role": "assistant", "content": "6", "reasoning_content": "hm"},
]
OTHER_NAME = [
    {"role": "assistant", "content": "4", "reasoning": "easy"},
    THOUGHT[1],
    {"role": "assistant", "content": "6", "thinking": "hm"},
]
AS_PARTS = [
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "easy"}, {"type": "text", "text": "4"}]},
    *APART[1:],
]


@pytest.mark.parametrize("turns", [THOUGHT, APART, OTHER_NAME, AS_PARTS])
def test_thoughts_that_are_stripped_later_are_split_by_turn(read: Read, turns: Any) -> None:
    texts, prepared = read({"messages": [USER, *turns]}, template=THINKS)
    later = f"⟦{START}user\n2+2?{END}\n{START}assistant\n4{END}\n{START}user\n3+3?{END}\n{START}assistant\n⟧"
    assert texts == [f"{ASKED}<think>\neasy\n</think>\n\n4{END}", f"{later}<think>\nhm\n</think>\n\n6{END}"]
    assert not prepared.warnings


@pytest.mark.parametrize(("turns", "after"), [(THOUGHT, ""), (APART, "\n")])
def test_a_thought_that_the_prompt_opens_is_what_the_target_read_and_wrote(read: Read, turns: Any, after: str) -> None:
    texts, prepared = read({"messages": [USER, *turns]}, template=OPENS)
    first = "\n\n4" if not after else "4"
    assert texts == [
        f"⟦{START}U:2+2?{START}A:<think>\n⟧easy{after}</think>\n\n4{END}",
        f"⟦{START}U:2+2?{START}A:{first}{END}{START}U:3+3?{START}A:<think>\n⟧hm{after}</think>\n\n6{END}",
    ]
    assert not prepared.warnings


def test_a_thought_that_the_template_never_shows_is_learnt_as_it_was_said(read: Read) -> None:
    never = OPENS.replace("<think>\n' }}", "' }}")
    texts, prepared = read({"messages": [USER, *THOUGHT]}, template=never)
    assert [text.split("⟧")[-1] for text in texts] == [f"<think>easy</think>\n\n4{END}", f"<think>hm</think>\n\n6{END}"]
    assert not prepared.warnings


def test_an_answer_without_the_thought_that_the_prompt_opens_is_refused(read: Read) -> None:
    with pytest.raises(
        ValueError,
        match=r"opens a thought \(<think>\) before an answer, and turn 2 has none; give it one \(reasoning_content",
    ):
        read({"messages": [USER, {"role": "assistant", "content": "4"}]}, template=OPENS)


def test_marked_templates_that_strip_thoughts_are_split_by_turn(read: Read) -> None:
    texts, _ = read({"messages": [USER, *THOUGHT]}, template=MARKED)
    assert [text.split("⟧")[-1] for text in texts] == [f"<think>easy</think>\n\n4{END}", f"<think>hm</think>\n\n6{END}"]


def test_what_a_template_leaves_out_is_named_by_kind_with_the_first_row(read: Read, tmp_path: Path) -> None:
    """Short words that stand in the text by chance too: "e" is in "user"."""
    rows = [
        {"messages": [{"role": "system", "content": "e"}, USER, {"role": "assistant", "content": "4", "reasoning_content": "a"},
                      {"role": "user", "content": "Thanks"}]},
        {"messages": [USER, {"role": "assistant", "content": "4"}], "tools": [{"name": "f"}], "score": 1},
    ]  # fmt: skip
    deaf = PLAIN.replace(TURN, "{% if m.role != 'system' %}" + TURN + "{% endif %}")
    _, prepared = read(b"\n".join(json.dumps(row).encode() for row in rows), template=deaf)
    where = f"first {tmp_path}/a.jsonl"
    assert sorted(prepared.warnings) == [
        f"key 'score' is not read (1 row, {where}:2)",
        f"the chat template leaves out assistant reasoning_content (1 row, {where}:1 ('a'))",
        f"the chat template leaves out system content (1 row, {where}:1 ('e'))",
        f"the chat template leaves out tools function.name (1 row, {where}:2 ('f'))",
        f"the chat template leaves out tools type (1 row, {where}:2 ('function'))",
        f"the chat template leaves out user content after the last answer (1 row, {where}:1 ('Thanks'))",
    ]


def test_what_rows_say_beside_their_words_is_minded_or_named(read: Read, tmp_path: Path) -> None:
    """OpenAI's `weight` 0 is not learnt; an answer without words, and options that no template reads, are named."""
    turns = [
        USER,
        {"role": "assistant", "content": "5", "weight": 0},
        USER,
        {"role": "assistant", "content": "4", "weight": 1},
    ]
    texts, prepared = read({"messages": turns})
    assert texts == [f"{ASKED}5{END}\n{ASKED[1:]}4{END}".replace("⟧", "", 1)]
    assert not prepared.warnings
    with pytest.raises(ValueError, match="no turn of the assistant but such of weight 0"):
        read({"messages": turns[:2]})
    row = {"messages": [USER, {"role": "assistant", "content": ""}], "chat_template_kwargs": {"enable_thinking": False}}
    assert sorted(read(row)[1].warnings) == [
        f"the chat template leaves out chat_template_kwargs (1 row, first {tmp_path}/a.jsonl:1 ('enable_thinking'))",
        f"turns of the assistant that are empty: answers that end at once (1 row, first {tmp_path}/a.jsonl:1)",
    ]
    assert read(json.dumps([TURNS, TURNS]).encode(), "a.json")[0] == [SAID, SAID]


def test_rows_that_no_template_touches_are_named(read: Read) -> None:
    texts, prepared = read(b'{"text": "Hello"}\n{"prompt": "2+2=", "completion": "4"}\n')
    assert texts == ["<s>Hello", "⟦<s>2+2=⟧4"]
    assert [warning.split(" are read as they stand")[0] for warning in prepared.warnings] == [
        "rows of 'text'",
        "rows of 'prompt' and 'completion'",
    ]


def test_a_template_that_reads_parts_gets_parts(read: Read) -> None:
    texts, _ = read(
        {"messages": [{"role": "user", "content": ["2+", {"text": "2?"}]}, {"role": "assistant", "content": "4"}]},
        template=LISTS,
    )
    assert texts == [f"{ASKED}4{END}"]


@pytest.mark.parametrize("text", ["<s>Hello", "Hello"])
def test_there_is_one_beginning_token(read: Read, text: str) -> None:
    texts, _ = read({"text": text}, chat=False)
    assert texts == ["<s>Hello"]


def test_a_prompt_has_one_beginning_token(read: Read) -> None:
    texts, _ = read({"prompt": "<s>2+2=", "completion": "4"}, chat=False)
    assert texts == ["⟦<s>2+2=⟧4"]


CHAT = b'{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "n": NaN}'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", CHAT),
        ("a.jsonl", b"\xef\xbb\xbf[" + CHAT + b"]"),
        ("a.json", b"[\n" + CHAT + b"\n]\n"),
        ("a.json", b'{"data": [' + CHAT + b"]}"),
        ("a.json", CHAT.replace(b", ", b",\n ")),
        ("a.jsonl.zst", zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=29)).compressobj().compress(CHAT)),
    ],
)  # fmt: skip
def test_lists_and_packings_that_others_write(read: Read, name: str, data: bytes) -> None:
    if name.endswith(".zst"):  # as `zstd --long=29` from a pipe: a wide window, and a length that is not stated
        packer = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(window_log=29)
        ).compressobj()
        data = packer.compress(CHAT) + packer.flush()
    assert read(data, name)[0] == [f"{ASKED}4{END}"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"text": "half \\ud83d"}', r"a\.jsonl:1: broken line \(half a character: \\ud83d is the half of a pair"),
        (b'[{"text": "half \\ud83d"}]', r"a\.jsonl\[1\]: broken line \(half a character"),
        (b'{"chat": "USER: hi"}', r"no 'text', 'messages'.*it has chat"),
        (b'{"messages": "hello"}', r"'messages' must be a list, got a text that is no JSON"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', r"a part of type 'image_url' in 'content'; only texts are read"),
        (b'{"messages": [{"role": "assistant", "content": null}]}', r"a turn of assistant says nothing"),
        (b'{"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}', r"a call in 'tool_calls' must be an object with 'function'"),
        (b'{"tools": [1], "messages": []}', r"'tools' must be a list of objects"),
        (b'{"system": "a", "messages": [{"role": "system", "content": "b"}]}', r"two systems"),
        (b'{"messages": [{"role": "user", "content": {"a": 1}}]}', r"'content' must be a string, got dict"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_true_line(read: Read, data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        read(data)
    assert "\n" not in str(error.value)


TURNS = [USER, {"role": "assistant", "content": "4"}]
PARTS = [
    {"role": turn["role"], "content": [{"type": "text", "text": turn["content"], "image": None}]} for turn in TURNS
]
SAID = f"{ASKED}4{END}"


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        ([{"messages": TURNS}] * 3, [SAID] * 3),
        ([{"messages": json.dumps(TURNS)}], [SAID]),
        ([{"messages": [json.dumps(turn) for turn in TURNS]}], [SAID]),
        ([{"messages": PARTS}], [SAID]),
        ([{"conversations": {"from": ["human", "gpt"], "value": ["2+2?", "4"]}}], [SAID]),
        ([{"messages": TURNS, "system": None, "text": None}, {"messages": None, "text": "Hello"}, {"messages": []}], [SAID, "<s>Hello"]),
        ([{"text": b"Hello", "n": b"\xff"}], ["<s>Hello"]),
        ([{"messages": [*TURNS[:1], {"role": "assistant", "content": "4", "tool_calls": None}]}], [SAID]),
    ],
    ids=["turns", "JSON", "turns in JSON", "parts", "columns", "nulls and other kinds", "bytes", "null keys"],
)  # fmt: skip
def test_parquet_is_read_by_the_row_without_the_nulls_of_other_rows(
    read: Read, tmp_path: Path, rows: list[dict[str, Any]], texts: list[str]
) -> None:
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1)
    assert read((tmp_path / "a.parquet").read_bytes(), "a.parquet")[0] == texts


def test_parquet_keeps_what_calls_and_tools_have_in_their_own_rows(read: Read, tmp_path: Path) -> None:
    """Arguments as maps and as objects; keys of another row's arguments are no arguments of this one."""
    import pyarrow
    import pyarrow.parquet

    calls = [[{"function": {"name": "f", "arguments": {name: "Paris"}}}] for name in ("city", "town")]
    rows = [
        {"tools": [{"name": "f"}], "messages": [USER, {"role": "assistant", "content": None, "tool_calls": call}, RESULT, LAST]}
        for call in calls
    ]  # fmt: skip
    text = pyarrow.string()
    function = pyarrow.struct([("name", text), ("arguments", pyarrow.map_(text, text))])
    turn = pyarrow.struct(
        [("role", text), ("content", text), ("tool_calls", pyarrow.list_(pyarrow.struct([("function", function)])))]
    )
    mapped = pyarrow.schema(
        [("tools", pyarrow.list_(pyarrow.struct([("name", text)]))), ("messages", pyarrow.list_(turn))]
    )
    for schema in (None, mapped):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), tmp_path / "a.parquet")
        texts, prepared = read((tmp_path / "a.parquet").read_bytes(), "a.parquet", template=TOOLS)
        assert [
            f'"arguments": {{"{name}": "Paris"}}}}</call>' in text
            for name, text in zip(("city", "town"), texts, strict=True)
        ] == [True] * 2
        assert not prepared.warnings


def test_a_parquet_file_that_cannot_be_read_is_one_line(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"b\.parquet:1: truncated or corrupt \(Parquet"):
        read(b"PAR1 nothing PAR1", "b.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"Parquet needs the package pyarrow: pip install 'foredraft\[hub\]'"):
        read(b"PAR1", "c.parquet")


def some_chat(rng: random.Random) -> dict[str, Any]:
    """A chat of chance: roles, tools, calls, parts and thoughts, every text another."""

    def words() -> str:
        return " ".join(
            "".join(rng.choices("bcdfghjklmnpqrstvwz", k=rng.randint(4, 9))) for _ in range(rng.randint(1, 4))
        )

    def content() -> Any:
        text = rng.choice(["{}", "{}\n", " {}", 'say "{}"', "é {} 狐"]).format(words())
        return rng.choice([text, text, [{"type": "text", "text": text}, {"type": "text", "text": words()}]])

    def call() -> dict[str, Any]:
        arguments: Any = {
            words(): rng.choice([words(), 3, [words()], {"deep": words()}]) for _ in range(rng.randint(0, 2))
        }
        arguments = json.dumps(arguments) if rng.random() < 0.3 else arguments
        return {"id": words(), "type": "function", "function": {"name": words(), "arguments": arguments}}

    def answer(calls: bool) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": "assistant", "content": content()}
        if isinstance(turn["content"], str) and rng.random() < 0.4:
            turn["content"] = f"<think>{words()}</think>\n\n{turn['content']}"
        elif rng.random() < 0.4:
            turn[rng.choice(["reasoning_content", "reasoning", "thinking"])] = words()
        elif isinstance(turn["content"], list) and rng.random() < 0.3:
            turn["content"] = [{"type": "thinking", "thinking": words()}, *turn["content"]]
        return turn | (
            {"content": rng.choice(["", None, content()]), "tool_calls": [call() for _ in range(rng.randint(1, 2))]}
            if calls
            else {}
        )

    def result() -> dict[str, Any]:
        said = rng.choice([words(), content(), {words(): words()}, None])
        return {
            "role": rng.choice(["tool", "function", "observation"]),
            "name": words(),
            "content": said,
            "tool_call_id": words(),
        }

    turns: list[dict[str, Any]] = (
        [{"role": rng.choice(["system", "developer"]), "content": words()}] if rng.random() < 0.3 else []
    )
    for _ in range(rng.randint(1, 3)):
        turns.append({"role": "user", "content": content()} | ({"name": words()} if rng.random() < 0.2 else {}))
        if rng.random() < 0.4:
            turns += [answer(True), *(result() for _ in range(rng.randint(1, 2)))]
        turns.append(answer(False))
        turns += [{"role": "system", "content": words()}] if rng.random() < 0.1 else []
    turns += [{"role": "user", "content": content()}] if rng.random() < 0.2 else []
    tool = {
        "type": "function",
        "function": {
            "name": words(),
            "description": words(),
            "parameters": {"properties": {words(): {"type": words()}}},
        },
    }
    beside = {"tools": rng.choice([[tool], json.dumps([tool])])} if rng.random() < 0.5 else {}
    beside |= {"system": words()} if turns[0]["role"] != "system" and rng.random() < 0.3 else {}
    if rng.random() < 0.2:  # as ShareGPT spells them
        turns = [
            {
                "from": turn["role"],
                "value": turn["content"],
                **{key: turn[key] for key in turn if key not in ("role", "content")},
            }
            for turn in turns
        ]
    return {"messages": turns, "source": words(), **beside}


def texts_in(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a row with its name there, names of values that a row brings among them; what is JSON in a text by its parts."""
    if isinstance(value, str) and name in ("tools", "arguments") and value[:1] in "[{":
        value = json.loads(value)
    if isinstance(value, str):
        yield from ((name, part) for part in value.replace("</think>", "<think>").split("<think>") if part.strip())
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from [(name, key)] if name in ("arguments", "properties") else []
            yield from texts_in(part, name if name in ("arguments", "properties") else key)
    elif isinstance(value, list):
        for part in value:
            yield from texts_in(part, name)


@pytest.mark.parametrize(
    "template",
    [PLAIN, TOOLS, THINKS, OPENS, MARKED, WANTS_NULL, LISTS],
    ids=["plain", "tools", "thinks", "opens", "marked", "null", "lists"],
)
def test_every_text_of_a_row_is_rendered_or_named(chatml: Path, template: str) -> None:
    """24 chats of chance, seed 0; refused rows name what is missing. No text stands elsewhere by chance: each is of random letters."""
    rng, shape, refusals = random.Random(0), ChatTemplate(tokenizers.load(chatml), template), []
    for number in range(24):
        row, remarks = some_chat(rng), Remarks()
        document = document_of(f"row {number}", row, "chat")
        assert document is not None
        try:
            rendering = shape.render(document.messages, document.tools, document.options)
        except ValueError as error:
            refusals.append(str(error))
            continue
        remarks.note(document, rendering.left_out)
        text, warnings = "\n".join(part.text for part in rendering.texts), " ".join(remarks.lines())
        assert all(f"leaves out {each.kind} (" in warnings for each in rendering.left_out)
        named = " ".join(each.text for each in rendering.left_out)
        for name, words in texts_in(row):
            spelt = words.strip(), json.dumps(words.strip())[1:-1], json.dumps(words.strip(), ensure_ascii=False)[1:-1]
            told = any(each in text or each in named for each in spelt) or f"key {name!r} is not read" in warnings
            assert told or name in ("role", "type", "from"), (words, row, text, warnings)
        for part in rendering.texts:  # what is to be predicted is what the assistant said, to its end token
            assert all(
                part.text[start:end].endswith(END) and START not in part.text[start:end] for start, end in part.spans
            )
    assert len(refusals) < 24
    assert all("leaves out the call of turn" in refusal or "opens a thought" in refusal for refusal in refusals)
