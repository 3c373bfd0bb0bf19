"""A draft behind vLLM's own HTTP server, started by the exported serve.sh and measured by `foredraft measure --endpoint`."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ours
import pytest
from vllm_here import post, serving

from foredraft import text
from foredraft.data.prompts import Question, read_questions
from foredraft.data.sources import Skips
from foredraft.engines.counters import Counters
from foredraft.models.decoder import Decoder
from foredraft.records import Measurement
from foredraft.serving.endpoint import LoadSettings, Round, rounds, started
from foredraft.serving.endpoint_http import address_of
from foredraft.serving.endpoint_rows import base_of, rows_of

WITHIN = 0.02  # absolute, of acceptance at every position
LOADS = (1, 4)
FIELDS = {"draft": "eagle2", "method": "eagle", "machine": "here", "dataset": "prompts"}


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return read_questions(ours.PROMPTS, Skips("stop"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """EAGLE-2 on a server that tells each request's own counts."""
    folder = tmp_path_factory.mktemp("served")
    ours.foredraft("deploy", ours.ZOO / "eagle2", "-t", ours.TARGET, "-o", folder / "eagle2", "-k", ours.LOOKAHEAD)
    with serving(folder / "eagle2", folder / "log", "--per-request-spec-decode-metrics", "summary") as url:
        yield url


class Loaded:
    """The loads of a server: rounds with the totals around them, and their rows."""

    def __init__(self, url: str, questions: list[Question]) -> None:
        self.rounds: list[Round] = []
        self.found: list[Any] = []
        asyncio.run(self._run(url, questions))

    async def _run(self, url: str, questions: list[Question]) -> None:
        settings = LoadSettings(concurrency=LOADS, max_tokens=ours.NEW, stop=False)
        async with started(address_of(url), questions, settings) as running:
            async for round in rounds(running, settings):
                self.rounds.append(round)
                self.found.append(rows_of(round, base_of(running.server, round, FIELDS), 0.1))

    @property
    def rows(self) -> list[Measurement]:
        """All categories together, one a load."""
        return [result.rows[0] for result in self.found]


@pytest.fixture(scope="module")
def loaded(server: str, questions: list[Question]) -> Loaded:
    return Loaded(server, questions)


def grown(round: Round) -> Counters:
    """The server's own totals over a round."""
    assert round.before
    assert round.after
    assert round.before.spec
    assert round.after.spec
    return round.after.spec.since(round.before.spec)


def test_requests_counts_sum_to_the_servers(loaded: Loaded, questions: list[Question]) -> None:
    """Two tellings of the same steps: each response's, of which the rows are made, and the totals at /metrics."""
    for round, row in zip(loaded.rounds, loaded.rows, strict=True):
        observation, totals = row.observation, grown(round)
        assert not round.failures
        assert (observation.steps, observation.drafted, observation.accepted) == (
            totals.steps,
            totals.drafted,
            totals.accepted,
        )
        assert observation.survival == pytest.approx([count / totals.steps for count in totals.by_position])
        assert observation.num_requests == len(questions)
        assert round.tokens == ours.NEW * len(questions)
        assert observation.provenance.note
        assert "each request's own counts" in observation.provenance.note


def test_rows_are_whole(loaded: Loaded) -> None:
    """What a law or the planner needs of a row is there; a request's own counts give intervals; nobody else was on the server."""
    for row, result, load in zip(loaded.rows, loaded.found, LOADS, strict=True):
        observation = row.observation
        assert (observation.engine, observation.method, observation.lookahead, observation.concurrency) == (
            "vllm",
            "eagle",
            ours.LOOKAHEAD,
            load,
        )
        assert all(
            (
                observation.output_tok_s,
                observation.ttft_s,
                observation.tpot_s,
                observation.input_len,
                observation.output_len == ours.NEW,
            )
        )
        assert observation.provenance.versions["vllm"].startswith("0.32")
        interval = row.intervals["tokens_per_step"]
        assert interval.low < (observation.tokens_per_step or 0) < interval.high
        assert {row.category for row in result.rows} > {None, "story"}
        assert result.warnings == []


def test_a_servers_answers_are_training_data_in_the_targets_own_tokens(
    server: str, target: Decoder, tmp_path: Path
) -> None:
    """Asked over HTTP, counted by the server: each is what our engine answers to the same tokens, but for near-ties."""
    out = tmp_path / "answers.jsonl"
    ours.foredraft(
        "data", "regenerate", ours.PROMPTS, "--target", ours.TARGET, "--endpoint", server, "--out", out, "--max-tokens", 16, "--batch", 4
    )  # fmt: skip
    parts = [json.loads(line)["regenerated"] for line in out.read_text().splitlines()]
    assert len(parts) == len(ours.PROMPTS.read_text().splitlines())
    prompts = [part["tokens"][: part["answers"][0][0]] for part in parts]
    served = [part["tokens"][slice(*part["answers"][0])] for part in parts]
    ends = text.stop_ids(ours.TARGET, text.tokenizer_of(ours.TARGET))
    for prompt, ids, own in zip(prompts, served, ours.answers(target, prompts, 16, ends), strict=True):
        shared = min(len(ids), len(own))
        assert ids == own or (ours.gap(target, prompt, ids[:shared], own[:shared]) or 0) < ours.NEAR


def test_concurrency_changes_no_acceptance(loaded: Loaded) -> None:
    """Greedy text is the same alone and among four, and so are the steps, but for near-ties."""
    alone, four = (row.observation.survival or () for row in loaded.rows)
    assert max(abs(a - b) for a, b in zip(alone, four, strict=True)) <= WITHIN


def test_acceptance_is_what_our_engine_measures(
    loaded: Loaded, target: Decoder, prompts: Any, own_answers: Any
) -> None:
    """By position, in our engine's steps behind the first token, which vLLM does not draft for."""
    our_survival = ours.survival(
        ours.steps(target, ours.ZOO / "eagle2", prompts, [answer[:1] for answer in own_answers])
    )
    for row in loaded.rows:
        assert max(abs(a - b) for a, b in zip(our_survival, row.observation.survival or (), strict=True)) <= WITHIN


@pytest.mark.parametrize("chat", [False, True], ids=["raw", "chat"])
def test_text_over_http_is_ours(server: str, target: Decoder, questions: list[Question], chat: bool) -> None:
    """Words in, words out, up to the end token, chats in the server's own template: what `foredraft generate` says, but for a
    near-tie.
    """
    tokenizer = text.tokenizer_of(ours.TARGET)
    ends = text.stop_ids(ours.TARGET, tokenizer)
    spoken = [question.words for question in questions if (question.format == "chat") == chat]
    generated = text.generate(ours.engine(target, None), tokenizer, spoken, max_tokens=ours.LONG, ends=ends, chat=chat)
    for words, (answer, sequence) in zip(spoken, generated, strict=True):
        http_answer, ids = answered(server, words, chat)
        if http_answer != answer.text:
            both = min(len(ids), len(sequence.answer))
            gap = ours.gap(target, sequence.request.prompt, sequence.answer[:both], ids[:both])
            assert gap is not None, f"texts part where tokens do not: {http_answer!r}, {answer.text!r}"
            assert gap <= ours.NEAR


def answered(url: str, words: str, chat: bool) -> tuple[str, list[int]]:
    """An answer's text and token ids."""
    body: dict[str, Any] = {
        "model": str(ours.TARGET),
        "max_tokens": ours.LONG,
        "temperature": 0,
        "return_token_ids": True,
    }
    if chat:
        choice = post(f"{url}/v1/chat/completions", body | {"messages": [{"role": "user", "content": words}]})[
            "choices"
        ][0]
        return choice["message"]["content"], choice["token_ids"]
    choice = post(f"{url}/v1/completions", body | {"prompt": words})["choices"][0]
    return choice["text"], choice["token_ids"]
