"""A fitted law as a value: parameters, bootstrap draws, the range of the data, the error on a run it never saw.

Promises: intervals that cover with few runs (see `laws.varpro` for how); forms are chosen by held-out error, never by
R²; nothing is dropped in silence. Refuses to know: files, and what a prediction will be used for.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from scipy.special import ndtri

from foredraft.laws import forms
from foredraft.laws.forms import law_named
from foredraft.laws.law import Array, Law
from foredraft.laws.varpro import FitTable, bootstrap, point, residuals, shape_grid
from foredraft.records import Estimate, Fit, Observation, Provenance

MIN_SLOPE = 1e-3  # of a bounded link at its very ends

# --- From observations to a table ---


def _counts(row: Observation) -> tuple[float, float] | None:
    """(accepted, drafted) tokens behind a constant α: from survival and steps, or a run at lookahead 1; None of a tree."""
    if (row.topk or 1) > 1:
        return None
    if row.survival and row.steps:
        reached = (1.0, *row.survival)
        return row.steps * sum(row.survival), row.steps * sum(reached[:-1])
    if row.lookahead == 1 and row.accepted is not None and row.drafted:
        return row.accepted, row.drafted
    return None


def outcome(law: Law, row: Observation) -> float | None:
    value = getattr(row, law.output)
    if value is None and law.output == "accept_prob" and (counts := _counts(row)):
        return counts[0] / counts[1]
    return value


def missing_fields(law: Law, observations: Iterable[Observation]) -> dict[str, int]:
    """How many observations lack each field that `law` needs: what missing="skip" would leave out, and why."""
    count: dict[str, int] = {}
    for row in observations:
        lacking = [name for name in law.inputs if getattr(row, name) is None]
        for name in lacking + [law.output] * (outcome(law, row) is None):
            count[name] = count.get(name, 0) + 1
    return count


def _complete(law: Law, row: Observation) -> bool:
    return not missing_fields(law, (row,))


def _table(law: Law, observations: Sequence[Observation], missing: str) -> FitTable:
    if missing not in ("error", "skip"):
        raise ValueError(f"missing must be error or skip, got {missing}")
    if not observations:
        raise ValueError(f"{law.name} needs observations, got none: add runs")
    lacking = missing_fields(law, observations)
    if lacking and missing == "error":
        name, count = max(lacking.items(), key=lambda item: item[1])
        raise ValueError(
            f"{law.name} needs {name}, {count} of {len(observations)} observations lack it: "
            'add it or pass missing="skip"'
        )
    rows = tuple(row for row in observations if _complete(law, row))
    if not rows:
        raise ValueError(f"{law.name} needs {', '.join(lacking)}, no observation has all of them: add a run that does")
    law.refuse(rows)
    inputs = {name: np.array([getattr(row, name) for row in rows], dtype=float) for name in law.inputs}
    output, trials = _responses(law, rows)
    features = law.features(inputs)
    if not np.isfinite(features).all():
        bad = rows[int(np.argmin(np.isfinite(features).all(axis=1)))]
        raise ValueError(
            f"{law.name} has no finite value at run {bad.run}: leave it out (is its draft the target itself?)"
        )
    return FitTable(
        rows, inputs, features, output, trials, np.unique([row.run for row in rows], return_inverse=True)[1]
    )


def _responses(law: Law, rows: Sequence[Observation]) -> tuple[Array, Array | None]:
    """Output and, where the law is a bounded one and every row has counts, the trials behind it."""
    counts = [_counts(row) for row in rows] if law.output == "accept_prob" and law.link.name != "identity" else [None]
    if all(counts):
        accepted, trials = np.array(counts, dtype=float).T
        return accepted / trials, trials
    output = np.array([outcome(law, row) for row in rows], dtype=float)
    if not np.isfinite(output).all():
        raise ValueError(f"{law.output} must be finite: leave out a row where it was not measured")
    return output, None


def _check_support(law: Law, table: FitTable, what: str = "the data have") -> None:
    """Raise ValueError, saying what to add, unless the inputs vary enough to tell the parameters apart."""
    for name, least in law.distinct.items():
        if (num := len(np.unique(table.inputs[name]))) < least:
            raise ValueError(f"{law.name} needs {least} distinct {name}, {what} {num}: add a run at another {name}")
    settings, num = len(np.unique(np.stack(list(table.inputs.values())), axis=1).T), len(law.parameters)
    if settings < num:
        names = ", ".join(law.inputs)
        raise ValueError(
            f"{law.name} needs {num} distinct settings of {names} for {num} parameters, {what} {settings}: add runs"
        )
    start = shape_grid(law, 1)[:1]
    phi = law.basis(table.features, start)[0]
    if np.linalg.matrix_rank(phi / np.linalg.norm(phi, axis=0), tol=1e-9) < phi.shape[1]:
        raise ValueError(
            f"{law.name} cannot tell its terms apart, {' and '.join(law.inputs)} move together: "
            "add a run that moves one alone"
        )


def _check_spare(law: Law, table: FitTable) -> None:
    """An interval needs more runs than parameters: a run that the fit must pass through says nothing of its noise."""
    runs, num = int(table.runs.max()) + 1, len(law.parameters)
    if runs <= num:
        raise ValueError(
            f"{law.name} needs {num + 1} runs for an interval on {num} parameters, the data have {runs}: add runs"
        )
    if table.trials is None and not np.isfinite(law.link.forward(table.output)).all():
        raise ValueError(
            f"{law.output} of exactly 0 or 1 has no {law.link.name}: give the counts behind it or leave it out"
        )
    if table.trials is not None and np.ptp(table.output) == 0 and table.output[0] in (0, 1):
        raise ValueError(
            f"{law.output} is {table.output[0]:.0f} in every row, which leaves no slope: add a run where it is not"
        )


def fit(
    law: Law, observations: Iterable[Observation], *, draws: int = 200, seed: int = 0, missing: str = "error",
    checkpoints: bool = False,
) -> Fit:  # fmt: skip
    """Fit `law` to observations of one pool; raises a one-line ValueError that says what the data lack.

    missing="skip" leaves out rows without a needed field (`missing_fields` counts them); `residual_sd` is on the link's
    scale; the first entry of `provenance` names the pool. `checkpoints` lets what one run was measured at along its way stand for
    runs, as both papers' laws in tokens do: the interval then leaves out how runs differ, and `checkpoints_of` says so.
    """
    table = _table(law, list(observations), missing)
    _check_support(law, table)
    runs = int(table.runs.max()) + 1
    if checkpoints:
        places = np.column_stack([table.runs, *table.inputs.values()])
        table = replace(table, runs=np.unique(places, axis=0, return_inverse=True)[1].reshape(-1))
    _check_spare(law, table)
    fitted = _fit(law, table, draws, seed)
    return msgspec.structs.replace(fitted, checkpoints_of=runs if checkpoints and runs < fitted.num_clusters else None)


def _fit(law: Law, table: FitTable, draws: int, seed: int) -> Fit:
    solved = point(law, table)
    samples = bootstrap(law, table, solved, draws, np.random.default_rng(seed))
    num = len(table.rows)
    spread = np.average(residuals(law, table, solved) ** 2, weights=solved.weight) * num / (num - len(law.parameters))
    sources = {(p.source, p.trust): p for p in (row.provenance for row in table.rows)}
    return Fit(
        law=law.name, formula=law.formula, output=law.output,
        parameters=dict(zip(law.parameters, solved.theta.tolist(), strict=True)),
        draws=tuple(map(tuple, samples.tolist())),
        domain={name: (float(values.min()), float(values.max())) for name, values in table.inputs.items()},
        num_observations=num, num_clusters=int(table.runs.max()) + 1, residual_sd=math.sqrt(spread),
        held_out_error=_held_out(law, table), at_bound=_at_bound(law, solved.theta),
        provenance=(_pool_provenance(law, table.rows[0]), *sources.values()),
    )  # fmt: skip


def _at_bound(law: Law, theta: Array) -> tuple[str, ...]:
    """Parameters within 1 % of a bound (at it, where the bound is 0)."""

    def near(name: str, value: float) -> bool:
        return any(abs(value - end) <= 0.01 * abs(end) for end in law.bounds.get(name, ()) if end < math.inf)

    return tuple(name for name, value in zip(law.parameters, theta.tolist(), strict=True) if near(name, value))


def _pool_provenance(law: Law, row: Observation) -> Provenance:
    """Which pool a fit speaks for, since a Fit has no field of its own for it."""
    return Provenance(source="foredraft.laws.fit", trust="derived", note=pool_label(law, row))


def pool_label(law: Law, row: Observation) -> str:
    return ", ".join(f"{name}={value}" for name in law.pool if (value := getattr(row, name)) is not None) or "all"


def by_range(fit: Fit, observations: Iterable[Observation]) -> tuple[list[Observation], list[Observation]]:
    """Rows of the fit's pool that have all its law needs: within the range of its data, and outside of it."""
    law = law_named(fit.law)
    rows = [row for row in observations if _complete(law, row) and _speaks_for(fit, law, row)]
    inside = [all(low <= getattr(row, n) <= high for n, (low, high) in fit.domain.items()) for row in rows]
    return [row for row, within in zip(rows, inside, strict=True) if within], [
        row for row, within in zip(rows, inside, strict=True) if not within
    ]


def _speaks_for(fit: Fit, law: Law, row: Observation) -> bool:
    return not fit.provenance or pool_label(law, row) == fit.provenance[0].note


# --- Prediction ---


def predict_draws(fit: Fit, **inputs: float | Array) -> Array:
    """The law's mean under every bootstrap draw: [draws, *inputs], clipped to what the output can be."""
    law = law_named(fit.law)
    return np.clip(law.predict(np.array(fit.draws), **inputs), *law.limits)


def predict(fit: Fit, level: float = 0.9, *, new_run: bool = False, seed: int = 0, **inputs: float) -> Estimate:
    """The law's mean at scalar inputs with its interval; with `new_run`, the interval of one further run's outcome."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    law = law_named(fit.law)
    eta = law.linear(np.array(fit.draws), **inputs)
    if new_run:
        quantiles = ndtri((np.arange(len(eta)) + 0.5) / len(eta))
        eta = eta + run_sd(fit, **inputs) * np.random.default_rng(seed).permutation(quantiles)
    ends = np.quantile(law.link.inverse(eta), [(1 - level) / 2, (1 + level) / 2])
    low, value, high = np.clip([ends[0], law.predict(fit.parameters, **inputs), ends[1]], *law.limits).tolist()
    source = f"{law.name} on {fit.num_observations} observations in {fit.num_clusters} runs"
    return Estimate(
        value=value, low=low, high=high, unit=law.unit, source=source, level=level, extrapolates=_outside(fit, inputs)
    )


def run_sd(fit: Fit, **inputs: float) -> float:
    """How far one further run lies off the law, as a standard deviation on the link's scale: as the residuals do; beyond the data
    no less than the law missed when it predicted the largest run from the rest, since there the form itself is in doubt; of τ, whose
    laws are lines through measured dials alone, from an octave beyond on in proportion to the octaves.
    """
    octaves, law, sd = _octaves_outside(fit, inputs), law_named(fit.law), fit.residual_sd
    if not octaves:
        return sd
    if fit.held_out_error is not None:
        slope = abs(float(law.link.slope(law.linear(fit.parameters, **inputs))))
        sd = max(sd, math.sqrt(math.pi / 2) * fit.held_out_error / max(slope, MIN_SLOPE))
    return sd * max(1.0, *octaves.values()) if law.output == "tokens_per_step" else sd


def far_outside(fit: Fit, **inputs: float) -> tuple[str, ...]:
    """The inputs that lie more than an octave outside the fit's data: where a plan warns."""
    return tuple(name for name, octaves in _octaves_outside(fit, inputs).items() if octaves > 1)


def _octaves_outside(fit: Fit, inputs: Mapping[str, float]) -> dict[str, float]:
    """How many doublings or halvings each input outside the fit's data lies from its nearer end; a tree counts its root."""
    octaves = {}
    for name in _outside(fit, inputs):
        root = name == "tree_nodes"
        value, *ends = (number + root for number in (inputs[name], *fit.domain[name]))
        octaves[name] = min(abs(math.log2(value / end)) for end in ends)
    return octaves


def _outside(fit: Fit, inputs: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(
        n for n, (least, most) in fit.domain.items() if not least * (1 - 1e-9) <= inputs[n] <= most * (1 + 1e-9)
    )


# --- Choice of form ---


def _held_out(law: Law, table: FitTable) -> float | None:
    """Mean absolute error on the runs that reach the largest leading dial, from a fit to the rest.

    Where every run reaches it (trajectories of checkpoints), only the rows at that value are held out. None where the
    rest is too little to fit.
    """
    dial = table.inputs[law.leading] * (-1 if law.leads_down else 1)
    top = dial == dial.max()
    for mask in (np.isin(table.runs, table.runs[top]), top):
        if mask.all():
            continue
        smaller_runs = table.keep(~mask)
        try:
            _check_support(law, smaller_runs, "without the largest run they have")
        except ValueError:
            continue
        guess = law.link.inverse(law.linear_gradient(table.features[mask], point(law, smaller_runs).theta[None])[0][0])
        return float(np.mean(np.abs(guess - table.output[mask])))
    return None


def choose(
    laws: Iterable[Law], observations: Iterable[Observation], *, draws: int = 200, seed: int = 0, missing: str = "error"
) -> Fit:
    """The law that best predicts the largest run from the rest; `rivals` holds the errors of the others.

    The laws must share their output and leading dial, so that all are asked about the same run. A law that the data
    cannot support is absent from `rivals`; `fit` says why.
    """
    rivals, rows = list(laws), list(observations)
    if len({(law.output, law.leading) for law in rivals}) != 1:
        raise ValueError("laws to choose from must share one output and one leading dial: choose among rivals only")
    fits, reasons = [], []
    for law in rivals:
        try:
            fits.append(fit(law, rows, draws=draws, seed=seed, missing=missing))
        except ValueError as error:
            reasons.append(str(error))
    errors = {fitted.law: fitted.held_out_error for fitted in fits if fitted.held_out_error is not None}
    if not errors:
        reasons.append(f"{rivals[0].name} needs data beside its largest run: add runs at another {rivals[0].leading}")
        raise ValueError(reasons[0])
    best = min(errors, key=lambda name: errors[name])
    losers = {name: error for name, error in errors.items() if name != best}
    return msgspec.structs.replace(next(fitted for fitted in fits if fitted.law == best), rivals=losers)


def fit_all(
    observations: Iterable[Observation], *, draws: int = 200, seed: int = 0
) -> tuple[list[Fit], dict[str, str]]:
    """Every law on every pool of observations that supports it; for the rest one line of what is missing.

    A pool is the set of rows that agree on the law's `pool` fields: for τ laws target, method, dataset, temperature,
    pooling, lookahead and the dials that the law does not vary. `accept_gap` is tried under the two foremost loss laws.
    """
    rows, fits, reasons = list(observations), [], {}
    skip = {forms.accept_gap(name).name for name in forms.loss_laws() if name not in forms.TEXT_LOSS_LAWS[:2]}
    for law in (law for name, law in forms.laws().items() if name not in skip):
        pool_fits, failed = _fit_pools(law, rows, draws, seed)
        fits += pool_fits
        reasons |= failed
    return fits, reasons


def _fit_pool(law: Law, pool: Sequence[Observation], draws: int, seed: int) -> Fit:
    """Over runs where there are enough, else over their checkpoints; where neither will do, what runs are lacking."""
    try:
        return fit(law, pool, draws=draws, seed=seed)
    except ValueError as lacking:
        try:
            return fit(law, pool, draws=draws, seed=seed, checkpoints=True)
        except ValueError:
            raise lacking from None


def sample_words(fit: Fit) -> str:
    """How many observations and runs a fit stands on, in words."""
    runs = f"{fit.num_clusters} run{'' if fit.num_clusters == 1 else 's'}"
    if fit.checkpoints_of:
        runs = f"{fit.num_clusters} checkpoints of {fit.checkpoints_of} run{'' if fit.checkpoints_of == 1 else 's'}"
    return f"{fit.num_observations} observations in {runs}"


def _fit_pools(law: Law, rows: Sequence[Observation], draws: int, seed: int) -> tuple[list[Fit], dict[str, str]]:
    pools: dict[tuple, list[Observation]] = {}
    for row in rows:
        if _complete(law, row):
            pools.setdefault(tuple(getattr(row, name) for name in law.pool), []).append(row)
    if not pools:
        lacking = missing_fields(law, rows)
        absent = [name for name, count in lacking.items() if count == len(rows)] or list(lacking)
        needs = ", ".join(absent)
        return [], {law.name: f"{law.name} needs {needs}: no observation has all it needs, measure or name them"}
    fits, failed = [], {}
    for pool in pools.values():
        try:
            fits.append(_fit_pool(law, pool, draws, seed))
        except ValueError as error:
            failed.setdefault(str(error), []).append(pool_label(law, pool[0]))
    more = {text: f" (and {len(labels) - 1} more pools)" if len(labels) > 1 else "" for text, labels in failed.items()}
    return fits, {f"{law.name} [{labels[0]}]": text + more[text] for text, labels in failed.items()}
