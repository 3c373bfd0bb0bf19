"""A study of one target: the drafts that were trained to known dials and measured on it, and the laws on them.

Promises: one pool, so that nothing is compared that was measured otherwise: one temperature, one dataset, one way of pooling,
chains. Refuses to know: what will be planned, and step times.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import msgspec
import numpy as np

from foredraft import kinds, shapes
from foredraft.kinds import Kind
from foredraft.laws import acceptance, forms
from foredraft.laws.acceptance import MAX_POSITIONS, Curve
from foredraft.laws.fit import choose, fit
from foredraft.laws.law import Law
from foredraft.plan import evidence
from foredraft.plan.trees import PUBLISHED, Tail, Tree, fitted
from foredraft.records import Fit, Observation, Provenance
from foredraft.shapes import LEAST_BODY, Shape, scaled

SIZE_LAWS = (forms.ACCEPT_CHINCHILLA, forms.ACCEPT_RATIO_TOKENS, forms.ACCEPT_SIZE)
TOKEN_LAWS = (forms.TOKENS_POWER, forms.LAW_1_1)  # of which to choose by the largest budget: results/dial_forms.json
JOINT_LAWS = (forms.LAW_JOINT, forms.LAW_JOINT_SATURATING)
LEAST_ALPHA = 1e-3  # a draft that was never or always accepted still has a logit
SOURCE = Provenance(source="foredraft plan, own study", trust="own")


Line = tuple[str, str | None, int]  # heads by kind, family and depth


@dataclass(frozen=True)
class StudyDraft:
    """A draft of the study: its kind, the recipe it shares with others, its shape, training tokens, τ by lookahead, and its rows."""

    run: str
    name: str
    kind: Kind
    family: str | None
    shape: Shape
    tokens: float
    curve: Curve
    rows: tuple[Observation, ...] = ()

    @property
    def accept_prob(self) -> float | None:
        """P(the first drafted token is accepted); None where no row says."""
        return min(max(self.curve[1] - 1, LEAST_ALPHA), 1 - LEAST_ALPHA) if 1 in self.curve else None

    @property
    def line(self) -> Line:
        return self.kind.name, self.family, self.shape.num_layers


@dataclass(frozen=True)
class Study:
    """Drafts of a role measured on a target at the pool's dataset and temperature, and what their trees gained over their chains."""

    target: Shape
    drafts: tuple[StudyDraft, ...]
    dataset: str | None
    temperature: float
    tail: Tail = PUBLISHED

    @property
    def tokens(self) -> tuple[float, float]:
        """Least and most training tokens."""
        return min(draft.tokens for draft in self.drafts), max(draft.tokens for draft in self.drafts)

    @cached_property
    def size_law(self) -> Fit | None:
        """The law of α in size and tokens that best predicts the largest draft; None where the study allows none.

        Checkpoints of one run are one cluster, unless that leaves too few.
        """
        rows = [
            self._row(draft, run=draft.run, accept_prob=draft.accept_prob) for draft in self.drafts if draft.accept_prob
        ]
        apart = [
            self._row(draft, run=draft.name, accept_prob=draft.accept_prob)
            for draft in self.drafts
            if draft.accept_prob
        ]
        return _first_fit(
            lambda: choose(SIZE_LAWS, rows), lambda: choose(SIZE_LAWS, apart), lambda: fit(forms.ACCEPT_SIZE, apart)
        )

    def nearest(self, like: StudyDraft | None, size: float, tokens: float) -> StudyDraft:
        """The draft nearest in log size and log tokens; of the same kind, family and depth as `like` where that is given."""
        drafts = [draft for draft in self.drafts if like is None or draft.line == like.line]
        return min(drafts, key=lambda draft: np.hypot(np.log(draft.shape.params / size), np.log(draft.tokens / tokens)))

    @cached_property
    def lines(self) -> dict[Line, tuple[StudyDraft, ...]]:
        """Heads by kind, family and depth."""
        in_order = sorted(self.drafts, key=lambda draft: (draft.shape.num_layers, draft.tokens))
        keys = dict.fromkeys(draft.line for draft in in_order)
        return {key: tuple(draft for draft in self.drafts if draft.line == key) for key in keys}

    @cached_property
    def token_laws(self) -> dict[Line, Fit]:
        """The law of τ in tokens of each line of heads: of the line alone, or of all depths of a kind and family together, by
        which predicts the largest budget better. A line that allows neither is absent.
        """
        laws: dict[Line, Fit] = {}
        for recipe in dict.fromkeys(key[:2] for key in self.lines):
            lines = {key: line for key, line in self.lines.items() if key[:2] == recipe}
            alone = {key: law for key, line in lines.items() if (law := self._law(TOKEN_LAWS, line))}
            joint = (
                self._law(JOINT_LAWS, [draft for line in lines.values() for draft in line]) if len(lines) > 1 else None
            )
            errors = [law.held_out_error for law in alone.values() if law.held_out_error is not None]
            if joint and joint.held_out_error is not None and (not errors or joint.held_out_error < np.mean(errors)):
                alone = dict.fromkeys(lines, joint)
            laws |= alone
        return laws

    def _law(self, laws: Sequence[Law], line: Sequence[StudyDraft]) -> Fit | None:
        """τ at the largest lookahead that all have; each draft a cluster, since its gain over the next is what is asked."""
        common = set.intersection(*(set(draft.curve) for draft in line))
        if not common:
            return None
        k = max(common)
        rows = [
            self._row(
                draft, run=draft.name, lookahead=k, tokens_per_step=draft.curve[k], draft_layers=draft.shape.num_layers
            )
            for draft in line
        ]
        return _first_fit(lambda: choose(laws, rows))

    def _row(self, draft: StudyDraft, **fields) -> Observation:
        return Observation(
            target=self.target.name, target_params=float(self.target.params), method=draft.kind.name, family=draft.family,
            draft_tokens=draft.tokens, draft_params=float(draft.shape.params), provenance=SOURCE, **fields,
        )  # fmt: skip


def _first_fit(*fits: Callable[[], Fit]) -> Fit | None:
    """The first that the data allow."""
    for attempt in fits:
        try:
            return attempt()
        except ValueError:
            continue
    return None


def study_of(target: Shape, rows: Sequence[Observation], temperature: float, role: str) -> Study | None:
    """What `rows` hold of drafts of a `role` (lm, head) on `target` at about `temperature`; None with fewer than two drafts of
    known size or depth and tokens, which compare nothing.
    """
    chains = pool(target, rows, temperature, role)
    groups: dict[tuple, list[Observation]] = {}
    for row in chains:
        kind = kinds.of_method(row.method).checkpoint
        key = kind, row.family, row.draft, row.draft_tokens, row.draft_layers, row.draft_params
        groups.setdefault(key, []).append(row)
    drafts = tuple(draft for i, group in enumerate(groups.values()) if (draft := _draft(target, group, i)))
    if len({(draft.kind.name, draft.shape, draft.tokens) for draft in drafts}) < 2:
        return None
    study = Study(target, drafts, chains[0].dataset, chains[0].temperature or 0.0)
    return replace(study, tail=_tail(study, rows, role) or PUBLISHED)


def _tail(study: Study, rows: Sequence[Observation], role: str) -> Tail | None:
    """Read off the trees that were measured of its drafts, on the same data at the same temperature."""
    alike = [
        row
        for row in rows
        if (row.dataset, row.temperature or 0.0) == (study.dataset, study.temperature)
        and kinds.role_of(row.method) == role
        and on_target(row, study.target)
    ]
    return _read_off(
        {
            (draft.name,): (draft.kind, draft.curve, [row for row in alike if row.draft == draft.name])
            for draft in study.drafts
        }
    )


def own_tail(target: Shape, rows: Iterable[Observation], temperature: float, role: str) -> Tail | None:
    """Read off trees of drafts of a role on `target`, against chains of the same draft on the same prompts; None where no draft has both."""
    groups: dict[tuple, list[Observation]] = {}
    for row in rows:
        comparable = (row.temperature or 0.0) == temperature and "/" not in (row.dataset or "")
        if comparable and kinds.role_of(row.method) == role and on_target(row, target):
            groups.setdefault((row.draft, row.draft_tokens, row.dataset, row.num_requests), []).append(row)
    return _read_off(
        {
            key: (kinds.of_method(group[0].method), mean_curve(filter(_is_chain, group)), group)
            for key, group in groups.items()
        }
    )


def _read_off(compared: Mapping[tuple, tuple[Kind, Curve, Sequence[Observation]]]) -> Tail | None:
    """By draft, named first: its kind, the τ of its chains, and rows among which those of its trees are."""
    law, measured = evidence.position_law(), {}
    for key, (kind, curve, rows) in compared.items():
        taus: dict[tuple[int, int, int], list[float]] = {}
        for row in rows:
            if row.lookahead and row.topk and row.topk > 1 and row.tree_nodes and row.tokens_per_step:
                taus.setdefault((row.lookahead, row.topk, row.tree_nodes), []).append(row.tokens_per_step)
        if curve and taus:
            accept = acceptance.posterior(law, curve, kind=kind.prior).median_accept
            measured[key] = accept, [Tree(*dials, float(np.mean(values))) for dials, values in taus.items()]
    number, drafts = sum(len(trees) for _, trees in measured.values()), len({draft for draft, *_ in measured})
    return fitted(measured, f"{number} own trees of {drafts} drafts")


def _draft(target: Shape, group: Sequence[Observation], number: int) -> StudyDraft | None:
    row = group[0]
    shape, curve = shape_of(target, row), mean_curve(group)
    if shape is None or row.draft_tokens is None or not curve:
        return None
    name = row.draft or f"draft {number}"
    return StudyDraft(row.run, name, kinds.of_shape(shape), row.family, shape, row.draft_tokens, curve, tuple(group))


def pool(target: Shape, observations: Iterable[Observation], temperature: float, role: str) -> list[Observation]:
    """Chains of a role on `target` that may be compared: of the workload's class of temperature (0 or not) the nearest one, of
    what is left the dataset (no category of one), then the pooling, of models then the family, with the most rows.
    """
    rows = [
        row for row in observations if kinds.role_of(row.method) == role and on_target(row, target) and _is_chain(row)
    ]
    rows = [row for row in rows if ((row.temperature or 0.0) > 0) == (temperature > 0)]
    if not rows:
        return []
    nearest = min({row.temperature or 0.0 for row in rows}, key=lambda value: (abs(value - temperature), value))
    rows = [row for row in rows if (row.temperature or 0.0) == nearest]
    rows = [row for row in rows if "/" not in (row.dataset or "")] or rows
    for name in ("dataset", "pooling", *(("family",) if role == "lm" else ())):
        most = Counter(getattr(row, name) for row in rows).most_common(1)[0][0]
        rows = [row for row in rows if getattr(row, name) == most]
    return rows


def _is_chain(row: Observation) -> bool:
    return (row.topk or 1) == 1 and bool(row.lookahead) and bool(row.tokens_per_step or row.survival)


def on_target(row: Observation, target: Shape) -> bool:
    """Whether `row` is of this very target: by name, without the folders before it where its parameters agree."""
    if evidence.names(row.target, target):
        return True
    same = row.target_params in (float(target.params), float(target.non_embedding_params))
    return same and row.target.rsplit("/", 1)[-1] == target.name


def mean_curve(rows: Iterable[Observation]) -> dict[int, float]:
    """τ by lookahead, as far as the position law reaches; several curves are averaged where they have a point."""
    curves = list(acceptance.chain_curves(rows).values())
    return {
        k: float(np.mean([curve[k] for curve in curves if k in curve]))
        for k in sorted({k for curve in curves for k in curve})
        if k <= MAX_POSITIONS
    }


def shape_of(target: Shape, row: Observation) -> Shape | None:
    """The draft that an own row was measured with: a head by its layers, a model by its public name or as the buildable one of
    its stored parameters. None where the row does not say, and where there is no model.
    """
    kind = kinds.of_method(row.method)
    if kind.parts:
        return _head(target, kind, row.draft_layers or 1, row)
    if kind.role != "lm":
        return None
    if row.draft and (public := _public(row.draft)) and row.draft_params in (None, float(public.params)):
        return public
    like = scaled_like(target, row.draft_params, row.draft_layers) if row.draft_params else None
    return like and msgspec.structs.replace(like, draft_vocab_size=row.draft_vocab)


def draft_shapes(target: Shape) -> Callable[[Observation], Shape | None]:
    """`shape_of` of rows on `target`, of the draft alone where a look-up stands before it; worked out once for rows of equal drafts."""
    known: dict[tuple[Any, ...], Shape | None] = {}

    def of(row: Observation) -> Shape | None:
        row = msgspec.structs.replace(row, method=row.method.removesuffix(kinds.BESIDE))
        key = row.method, row.draft, row.draft_params, row.draft_layers, row.draft_vocab
        if key not in known:
            known[key] = shape_of(target, row)
        return known[key]

    return of


def _head(target: Shape, kind: Kind, num_layers: int, row: Observation) -> Shape:
    """With as many draft words as the row says, or its parameters tell; else the usual number."""
    if row.draft_vocab and row.draft_vocab <= target.vocab_size:
        return kind.shape(target, num_layers, row.draft_vocab)
    usual = kind.shape(target, num_layers)
    words = round(((row.draft_params or 0.0) - usual.non_embedding_params) / target.hidden_size)
    own_words = usual.head is not None and usual.head.own_lm_head and 0 < words <= target.vocab_size
    return kind.shape(target, num_layers, words) if own_words else usual


@cache
def _public(name: str) -> Shape | None:
    try:
        return shapes.shape(name)
    except ValueError:
        return None


@cache
def scaled_like(target: Shape, stored: float, num_layers: int | None = None) -> Shape | None:
    """The buildable model of the target's family with about `stored` weights in all; None where not even its embedding fits.

    Repeats: the body is what the embedding of the last body leaves over.
    """
    best, body = None, 0.5 * stored
    for _ in range(8):
        draft = scaled(target, max(body, LEAST_BODY))
        if best is None or _unlike(draft, stored, num_layers) < _unlike(best, stored, num_layers):
            best = draft
        remainder = stored - draft.embedding_params
        if remainder == body or draft.params == stored:
            break
        body = remainder if remainder >= LEAST_BODY else 0.5 * (body + LEAST_BODY)
    return best if best and abs(np.log(best.params / stored)) < 0.25 else None


def _unlike(shape: Shape, stored: float, num_layers: int | None) -> float:
    depth = 0.01 * (num_layers is not None and num_layers != shape.num_layers)
    return float(abs(np.log(shape.params / stored)) + depth)
