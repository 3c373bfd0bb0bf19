"""Prompts for a server whose user names none: questions of several tasks, all of them different. Refuses to know: what is measured."""

from itertools import product

from foredraft.data.prompts import Question

TASKS = {
    "qa": "Why does {topic} matter? Give three reasons.",
    "writing": "Write a short story in which {topic} plays the main part.",
    "summarisation": "Summarise for a beginner, in one paragraph, what is known about {topic}.",
    "reasoning": "Compare {topic} with what people did before it, step by step, and say which is better and why.",
    "code": "Write a Python function with a docstring that keeps records about {topic}, then explain it line by line.",
    "chat": "A friend asks me about {topic} and I know little. What should I answer?",
    "planning": "Draw up a plan of ten numbered steps for somebody who wants to learn about {topic}.",
    "letter": "Write a polite letter to a newspaper about {topic}.",
}
TOPICS = (
    "the bicycle", "bread", "the printing press", "rain forests", "vaccination", "the piano", "tides", "paper money", "glass", "volcanoes",
    "chess", "the telescope", "coffee", "railways", "honey bees", "the alphabet",
)  # fmt: skip


def questions(num: int) -> list[Question]:
    """`num` of them, tasks in turn; from the 129th on they come again, numbered so that no two are the same."""
    pairs = [(task, words.format(topic=topic)) for topic, (task, words) in product(TOPICS, TASKS.items())]
    return [
        Question(
            f"built in:{i + 1}", text + (f" (Answer number {i // len(pairs) + 1}.)" if i >= len(pairs) else ""), task
        )
        for i, (task, text) in ((i, pairs[i % len(pairs)]) for i in range(num))
    ]
