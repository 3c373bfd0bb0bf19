"""Text of the target's own, for the tour to train on: sampled from openings and questions that are made up here, no corpus needed.

python recipes/experiment/own_text.py TARGET OUT
"""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

OPENINGS = (
    ("Once upon a time", "Long ago,", "One day", "In a small village", "There was once a king who", "The boy",
     "A little girl named", "Grandmother", "The elephant and the hare", "My mother", "Every morning", "The old man"),
    ("CHAPTER I", "CHAPTER XII.", "It was a cold night when", '"My dear," said', "He looked at her and", "The door opened, and",
     '"You are right," said the captain.', "In the morning they", "She had been", "The sea was", "Mr. and Mrs.", "I had never seen"),
    ("The president of", "Police said on", "Officials in", "A new study", "On Tuesday,", "The United States", "Researchers from",
     "At least ten people", "The government of", "Australian", "The match between", "The company said"),
    ("import os\n", "import re\nimport sys\n", "def ", "class ", '"""', "from collections import", "    def __init__(self", "    if ",
     "# ", "__all__ = [", "    for ", "    return "),
)  # fmt: skip
EACH = 420  # texts of each of the four, and conversations
NAMES = "Tom", "Anna", "Maria", "James", "Lily", "Ben", "Sara", "Omar", "Kate", "David"
THINGS = "apples", "pencils", "books", "marbles", "stickers", "eggs", "cookies", "cards", "flowers", "coins"
SUMS = (
    "{a} has {x} {t}. {b} gives {a} {y} more. How many {t} does {a} have now?",
    "{a} buys {x} boxes of {t}. Each box holds {y} {t}. {a} gives {z} {t} to {b}. How many {t} are left?",
    "{a} sells {x} {t} for ${y} each and {z} {t} for $2 each. How much money does {a} make?",
    "{a} reads {x} pages a day for {z} days. The book has {y}0 pages. How many pages are left?",
)
PASSAGES = (
    "{a} went to the river with a basket of {t}. On the way {a} met {b}, who was tired and hungry. {a} gave {b} {z} {t}."
    "\n\nQuestion: Who was hungry?",
    "There was a king who had {z} daughters and a garden full of {t}. Every night somebody stole the {t}."
    "\n\nQuestion: What was stolen from the garden?",
    "{a} and {b} built a small house near the forest. In the winter the snow was deep and they stayed by the fire."
    "\n\nQuestion: Where did they build the house?",
)
STORIES = (
    "The city council voted on Monday to spend ${x} million on a new bridge. Work will begin in {z} months, the mayor {a} Brown said.",
    "A team led by {a} Smith won the cup on Saturday, beating the champions {x} to {z}.",
    "Police arrested {z} men on Thursday after {x} {t} were stolen from a shop in the capital.",
)
ASKED = (
    ("", SUMS),
    ("Read the passage and answer the question.\n\n", PASSAGES),
    ("Write a headline for this news story.\n\n", STORIES),
)


def conversation(i: int, rng: random.Random) -> dict[str, Any]:
    a, b = rng.sample(NAMES, 2)
    words = {
        "a": a,
        "b": b,
        "x": rng.randint(3, 60),
        "y": rng.randint(2, 12),
        "z": rng.randint(2, 9),
        "t": rng.choice(THINGS),
    }
    task, forms = ASKED[i % len(ASKED)]
    return {"messages": [{"role": "user", "content": task + rng.choice(forms).format(**words)}]}


def main(target: Path, out: Path) -> None:
    rng = random.Random(0)
    work = out.with_name(f"{out.name}-answers")
    work.mkdir(parents=True, exist_ok=True)
    rows = {
        "plain": [{"text": of[i % len(of)]} for i in range(EACH) for of in OPENINGS],
        "chat": [conversation(i, rng) for i in range(EACH)],
    }
    for name, options in (("plain", ("--plain", "--max-tokens", "160")), ("chat", ("--max-tokens", "96"))):
        questions = work / f"{name}-asked.jsonl"
        questions.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
        foredraft("data", "regenerate", questions, "--target", target, "--out", work / f"{name}.jsonl", "--temperature", 1,
                  "--batch", 32, "--dtype", "bfloat16", *options)  # fmt: skip
    answers = [work / f"{name}.jsonl" for name in rows]
    foredraft("data", "prepare", *answers, "--out", out, "--tokenizer", target, "--chat")


def foredraft(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "foredraft", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
