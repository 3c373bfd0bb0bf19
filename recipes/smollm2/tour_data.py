"""What the tour trains on and is measured on, of topics that we name ourselves and of no corpus: answers of the target to the prompts of
topics.json, as a token folder, and prompts of held-out topics and of own_prompts.json, in the categories of prompts.py.

    python recipes/smollm2/tour_data.py TARGET OUT ANSWERS.jsonl [ANSWERS.jsonl …]

ANSWERS: lines of `foredraft data regenerate` on the prompts that prompts.py makes, of which those made of topics.json alone are taken.
Writes OUT/answers (without the tokenizer's files, which are the target's) and OUT/prompts.jsonl.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prompts import ASKED, TOPICS, is_held_out

CATEGORIES = "stem", "humanities"
OWN: dict[str, list[str]] = json.loads((Path(__file__).parent / "own_prompts.json").read_bytes())
EACH = {"stem": 6, "humanities": 6, "roleplay": 4}  # prompts of held-out topics
ROLE = "Pretend yourself to be {}. What do you tell your listeners about {}?"
TOKEN_FILES = "tokens.bin", "mask.bin", "documents.bin", "data.json"


def topics(category: str, held_out: bool) -> list[str]:
    """Those trained on, or those held out."""
    return [topic for number, topic in enumerate(TOPICS[category]) if is_held_out(number) == held_out]


def trained_prompts() -> set[str]:
    """Every prompt that prompts.py makes of a topic to train on."""
    return {ask.format(topic) for category in CATEGORIES for topic in topics(category, False) for ask in ASKED}


def held_out_prompts() -> Iterator[dict[str, Any]]:
    """Lines in Spec-Bench's form: questions on held-out topics in turn, roles that speak of them, and our other prompts."""
    asked = [(category, text) for category, texts in OWN.items() for text in texts]
    for category in CATEGORIES:
        named = topics(category, True)
        asked += [(category, ASKED[i].format(named[i % len(named)])) for i in range(EACH[category])]
    named = [topic for category in CATEGORIES for topic in topics(category, True)]
    asked += [("roleplay", ROLE.format(TOPICS["role"][i], named[i])) for i in range(EACH["roleplay"])]
    for number, (category, text) in enumerate(asked, 1):
        yield {"question_id": number, "category": category, "turns": [text], "format": "chat"}


def of_topics_alone(files: Iterable[Path]) -> list[str]:
    """The lines of ANSWERS whose prompt is a topic's, each prompt's first answer of each file."""
    prompts, lines = trained_prompts(), []
    for file in files:
        answered: set[str] = set()
        for line in file.read_text(encoding="utf-8").splitlines():
            prompt = json.loads(line)["messages"][0]["content"]
            if prompt in prompts and prompt not in answered:
                answered.add(prompt)
                lines.append(line)
    if not lines:
        raise SystemExit(
            "none of these answers is to a prompt of topics.json: answer those that prompts.py makes of it"
        )
    return lines


def main(target: Path, out: Path, files: list[Path]) -> None:
    lines = of_topics_alone(files)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        answers = Path(work) / "answers-to-topics.jsonl"
        answers.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        prepare = "data", "prepare", f"{answers}", "--tokenizer", f"{target}", "--chat", "--licence", "Apache-2.0"
        subprocess.run([sys.executable, "-m", "foredraft", *prepare, "--out", f"{work}/tokens"], check=True)
        shutil.rmtree(out / "answers", ignore_errors=True)
        (out / "answers").mkdir()
        for name in TOKEN_FILES:
            shutil.copyfile(Path(work) / "tokens" / name, out / "answers" / name)
    rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in held_out_prompts())
    (out / "prompts.jsonl").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    target, out, *files = map(Path, sys.argv[1:])
    main(target, out, files)
