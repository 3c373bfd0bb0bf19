"""Adaptive lengths against every fixed one: what they bring over the best, measured in one paired run, beside what was predicted.

    python benchmarks/adaptive.py OUT.json --draft NAME=DIR [--small] [--batch 1,2,4,8] [--lengths 1,2,3,5,7] [--dtype bfloat16]

Odd prompts teach (`foredraft measure --adaptive`): confidence, times, and the rule's and every length's predicted speed; even ones are
raced on: plain decoding, chains of each length and adaptive ones take turns, group by group of requests. `--small` takes a minute or so.
A ratio's interval (90 %) is over groups of requests that ran together; the best fixed length is the fastest of those raced, picked after
the race, which flatters it. `gain_of_steps` leaves out what no length changes, the prompts' passes, as what is predicted does.
"""

import argparse
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import zoo_drafts

from foredraft import records, text
from foredraft.data.prompts import read_questions
from foredraft.data.sources import Skips
from foredraft.decode.batch import Request
from foredraft.decode.lengths import LengthRule, fixed_rates, keeps, rule_rate
from foredraft.decode.sampling import Sampling
from foredraft.laws.adaptive import best_stopping, in_common, seen_survival
from foredraft.measure.configurations import PLAIN, configurations_on, spec_of
from foredraft.measure.lengths import learn
from foredraft.measure.live import TIMES, Decoding, decode_in_turn
from foredraft.models import kernels
from foredraft.models.decoder import Decoder
from foredraft.models.load import load
from foredraft.records import DraftLengths
from foredraft.serving.bootstrap import ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    zoo_drafts.add_options(parser)
    parser.add_argument("--batch", default="1,2,4,8")
    parser.add_argument("--lengths", default="1,2,3,5,7")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num", type=int, default=48, help="prompts, half of them to learn from")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="batches 1 and 2, 8 prompts of 16 tokens, one round")
    options = parser.parse_args()
    zoo_drafts.at_hand(options.target, options.prompts)
    if options.small:
        options.batch, options.num, options.max_tokens, options.rounds = "1,2", 8, 16, 1
    batches, lengths = ([int(part) for part in words.split(",")] for words in (options.batch, options.lengths))
    model = load(options.target, getattr(torch, options.dtype), options.device)
    asked = _requests(options)
    rows, measured = [], {}
    for name, draft in zoo_drafts.drafts_of(options.draft).items():
        measured[name] = _learnt(model, draft.folder, max(lengths), asked[1::2], batches, options)
        for batch in batches:
            rows.append(
                _raced(model, draft.folder, lengths, measured[name], asked[::2], batch, options.rounds)
                | {"draft": name}
            )
            print(rows[-1], flush=True)
    conditions = {key: str(value) for key, value in vars(options).items()} | {"threads": torch.get_num_threads()}
    report = {"conditions": conditions, "rows": rows, "measured": measured}
    records.write(options.out, msgspec.to_builtins(report, str_keys=True))


def _requests(options: argparse.Namespace) -> list[Request]:
    """Prompts of all categories by turns."""
    tokenizer, questions = text.tokenizer_of(options.target), list(read_questions(options.prompts, Skips("stop")))
    by_category: dict[str | None, list[str]] = {}
    for question in questions:
        by_category.setdefault(question.category, []).append(question.words)
    turns = [words for i in range(len(questions)) for of in by_category.values() for words in of[i : i + 1]]
    chat, ends = bool(tokenizer.chat_template), text.stop_ids(options.target, tokenizer)
    return [
        Request(
            prompt=tuple(text.encode(tokenizer, words, chat)), max_tokens=options.max_tokens, stop_ids=ends,
            sampling=Sampling(temperature=options.temperature, seed=seed),
        )
        for seed, words in enumerate(turns[: options.num])
    ]  # fmt: skip


def _context(requests: list[Request]) -> int:
    return max(len(request.prompt) + request.max_tokens for request in requests)


def _learnt(
    model: Decoder, folder: Path, most: int, requests: list[Request], batches: list[int], options: argparse.Namespace
) -> DraftLengths:
    configurations = configurations_on(model, [spec_of(f"{folder}@{most}")], max(batches), _context(requests))
    return learn(
        configurations[1], {options.temperature: requests}, batches, target=str(options.target), draft=folder.name
    )


def _raced(
    model: Decoder, folder: Path, lengths: list[int], measured: DraftLengths, requests: list[Request], batch: int, rounds: int
) -> dict[str, Any]:  # fmt: skip
    """Tokens/s of every arm, the adaptive one's over the best fixed one's (plain decoding among them), and what was predicted of it."""
    specs, adaptive = (
        [spec_of(f"{folder}@{num}") for num in lengths],
        spec_of(f"{folder}@{max(lengths)}")._replace(name="adaptive"),
    )
    arms = configurations_on(model, [*specs, adaptive], batch, _context(requests))
    arms[-1].engine.lengths = LengthRule(measured, kernels.most_rows(model))
    decodings = decode_in_turn({arm.spec.name: arm.engine for arm in arms}, requests, batch, rounds=rounds)
    num_of = {PLAIN: 0} | {spec.name: num for spec, num in zip(specs, lengths, strict=True)}
    speeds = {str(num_of.get(name, name)): _speed(decoding) for name, decoding in decodings.items()}
    best = max(num_of, key=lambda name: speeds[str(num_of[name])])
    confidence, counts = measured.confidences[0], decodings["adaptive"].counts
    fixed, steps = fixed_rates(confidence, batch), sum(c.steps for c in counts)
    raced, rule = [0, *lengths], rule_rate(confidence, batch)
    promised = rule if keeps(rule, fixed) else float(fixed.max())
    return {
        "batch": batch, "tok_s": speeds, "best_fixed": num_of[best], "gain": _gain(decodings["adaptive"], decodings[best]),
        "gain_of_steps": _gain(decodings["adaptive"], decodings[best], ("draft_s", "target_s", "other_s")),
        "predicted_best": raced[int(fixed[raced].argmax())],
        "predicted_gain": promised / float(fixed[raced].max()) - 1,
        "gain_by_law": _by_law(measured, batch, kernels.most_rows(model)) - 1, "drafted_per_step": sum(c.drafted for c in counts) / steps,
        "tokens_per_step": sum(c.emitted for c in counts) / steps, "auc": confidence.auc,
        "same_tokens": all(decoding.answers == decodings[PLAIN].answers for decoding in decodings.values()),
    }  # fmt: skip


def _speed(decoding: Decoding) -> float:
    seconds, tokens = (decoding.times_GT[:, TIMES.index(name)].sum() for name in ("seconds", "tokens"))
    return float(tokens / seconds)


def _gain(adaptive: Decoding, fixed: Decoding, seconds: tuple[str, ...] = ("seconds",)) -> Any:
    """Ratio of tokens/s, paired by group."""
    a, b = (
        each.times_GT[:, TIMES.index("tokens")] / sum(each.times_GT[:, TIMES.index(name)] for name in seconds)
        for each in (adaptive, fixed)
    )
    return ratio(a / b, np.ones_like(a), "× the best fixed length", "benchmarks/adaptive.py")


def _by_law(measured: DraftLengths, batch: int, packed: int) -> float:
    """What a plan's law makes of the confidence's spread at the measured times: over the best fixed length, 0 among them."""
    confidence, rule = measured.confidences[0], LengthRule(measured, packed)
    counts = np.arange(measured.lookahead + 1)
    verify_s, (whole, each) = rule.times.of_pass(batch * (1 + counts)) + 0.0, rule.times.of_drafting(batch)
    survival = np.minimum.accumulate(np.clip(confidence.survival, 1e-6, 1 - 1e-6))[None]
    tau = 1 + np.concatenate([[0.0], np.cumsum(survival[0])])
    fixed = (tau / (verify_s + np.where(counts > 0, whole + each * counts, 0.0))).max()
    seen = seen_survival(survival, confidence.shared_sd, confidence.single_sd, steps=256)
    pad = not rule.times.packs(batch, measured.lookahead)
    spent = best_stopping(
        in_common(seen, batch) if pad else seen, verify_s[None] + whole, np.array([each]), 1 if pad else batch
    )
    return float(max(spent.tokens[0] / spent.seconds[0], fixed) / fixed)


if __name__ == "__main__":
    main()
