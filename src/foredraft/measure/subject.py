"""What is measured, loaded and checked: configurations on one target, prompts, and what all rows say alike.

Promises: whatever is wrong with a folder, a spec or a prompt is a ValueError before anything is decoded; what neither a folder
nor the settings say stays unknown. Refuses to know: what is counted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foredraft import text
from foredraft.data import tokenizer as tokenizers
from foredraft.data.prompts import TURN, Encoding, Prompt, read_prompts
from foredraft.data.sources import Skips
from foredraft.data.tokens import TOKENIZER
from foredraft.decode.drafters import machine_name
from foredraft.kinds import NGRAM, parted
from foredraft.measure.configurations import EngineConfiguration, configurations_on, longest, spec_of
from foredraft.measure.live import check_batch
from foredraft.measure.probe import provenance
from foredraft.measure.settings import MeasureSettings
from foredraft.measure.talks import with_later_turns
from foredraft.models.decoder import Decoder
from foredraft.models.load import load
from foredraft.records import read_json
from foredraft.runs import name_of, run_name, trained_tokens

Fields = dict[str, Any]


class Subject(NamedTuple):
    """Configurations on one target, prompts in the order of their categories, and the fields that all rows share.

    `by_draft` holds further fields of each draft's rows, by the draft as its spec names it. `stop_ids` end answers.
    """

    target: Decoder
    configurations: list[EngineConfiguration]
    prompts: list[Prompt]
    fields: Fields
    by_draft: Mapping[str, Fields]
    stop_ids: frozenset[int] = frozenset()


def subject_of(
    target: str | Path,
    drafts: Sequence[str],
    prompts: str | Path,
    settings: MeasureSettings,
    skips: Skips,
    command: str | None = None,
) -> Subject:
    """Load the folder `target` and each of `drafts`, as specs write them, and read the file `prompts`; `command` goes into the
    rows' provenance. Raises ValueError where something does not fit.
    """
    specs, tokenizer = [spec_of(draft) for draft in drafts], text.tokenizer_of(target)
    model = load(target, settings.torch_dtype, settings.device)
    encoding = Encoding(tokenizer, settings.chat, settings.max_tokens, longest(model))
    stop_ids = text.stop_ids(target, tokenizer) if settings.stop else frozenset[int]()
    asked = read_prompts(prompts, encoding, skips, settings.num)
    requests = by_category(with_later_turns(model, asked, tokenizer, settings, stop_ids, encoding.longest, skips))
    if settings.way != "forced":
        check_batch(settings.together, len(requests))
    context = max(len(prompt.ids) for prompt in requests) + settings.max_tokens
    configurations = configurations_on(model, specs, settings.together, context)
    note = _note(Path(prompts), requests, settings, skips.count, bool(stop_ids))
    fields = {
        "run": settings.run or name_of(target), "target": name_of(target), "target_tokens": trained_tokens(target),
        "dataset": Path(prompts).stem, "engine": "foredraft", "machine": machine_name(torch.device(settings.device)),
        "dtype": settings.dtype, "target_tokenizer": tokenizer_name(target),
        "provenance": provenance("foredraft measure", command, note),
    }  # fmt: skip
    by_draft = {spec.draft: _draft_fields(spec.draft, settings) for spec in specs if spec.draft}
    return Subject(model, configurations, requests, fields, by_draft, stop_ids)


def by_category(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Categories in the order of their first prompt, so that requests that run together are of one where possible."""
    first: dict[str | None, int] = {}
    for prompt in prompts:
        first.setdefault(prompt.category, len(first))
    return sorted(prompts, key=lambda prompt: first[prompt.category])


def _note(file: Path, prompts: Sequence[Prompt], settings: MeasureSettings, skipped: int, stops: bool) -> str:
    references, later = (
        sum(bool(prompt.reference) for prompt in prompts),
        sum(TURN in prompt.where for prompt in prompts),
    )
    behind = f" ({later} of them later turns of chats, behind the target's own answers)" if later else ""
    return (
        f"{file.name}: {len(prompts)} prompts{behind}, {skipped} lines skipped; seed {settings.seed}, answers of at most "
        f"{settings.max_tokens} tokens{', ending at the end token' if stops else ''}; {settings.rounds} timed rounds; "
        f"{torch.get_num_threads()} threads; parameters {settings.params}; perplexities over {references} references and "
        f"{len(prompts) - references} prompts"
    )


def _draft_fields(draft: str, settings: MeasureSettings) -> Fields:
    """What the rows of one draft have of their own."""
    if draft == NGRAM.name:
        return {"draft": draft} | ({} if settings.run else {"run": draft})
    folder, lookup = parted(draft)
    tokens = trained_tokens(folder)
    fields: Fields = {
        "draft": name_of(folder) + draft.removeprefix(folder),
        "draft_tokens": settings.draft_tokens if tokens is None else tokens,
    }
    stated = {"draft_params": settings.draft_params, "family": settings.family}
    fields |= {name: value for name, value in stated.items() if value}
    if lookup:
        fields |= {"lookup_min_match": lookup.min_match, "lookup_lookahead": lookup.lookahead}
    return fields | ({} if settings.run else {"run": run_name(folder)})


def tokenizer_name(folder: str | Path) -> str:
    """A name that two folders share if their tokenizers are one: the hash of tokenizer.json, or else the folder's or GGUF file's name."""
    file = Path(folder) / TOKENIZER
    if not file.is_file():
        return name_of(folder)
    model = document.get("model") if isinstance(document := read_json(file), dict) else None
    vocabulary = model.get("vocab", ()) if isinstance(model, dict) else ()
    return f"{len(vocabulary)} words, sha256 {tokenizers.sha256(folder)[:12]}"
