"""What the tour trains on and is measured on: of our own topics and prompts alone, and nothing of the one in the other."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipes/smollm2/tour_data.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "recipes" / "smollm2")
    for name in ("tour_data", "prompts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import tour_data  # type: ignore[import-not-found]

    return tour_data


def test_of_the_answers_those_to_topics_alone_are_taken_each_once_a_file(recipe: Any, tmp_path: Path) -> None:
    topic, held_out = recipe.topics("stem", False)[0], recipe.topics("stem", True)[0]
    asked = [
        f"Explain {topic} to a beginner.",
        f"Explain {held_out} to a beginner.",
        "Summarize: a news text",
        f"Explain {topic} to a beginner.",
    ]
    lines = [json.dumps({"messages": [{"role": "user", "content": text}], "number": i}) for i, text in enumerate(asked)]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines) + "\n")
    assert recipe.of_topics_alone([tmp_path / "answers.jsonl"]) == lines[:1]
    (tmp_path / "answers.jsonl").write_text(lines[2] + "\n")
    with pytest.raises(SystemExit, match=r"none of these answers is to a prompt of topics\.json"):
        recipe.of_topics_alone([tmp_path / "answers.jsonl"])


def test_prompts_are_of_many_categories_and_none_is_trained_on(recipe: Any) -> None:
    rows = list(recipe.held_out_prompts())
    texts = [row["turns"][0] for row in rows]
    assert len(set(texts)) == len(rows) == 40
    assert {"stem", "humanities", "roleplay", "coding", "math_reasoning", "translation"} <= {
        row["category"] for row in rows
    }
    assert not recipe.trained_prompts() & set(texts)
    trained = [topic for category in recipe.CATEGORIES for topic in recipe.topics(category, False)]
    of_topics = [row["turns"][0] for row in rows if row["category"] in (*recipe.CATEGORIES, "roleplay")]
    assert not [text for text in of_topics if any(f" {topic}" in text for topic in trained)]


def test_the_zoos_prompts_are_those_that_the_recipe_writes(recipe: Any) -> None:
    written = ROOT / "zoo" / "prompts.jsonl"
    assert [json.loads(line) for line in written.read_text().splitlines()] == list(recipe.held_out_prompts())
