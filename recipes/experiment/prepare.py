"""The experiment's data from a corpus of JSON lines: a tokenizer, token folders, and prompts for the target to answer.

The corpus is a folder of train-DOMAIN and val-DOMAIN files (.jsonl.zst, rows with `text`; conversations as "User: …\\nAssistant: …"), and
beside it prompts/indomain.jsonl, Spec-Bench's form, cut from the val files. Only domains that may be published are read.

    python recipes/experiment/prepare.py CORPUS OUT
"""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

DOMAINS = "books", "stories", "news", "math", "qa", "summarize", "code_stdlib"
RAW = {"stories": 1200, "books": 800, "news": 800, "code_stdlib": 600}  # prompts to take of each
CHAT = {"math": 1600, "qa": 1400, "summarize": 900}
VOCAB = 4096
HELD_OUT = 0.05  # as many prompts of held-out documents, as a share of those of training documents
CATEGORIES = {"indomain_story": "stories", "indomain_book": "books", "indomain_news": "news", "indomain_math": "math", "indomain_rag": "qa",
              "indomain_summarization": "summarize", "indomain_code": "code"}  # fmt: skip
PIECE = 2400  # characters between the prompts cut from one document


def foredraft(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "foredraft", *map(str, arguments)], check=True)


def texts(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        yield from (json.loads(line)["text"] for line in lines)


def spread(items: list[Any], num: int) -> list[Any]:
    """`num` of them, evenly over the file."""
    return [items[i * len(items) // num] for i in range(min(num, len(items)))]


def plain(path: Path, num: int) -> list[dict[str, Any]]:
    """Texts to go on from: beginnings of documents, and of lines within them."""
    pieces = []
    for text in texts(path):
        pieces += [text[:PIECE], *(text[at : at + PIECE].partition("\n")[2] for at in range(PIECE, len(text), PIECE))]
    return [{"text": piece} for piece in spread([piece for piece in pieces if len(piece) > 400], num)]


def questions(path: Path, num: int) -> list[dict[str, Any]]:
    """The user's turn of conversations with one."""
    users = [text.removeprefix("User: ").split("\nAssistant: ")[0] for text in texts(path) if text.startswith("User: ")]
    return [{"messages": [{"role": "user", "content": user}]} for user in spread(users, num)]


def prompts(path: Path) -> str:
    """Those of the domains that the target was trained on."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    prompt_rows = [row | {"category": CATEGORIES[row["category"]]} for row in rows if row["category"] in CATEGORIES]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompt_rows)


def main(corpus: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    files = {part: [corpus / f"{part}-{domain}.jsonl.zst" for domain in DOMAINS] for part in ("train", "val")}
    foredraft("data", "tokenizer", *files["train"], "--out", out / "tokenizer", "--vocab", VOCAB)
    for part, paths in files.items():
        foredraft("data", "prepare", *paths, "--out", out / part, "--tokenizer", out / "tokenizer")
    (out / "prompts.jsonl").write_text(prompts(corpus.parent / "prompts" / "indomain.jsonl"), encoding="utf-8")
    for part, share in (("train", 1.0), ("val", HELD_OUT)):
        for make, num_rows, name in ((plain, RAW, "plain"), (questions, CHAT, "chat")):
            files_of = {domain: corpus / f"{part}-{domain}.jsonl.zst" for domain in num_rows}
            rows = [row for domain, path in files_of.items() for row in make(path, round(num_rows[domain] * share))]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (out / f"{name}-{part}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
