"""Prompts for a public instruct model to answer, in Spec-Bench's categories, from a corpus of JSON lines.

The corpus is a folder of train-DOMAIN and val-DOMAIN files (.jsonl.zst, rows with `text`; conversations as "User: …\\nAssistant: …").
Every prompt is cut from one document; held-out prompts come from the val files, whose documents are others. `published` marks
what was made of domains that may be redistributed, on which drafts to be published are trained.

    python recipes/smollm2/prompts.py CORPUS OUT        writes OUT/prompts-train.jsonl and OUT/prompts-val.jsonl
"""

import ast
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

LONGEST = 1600  # characters of a prompt
HELD_OUT = 0.05  # as many held-out prompts, as a share of those for training
TOPICS: dict[str, list[str]] = json.loads((Path(__file__).parent / "topics.json").read_bytes())
ASKED = (
    "Explain {} to a beginner.", "What is {} and why does it matter?", "Describe {} in a few paragraphs, with an example.",
    "Give a short overview of {}, then list three open questions about it.", "How would you teach {} to a ten-year-old?",
    "What are common misunderstandings about {}?", "Discuss {} and how it affects everyday life.", "Write five exam questions about {} with answers.",
)  # fmt: skip


class Passage(NamedTuple):
    """A document's id and its text, or what its user asks."""

    id: str
    text: str


class Maker(NamedTuple):
    """Makes `num` training prompts of a category from the passages of a domain; a passage that does not suit gives None."""

    category: str
    domain: str
    num: int
    prompt: Callable[[str], str | None]
    published: bool = True


def first_piece(text: str, longest: int) -> str | None:
    """Whole paragraphs from the beginning of a text, of 200 to `longest` characters together."""
    piece = ""
    for paragraph in re.split(r"\n+", text.strip()):
        if len(piece) + len(paragraph) > longest:
            break
        piece += ("\n" if piece else "") + paragraph
    return piece if len(piece) >= 200 else None


def about_passage(ask: str, longest: int = 1200) -> Callable[[str], str | None]:
    """A prompt that quotes the beginning of a text."""
    return lambda text: (piece := first_piece(text, longest)) and ask.format(piece)


def headline(ask: str) -> Callable[[str], str | None]:
    """A prompt from the first line of a news text."""

    def prompt(text: str) -> str | None:
        line = text.split("\n", 1)[0].strip()
        return ask.format(line) if 20 <= len(line) <= 120 and not line.endswith(".") else None

    return prompt


def sentence(ask: str) -> Callable[[str], str | None]:
    """A prompt from one sentence of a text, the same one each time."""

    def prompt(text: str) -> str | None:
        sentences = [part for part in re.split(r"(?<=[.!?])\s+", text.replace("\n", " ")) if 40 <= len(part) <= 220]
        return ask.format(sentences[len(text) % len(sentences)]) if sentences else None

    return prompt


def function(ask: str, whole: bool) -> Callable[[str], str | None]:
    """A prompt from one function of a module: its code, or its signature and the first line of its docstring."""

    def prompt(text: str) -> str | None:
        try:
            module = ast.parse(text)
        except SyntaxError:
            return None
        functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)]
        fitting = [node for node in functions if len(ast.get_source_segment(text, node) or "") < 1200]
        if not fitting:
            return None
        chosen = fitting[len(text) % len(fitting)]
        code = ast.get_source_segment(text, chosen) or ""
        line = (ast.get_docstring(chosen) or "").split("\n", 1)[0]
        return ask.format(code if whole else f"{chosen.name}({ast.unparse(chosen.args)}): {line}")

    return prompt


def as_asked(text: str) -> str:
    """What the user of a conversation asks."""
    return text


MAKERS = (
    Maker("math_reasoning", "math", 1500, as_asked),
    Maker("qa", "qa", 1100, as_asked),
    Maker("summarization", "summarize", 800, as_asked),
    Maker("summarization", "news", 400, about_passage("Summarize: {}")),
    Maker("rag", "news", 400, about_passage("{}\nWhat does this text report, who is involved, and why does it matter?")),
    Maker("rag", "stories", 300, about_passage("{}\nDescribe what happens here and what the people in it want.")),
    Maker("extraction", "news", 300, about_passage("List every person, place and date named in this text, as JSON.\n\n{}", 900)),
    *(Maker("translation", "news", 80, sentence(f"Translate English to {language}: {{}}")) for language in TOPICS["language"]),
    *(Maker("translation", "stories", 40, sentence(f"Translate English to {language}: {{}}")) for language in TOPICS["language"]),
    Maker("writing", "news", 250, headline("Write a short blog post on this topic: {}")),
    Maker("writing", "stories", 250, sentence("Write a short story that begins with this sentence: {}")),
    Maker("writing", "books", 150, about_passage("Continue this text in the same style.\n\n{}", 600)),
    Maker("reasoning", "books", 100, about_passage("{}\n\nWhat can be concluded from this about the speakers? Reason step by step.", 700)),
    *(Maker("roleplay", "news", 25, headline(f"Pretend yourself to be {role}. What do you say to this news: {{}}")) for role in TOPICS["role"]),
    Maker("coding", "code_stdlib", 250, function("Explain what this Python function does, line by line.\n\n{}", whole=True)),
    Maker("coding", "code_stdlib", 250, function("Write a Python function {} Add a docstring and an example.", whole=False)),
    Maker("instruction", "instruct", 2600, as_asked, published=False),
    Maker("dialogue", "dialogue", 500, as_asked, published=False),
)  # fmt: skip


def passages(path: Path) -> Iterator[Passage]:
    """Documents of a file; of a conversation what its user asks first."""
    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        for row in map(json.loads, lines):
            asked = row["text"].removeprefix("User: ").split("\nAssistant: ")[0]
            yield Passage(str(row["id"]), asked if row["text"].startswith("User: ") else row["text"])


def shuffled(key: str) -> str:
    """A place in an order that depends on the name alone."""
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def prompts(corpus: Path, part: str) -> list[dict[str, Any]]:
    """Rows of one part, each prompt once, in an order that mixes the categories."""
    rows: dict[str, dict[str, Any]] = {}
    for number, maker in enumerate(MAKERS):
        documents = sorted(
            passages(corpus / f"{part}-{maker.domain}.jsonl.zst"), key=lambda p: shuffled(f"{number} {p.id}")
        )
        num = maker.num if part == "train" else max(1, round(maker.num * HELD_OUT))
        texts = ((document.id, maker.prompt(document.text)) for document in documents)
        fitting = ((name, text) for name, text in texts if text and 12 <= len(text) <= LONGEST and text not in rows)
        for name, text in islice(fitting, num):
            rows[text] = row(f"{maker.category}/{maker.domain}/{name}", maker.category, text, maker.published)
    for category in ("stem", "humanities"):
        for i, topic in enumerate(TOPICS[category]):
            if is_held_out(i) == (part == "val"):
                for ask in ASKED:
                    rows[ask.format(topic)] = row(
                        f"{category}/{shuffled(ask + topic)}", category, ask.format(topic), True
                    )
    return sorted(rows.values(), key=lambda made: shuffled(made["id"]))


def is_held_out(number: int) -> bool:
    """Every twentieth topic."""
    return number % 20 == 7


def row(name: str, category: str, text: str, published: bool) -> dict[str, Any]:
    """A line of chat JSONL with what it was made of."""
    return {"id": name, "category": category, "published": published, "messages": [{"role": "user", "content": text}]}


def main(corpus: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for part in ("train", "val"):
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in prompts(corpus, part))
        (out / f"prompts-{part}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
