"""A server's answers as training data: its counts checked against the tokenizer at hand, and nothing asked twice."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from foredraft import records
from foredraft.data import tokenizer as tokenizers
from foredraft.data.prepare import prepare

CHATML = (
    "{%- if tools %}{{ 'tools: ' + tools | tojson + '\n' }}{% endif -%}{%- for m in messages -%}"
    "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}"
)
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and nothing else, as one has of a target that only a server holds."""
    folder = tmp_path_factory.mktemp("words")
    tokenizers.train(["the quick brown fox"], 260, folder / "bytes")
    tokenizer: Any = tokenizers.load(folder / "bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "words")
    return folder / "words"


class Served:
    """A server of the OpenAI API that answers "so WORDS" and counts as the tokenizer does, unless it is told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = tokenizers.load(folder)
        self.strict = self.tells_ids = False
        self.extra_tokens = 0
        self.asked: list[dict[str, Any]] = []
        self.first_refusal, self.answered = threading.Semaphore(1), threading.Event()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "big"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if served.strict and "return_token_ids" in body:
                    if not served.first_refusal.acquire(
                        blocking=False
                    ):  # refuse the others after another client's answer
                        served.answered.wait(10)
                        time.sleep(0.2)
                    self.reply(400, {"error": {"message": "unknown parameter return_token_ids"}})
                elif "refuse" in json.dumps(body):
                    self.reply(400, {"error": {"message": "too long"}})
                else:
                    served.asked.append(body)
                    self.reply(200, served.answer(body))
                    served.answered.set()

            def reply(self, status: int, page: Any) -> None:
                data = json.dumps(page).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        if "messages" in body:
            text = self.tokenizer.apply_chat_template(
                body["messages"], tools=body.get("tools"), tokenize=False, add_generation_prompt=True
            )
            prompt, said = self.tokenizer(text)["input_ids"], f"so {body['messages'][-1]['content']}"
        else:
            prompt, said = body["prompt"], " so on"
        ids = [*self.tokenizer(said)["input_ids"], self.tokenizer.eos_token_id]
        cut = "long" in said
        choice = {
            "message": {"role": "assistant", "content": said},
            "text": said,
            "finish_reason": "length" if cut else "stop",
        }
        told = {"token_ids": ids[:-1] if cut else ids} if self.tells_ids else {}
        counts = {"prompt_tokens": len(prompt) + self.extra_tokens, "completion_tokens": len(ids) - cut}
        return {"choices": [choice | told], "usage": counts}


@pytest.fixture
def served(words: Path) -> Iterator[Served]:
    server = Served(words)
    thread = threading.Thread(target=server.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.server.shutdown()
    thread.join()


ROWS = [
    {"id": "two", "system": "S", "tools": [{"name": "f"}],
     "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "no"}, {"from": "human", "value": "b"}]},
    {"id": "long", "prompt": "a long one"},
]  # fmt: skip


@pytest.fixture
def run(cli: Cli, served: Served, words: Path, tmp_path: Path) -> Callable[..., Any]:
    def regenerate(rows: list[Any], *options: str, out: str = "a.jsonl") -> Any:
        source = tmp_path / "p.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return cli(
            "data",
            "regenerate",
            source,
            "--target",
            words,
            "-o",
            tmp_path / out,
            "--endpoint",
            f"{served.url}/v1",
            "--json",
            *options,
        )

    return regenerate


@pytest.mark.parametrize(("strict", "tells_ids"), [(False, False), (True, False), (False, True)])
def test_a_servers_answers_become_training_data(
    run: Callable[..., Any], served: Served, words: Path, tmp_path: Path, strict: bool, tells_ids: bool
) -> None:
    served.strict, served.tells_ids = strict, tells_ids
    done = run(ROWS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == 2
    rows = {row["id"]: row for row in records.read_lines(dict, tmp_path / "a.jsonl")}
    decode = served.tokenizer.decode
    tokens, answers = (rows["two"]["regenerated"][name] for name in ("tokens", "answers"))
    assert [decode(tokens[start:end]) for start, end in answers] == ["so a<|im_end|>", "so b<|im_end|>"]
    assert decode(tokens).startswith(
        'tools: [{"type": "function", "function": {"name": "f"}}]\n<|im_start|>system\nS<|im_end|>\n'
    )
    cut = rows["long"]["regenerated"]
    assert (cut["finish"], decode(cut["tokens"][cut["answers"][0][0] :])) == (["length"], "so a long one")
    prepared = prepare([str(tmp_path / "a.jsonl")], tmp_path / "d", words, chat=True)
    assert prepared.folders[""].predicted_tokens == sum(end - start for start, end in (*answers, *cut["answers"]))
    asked = len(served.asked)
    again = run(ROWS)
    assert (json.loads(again.stdout)["found"], len(served.asked)) == (2, asked)


def test_counts_that_differ_and_refusals_stop_or_are_skipped(
    run: Callable[..., Any], served: Served, words: Path
) -> None:
    served.extra_tokens = 1
    stopped = run(ROWS[1:])
    assert stopped.returncode == 2
    assert "prompt long: the server counts" in stopped.stderr
    assert f"the tokenizer and template in {words}" in stopped.stderr
    assert "is it the target's folder" in stopped.stderr
    served.extra_tokens = 0
    done = run([{"id": "x", "prompt": "refuse"}, *ROWS], "--on-error", "skip", out="b.jsonl")
    assert json.loads(done.stdout)["written"] == 2
    assert "skipped 1 broken: prompt x: " in done.stderr
    assert "HTTP 400: too long" in done.stderr


def test_plain_texts_are_gone_on_from_by_a_server(run: Callable[..., Any], served: Served, tmp_path: Path) -> None:
    assert run([{"text": "the quick"}], "--plain").returncode == 0
    (row,) = records.read_lines(dict, tmp_path / "a.jsonl")
    assert (row["prompt"], row["completion"]) == ("the quick", " so on")
    assert served.asked[0]["prompt"] == row["regenerated"]["tokens"][: row["regenerated"]["answers"][0][0]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "small"), "serves no model 'small', but big; pass one of them as --model"),
        (("--draft", "ngram"), "--draft: not used with --endpoint"),
        (("--endpoint", "http://127.0.0.1:9"), "no server answers"),
    ],
)
def test_what_a_server_cannot_do_is_one_line(run: Callable[..., Any], options: tuple[str, ...], says: str) -> None:
    done = run(ROWS, *options)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_options_of_servers_need_one(cli: Cli, words: Path, tmp_path: Path) -> None:
    done = cli("data", "regenerate", tmp_path / "p.jsonl", "--target", words, "-o", tmp_path / "a", "--model", "big")
    assert done.returncode == 2
    assert "--model: used with --endpoint alone" in done.stderr
