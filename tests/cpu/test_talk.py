"""Chat as people use it: prompts out of files, several turns, stop tokens, bench on chats; and regeneration of chats with tools and thoughts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foredraft import records, text
from foredraft.data import regenerate as room
from foredraft.data import tokenizer as tokenizers
from foredraft.data.conversation import ChatQuestion, asked, conversations, question_of
from foredraft.data.dialogue import Dialogue
from foredraft.data.prepare import prepare
from foredraft.data.remarks import Remarks
from foredraft.data.sources import Skips

Cli = Callable[..., Any]
CHATML = (
    "{%- if tools %}{{ 'tools: ' + tools | tojson + '\n' }}{% endif -%}{%- for m in messages -%}"
    "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}"
)
STRIPS = CHATML.replace(
    "(m.content or '')", "(m.content.split('</think>')[-1] if m.role == 'assistant' else m.content)"
)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose every fourth id is an end by generation_config.json, with ChatML's tokens and template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("talker")
    tokenizers.train(["the quick brown fox jumps over the lazy dog"], 270, folder / "bytes")
    tokenizer: Any = tokenizers.load(folder / "bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "target")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=1024, eos_token_id=None, bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = list(range(0, len(tokenizer), 4))
    model.save_pretrained(folder / "target")
    return folder / "target"


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [
    {"question_id": 1, "category": "qa", "turns": ["Who?", "And then?"]},
    {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                  {"role": "user", "content": "c"}]},
    {"prompt": "Why?"},
    {"conversations": [{"from": "human", "value": "d"}, {"from": "gpt", "value": "e"}], "tools": [{"name": "f"}]},
    {"prompt": "Once", "format": "raw"},
]  # fmt: skip


def test_a_file_of_rows_asks_what_they_ask(tmp_path: Path, talker: Path) -> None:
    tokenizer: Any = text.tokenizer_of(talker)
    questions = asked(lines(tmp_path / "p.jsonl", ROWS), Skips("stop"))
    talks = conversations(questions, tokenizer, "auto", None)
    prompts = [tokenizer.decode(talk.ask(question.turns[0])) for talk, question in zip(talks, questions, strict=True)]
    user = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert prompts[0] == user.format("Who?")
    assert (
        prompts[1]
        == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        + user.format("c")
    )
    assert prompts[2] == user.format("Why?")
    assert prompts[3] == 'tools: [{"type": "function", "function": {"name": "f"}}]\n' + user.format("d")
    assert prompts[4] == "Once"
    talks[0].hear(" It. ")
    second = tokenizer.decode(talks[0].ask(questions[0].turns[1]))
    assert second == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nIt.<|im_end|>\n" + user.format(
        "And then?"
    )
    with pytest.raises(ValueError, match=r"--system: .*:5 is asked as it stands"):
        conversations(questions, tokenizer, "auto", "Be brief.")
    with_system = conversations(questions[:2], tokenizer, "always", "Be brief.")
    assert [talk.messages[0].content for talk in with_system] == ["Be brief.", "S"]


def test_generate_puts_prompts_into_the_template_and_asks_every_turn(cli: Cli, tmp_path: Path, talker: Path) -> None:
    source = lines(tmp_path / "p.jsonl", ROWS)
    done = cli("generate", talker, "--file", source, "--max-tokens", "4", "--json", "--draft", "ngram")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer["prompt"] for answer in answers] == ["Who?", "And then?", "c", "Why?", "d", "Once"]
    alone = json.loads(cli("generate", talker, "Why?", "--max-tokens", "4", "--json").stdout)
    assert alone[0]["tokens"] == answers[3]["tokens"]
    raw = json.loads(cli("generate", talker, "Why?", "--max-tokens", "4", "--json", "--chat", "never").stdout)
    assert raw[0]["tokens"] != alone[0]["tokens"]
    with_system = cli("generate", talker, "Why?", "--max-tokens", "4", "--json", "--system", "Be brief.")
    assert json.loads(with_system.stdout)[0]["tokens"] != alone[0]["tokens"]


def test_a_talk_goes_on_and_streams(cli: Cli, talker: Path) -> None:
    """What is said at the second turn is what a prompt with the first answer in it gets; /new forgets it."""
    done = cli(
        "chat",
        talker,
        "--max-tokens",
        "6",
        "--draft",
        "ngram",
        "--stats",
        stdin="Who?\nAnd then?\n\n/new\nWho?\n/bye\nnothing\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tokens per step") == 3
    tokenizer: Any = text.tokenizer_of(talker)
    engine, (talk,) = text.load_engine(talker), conversations([question_of("")], tokenizer, "always")
    spoken = []
    for words in ("Who?", "And then?"):
        ids = talk.ask(question_of(words).turns[0])
        ((answer, _),) = text.generate(engine, tokenizer, [ids], max_tokens=6, ends=text.stop_ids(talker, tokenizer))
        talk.hear(answer.text)
        spoken.append(answer.text)
    assert done.stdout == f"{spoken[0]}\n{spoken[1]}\n{spoken[0]}\n"


def test_a_talk_that_is_too_long_is_told_and_goes_on(cli: Cli, talker: Path, checkpoint: Path) -> None:
    done = cli("chat", talker, "--max-tokens", "4", "--context", "90", stdin=f"{'a' * 90}\nWho?\n")
    assert done.returncode == 0
    assert "max_context is 90" in done.stderr
    assert "/new begins anew" in done.stderr
    assert done.stdout.count("\n") >= 1
    refused = cli("chat", checkpoint, stdin="Who?\n")
    assert refused.returncode == 2
    assert "no chat_template" in refused.stderr


class Spelt:
    """A tokenizer whose ids are words."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.added_tokens_decoder = {
            i: type("Token", (), {"content": word, "special": True}) for i, word in enumerate(words) if word[:2] == "<|"
        }

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(self.words[i] for i in ids if not (skip_special_tokens and i in self.added_tokens_decoder))


@pytest.mark.parametrize(
    ("stop", "left"), [("<|end|>", "ab"), ("b<|end|>", "a"), ("<|end|>c", "ab"), ("c", "ab"), ("<|other|>", "abcd")]
)
def test_stop_strings_match_special_tokens(stop: str, left: str) -> None:
    shown: list[str] = []
    completion = text.Completion(
        Spelt("a", "b", "<|end|>", "c", "d", "<|other|>"), (stop,), lambda piece, _: shown.append(piece)
    )
    completion.take([0, 1])
    completion.take([2, 3, 4])
    assert (completion.finish(), completion.stopped) == (left, left != "abcd")
    assert "".join(shown) == left


def test_bench_asks_chats_with_their_second_turns(tmp_path: Path, talker: Path) -> None:
    from foredraft.measure.bench import bench
    from foredraft.measure.settings import MeasureSettings

    questions: list[str | ChatQuestion] = [*asked(lines(tmp_path / "p.jsonl", ROWS[:2]), Skips("stop")), "Why?"]
    result = bench(str(talker), ["ngram"], questions, MeasureSettings(max_tokens=4, batches=(2,), rounds=1))
    assert (result.conditions["prompts"], result.conditions["in_chat"], result.conditions["later_turns"]) == (3, 3, 1)
    assert result.rows[1].same_tokens
    raw = bench(str(talker), [], questions, MeasureSettings(max_tokens=4, batches=(2,), rounds=1, chat="never"))
    assert (raw.conditions["in_chat"], raw.conditions["later_turns"]) == (0, 0)


# Regeneration


def answered(
    target: Path, source: Path, out: Path, skips: Skips, remarks: Remarks | None = None
) -> list[dict[str, Any]]:
    settings = room.RegenerateSettings(max_tokens=8, batch=2, context=400, temperature=1.0)
    room.regenerate(room.prompts([str(source)], False, skips), target, out, settings, skips=skips, remarks=remarks)
    return records.read_lines(dict, out)


CALLED = {
    "tools": [{"name": "f"}], "system": "S",
    "messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "20"}, {"role": "assistant", "content": "no"}, {"role": "user", "content": "Bye"},
    ],
}  # fmt: skip


def test_regenerated_chats_keep_tools_and_system_and_are_prepared_whole(tmp_path: Path, talker: Path) -> None:
    (row,) = answered(talker, lines(tmp_path / "p.jsonl", [CALLED]), tmp_path / "a.jsonl", Skips("stop"))
    tokenizer: Any = tokenizers.load(talker)
    assert row["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert row["messages"][0] == {"role": "system", "content": "S"}
    parts = row["regenerated"] if isinstance(row["regenerated"], list) else [row["regenerated"]]
    begins = 'tools: [{"type": "function", "function": {"name": "f"}}]\n<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n'
    assert all(tokenizer.decode(part["tokens"]).startswith(begins) for part in parts)
    data = prepare([str(tmp_path / "a.jsonl")], tmp_path / "d", talker, chat=True).folders[""]
    answers = sum(end - start for part in parts for start, end in part["answers"])
    assert data.predicted_tokens == answers
    assert data.num_documents == len(parts)


def heard(
    prompt: room.UnansweredPrompt, template: str, answers: list[str], tokenizer: Any
) -> tuple[list[str], dict[str, Any]]:
    """The prompts of a dialogue that gets these answers, each with its end token, and its row."""
    from foredraft.data.chat import ChatTemplate

    conditions = room.AnswerConditions(target_sha256="", tokenizer_sha256="", prompts_sha256="", max_tokens=8)
    dialogue, prompts = Dialogue(prompt, conditions, tokenizer, ChatTemplate(tokenizer, template)), []
    for answer in answers:
        assert dialogue.ask(None)
        prompts.append(tokenizer.decode(dialogue.ids))
        dialogue.hear(tokenizer(f"{answer}<|im_end|>")["input_ids"], "stop")
    assert not dialogue.ask(None)
    return prompts, dialogue.row()


def test_thoughts_that_a_template_strips_make_parts_and_others_one_sequence(tmp_path: Path, talker: Path) -> None:
    tokenizer: Any = tokenizers.load(talker)
    (prompt,) = room.prompts([str(lines(tmp_path / "p.jsonl", [ROWS[0]]))], False, Skips("stop"))
    first, second = (
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n",
    )
    prompts, row = heard(prompt, STRIPS, ["<think>x</think>It", "<think>y</think>That"], tokenizer)
    assert prompts == [first, f"{first}It<|im_end|>\n{second}"]
    texts = [tokenizer.decode(part.tokens) for part in row["regenerated"]]
    assert texts == [
        f"{first}<think>x</think>It<|im_end|>",
        f"{first}It<|im_end|>\n{second}<think>y</think>That<|im_end|>",
    ]
    assert [[tokenizer.decode(part.tokens[start:end]) for start, end in part.answers] for part in row["regenerated"]] == [
        ["<think>x</think>It<|im_end|>"], ["<think>y</think>That<|im_end|>"],
    ]  # fmt: skip
    prompts, row = heard(prompt, CHATML, ["It", "That"], tokenizer)
    assert len(row["regenerated"].answers) == 2


def test_behind_a_recorded_call_its_results_are_answered(tmp_path: Path, talker: Path) -> None:
    tokenizer: Any = tokenizers.load(talker)
    (prompt,) = room.prompts([str(lines(tmp_path / "p.jsonl", [CALLED]))], False, Skips("stop"))
    calls = CHATML.replace("(m.content or '')", "(m.content or '') + ((m.tool_calls | tojson) if m.tool_calls else '')")
    prompts, row = heard(prompt, calls, ["my own call", "Twenty", "Bye bye"], tokenizer)
    call = '[{"function": {"name": "f", "arguments": {}}}]'
    assert f"<|im_start|>assistant\n{call}<|im_end|>\n<|im_start|>tool\n20<|im_end|>\n" in prompts[1]
    assert "my own call" not in prompts[1]
    assert prompts[2].endswith("Twenty<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n")
    assert [len(part.answers) for part in row["regenerated"]] == [1, 2]


def test_a_row_that_the_template_refuses_is_skipped_where_asked(tmp_path: Path, talker: Path) -> None:
    import shutil

    strict = shutil.copytree(talker, tmp_path / "strict")
    shout = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    (strict / "chat_template.jinja").write_text(shout + CHATML.replace("{%- if tools %}", "{%- if false %}"))
    rows = [
        {"id": "a", **ROWS[1]},
        {"id": "b", "prompt": "Why?", "tools": [{"name": "f"}]},
        {"id": "c", "turns": ["x"], "tools": [{"name": "ff"}]},
    ]
    source = lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(
        ValueError, match="prompt a: the chat template fails: no system; mend it, or pass --on-error skip"
    ):
        answered(strict, source, tmp_path / "a.jsonl", Skips("stop"))
    skips, remarks = Skips("skip"), Remarks()
    left = answered(strict, source, tmp_path / "b.jsonl", skips, remarks)
    assert ([row["id"] for row in left], skips.count) == (["b", "c"], 1)
    assert "the chat template leaves out tools function.name (2 rows, first prompt b ('f'))" in remarks.lines()


def test_measure_asks_later_turns_behind_the_targets_own_answers(tmp_path: Path, talker: Path) -> None:
    """As the engine says them plainly; what is asked as it stands has its first turn alone. A batch of more prompts than there are is none."""
    from foredraft.measure.settings import MeasureSettings
    from foredraft.measure.subject import subject_of

    rows = [ROWS[0], ROWS[1], ROWS[3], {"turns": ["Once", "more"], "format": "raw"}]
    settings = MeasureSettings(max_tokens=4, batches=(5,))
    subject = subject_of(talker, [], lines(tmp_path / "p.jsonl", rows), settings, Skips("stop"))
    tokenizer: Any = text.tokenizer_of(talker)
    asked_words = {prompt.where.rpartition(":")[2]: tokenizer.decode(prompt.ids) for prompt in subject.prompts}
    assert list(asked_words) == ["1", "1, turn 2", "2", "3", "4"]  # of a category together
    first, user = subject.prompts[0], "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    answered = text.generate(
        subject.configurations[0].engine,
        tokenizer,
        [list(first.ids)],
        max_tokens=4,
        ends=text.stop_ids(talker, tokenizer),
    )
    said = f"{answered[0][0].text.strip()}<|im_end|>\n"
    assert asked_words["1, turn 2"] == f"{user.format('Who?')}{said}{user.format('And then?')}"
    assert asked_words["2"] == "<|im_start|>system\nS<|im_end|>\n" + user.format("a")
    assert asked_words["3"].startswith('tools: [{"type": "function"')
    assert asked_words["4"] == "Once"
    assert "5 prompts (1 of them later turns" in (subject.fields["provenance"].note or "")
    with pytest.raises(ValueError, match=r"batch 6 needs as many prompts, got 5; .*lower --batch"):
        subject_of(talker, [], tmp_path / "p.jsonl", MeasureSettings(max_tokens=4, batches=(1, 6)), Skips("stop"))
    long = Skips("skip")
    alone = lines(tmp_path / "q.jsonl", rows[:1])
    assert len(subject_of(talker, [], alone, MeasureSettings(max_tokens=980), long).prompts) == 1
    assert "q.jsonl:1, turn 2: " in long.named[0]


def test_bench_refuses_a_batch_of_more_prompts_than_there_are(tmp_path: Path, talker: Path) -> None:
    from foredraft.measure.bench import bench
    from foredraft.measure.settings import MeasureSettings

    with pytest.raises(ValueError, match="batch 3 needs as many prompts, got 1"):
        bench(str(talker), [], ["Why?"], MeasureSettings(max_tokens=4, batches=(3,)))
