"""A target and four drafts for it, from text to lossless decoding, on a CPU in minutes: every command that training needs, in order.

The text is the source of Python's own standard library, which every machine with Python has. Exits with an error unless each
draft's tokens per step, on answers of the target that were held out, rise in training, and each draft decodes to the target's own
greedy tokens.

    python recipes/train_all.py OUT [--share 0.3]

`--share`: of the recipes' tokens, for a quick look.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent / "train"
DRAFTS = "independent", "eagle2", "eagle3", "scylla"
BYTES = 2_500_000
PROMPTS = "def read(self, size", "import os\nimport sys\n\nclass ", "    if not isinstance("


def foredraft(*arguments: Any) -> str:
    """Run a verb and give what it printed; its talk goes to the terminal."""
    command = [sys.executable, "-m", "foredraft", *map(str, arguments)]
    print("$ foredraft", *arguments, file=sys.stderr)
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def write_corpus(path: Path) -> None:
    """One document a module, until there are enough."""
    library, size = Path(sysconfig.get_path("stdlib")), 0
    with path.open("w", encoding="utf-8") as file:
        for source in sorted(library.glob("*.py")):
            text = source.read_text(encoding="utf-8", errors="replace")
            file.write(json.dumps({"text": text}) + "\n")
            size += len(text)
            if size > BYTES:
                return


def write_recipe(name: str, share: float, folder: Path) -> Path:
    """The recipe with this share of its tokens."""
    recipe = json.loads((RECIPES / f"{name}.json").read_bytes())
    for stage in recipe["stages"]:
        stage["tokens"] *= share
    path = folder / f"{name}.json"
    path.write_text(json.dumps(recipe))
    return path


def taus(run: Path) -> tuple[float, float]:
    """Held-out tokens per step before training and after."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [line["held_out_tokens_per_step"] for line in lines if "held_out_tokens_per_step" in line]
    return values[0], values[-1]


def greedy(target: Path, prompts: Path, *options: Any) -> list[Any]:
    """Token ids of the target's greedy answers."""
    replies = json.loads(
        foredraft("generate", target, "--file", prompts, "--max-tokens", 64, "--chat", "never", "--json", *options)
    )
    return [answer["tokens"] for answer in replies]


def main(out: Path, share: float = 1.0) -> dict[str, tuple[float, float]]:
    """Tokens per step of each draft, before training and after."""
    began = time.perf_counter()
    recipes = out / "recipes"
    recipes.mkdir(parents=True)
    corpus, tokenizer, tokens, answers = out / "corpus.jsonl", out / "tokenizer", out / "tokens", out / "answers"
    write_corpus(corpus)
    foredraft("data", "tokenizer", corpus, "--out", tokenizer, "--vocab", 1024)
    foredraft("data", "prepare", corpus, "--out", tokens, "--tokenizer", tokenizer, "--val-share", 0.1)
    plain = ("--data", tokens / "train")
    foredraft(
        "train", write_recipe("target", share, recipes), *plain, "--held-out", tokens / "val", "--out", out / "target"
    )
    target = out / "target/final"
    answer_options = ("--plain", "--prompt-tokens", 32, "--num", 96, "--max-tokens", 128, "--batch", 32)
    foredraft("data", "regenerate", corpus, "--target", target, "--out", out / "answers.jsonl", *answer_options)
    chat_options = ("--tokenizer", tokenizer, "--chat", "--val-share", 0.25)
    foredraft("data", "prepare", out / "answers.jsonl", "--out", answers, *chat_options)
    folders = (*plain, "--data", answers / "train", "--held-out", answers / "val")
    prompts = out / "prompts.txt"
    prompts.write_text("\n".join(prompt.replace("\n", " ") for prompt in PROMPTS) + "\n")
    expected, wrong, steps = greedy(target, prompts), [], {}
    for name in DRAFTS:
        foredraft("train", write_recipe(name, share, recipes), "--target", target, *folders, "--out", out / name)
        before, after = steps[name] = taus(out / name)
        same = greedy(target, prompts, "--draft", out / name / "final") == expected
        print(f"{name:12} tokens per step {before:.2f} → {after:.2f}, greedy tokens {'equal' if same else 'DIFFER'}")
        wrong += [name] if not same or after <= before else []
    print(f"{time.perf_counter() - began:.0f} s in all")
    if wrong:
        raise SystemExit(f"not as it should be: {', '.join(wrong)}")
    return steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the recipes' tokens")
    options = parser.parse_args()
    main(options.out, options.share)
