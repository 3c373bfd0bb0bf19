"""What `foredraft calibrate` concludes, for a terminal: the verdict, then load by load, then what it rests on. Refuses to know: the law."""

from rich.text import Text

from foredraft.records import CalibratedLoad, ServerCalibration
from foredraft.report.terminal import Blocks, Titled, interval


def calibration_tables(calibration: ServerCalibration) -> Blocks:
    """The verdict first."""
    return [Text(verdict(calibration), style="bold"), _loads(calibration), _accepted(calibration), _basis(calibration)]


def verdict(calibration: ServerCalibration) -> str:
    """In one or two sentences: what to run, what it gains, and when to switch it off; what only usual shares say is said to be so."""
    if not calibration.is_whole:
        what = "with a draft" if 0 in calibration.lookaheads else "without one"
        usual = "" if 0 in calibration.lookaheads else f" By usual shares of a step: {_advice(calibration)}"
        return f"NOT YET KNOWN whether a draft pays: this server was not measured {what}.{usual}"
    return _advice(calibration)


def _advice(calibration: ServerCalibration) -> str:
    off, lookaheads = calibration.off_above, dict.fromkeys(each.scheduled for each in calibration.loads)
    if not any(lookaheads):
        if off == 0:
            return "NO DRAFT: at no load that was looked at is a server with one faster."
        where = f"up to {off} requests at once" if off else "at some of them"
        return (
            f"NO DRAFT: over these loads together one gains nothing; it would {where} (--load says how often each is)."
        )
    what = f"{next(iter(lookaheads))} TOKENS A STEP" if len(lookaheads) == 1 else f"BY LOAD: {_ranges(calibration)}"
    gain, most = interval(calibration.gain, ".2f"), calibration.loads[-1].concurrency
    end = f"it gains up to {most} requests at once, the most that were looked at"
    if off is not None:
        end = f"switch it off above {off} requests at once: there a server without a draft is faster"
    best = f"the best single lookahead, {calibration.best_fixed}, {calibration.fixed_gain.value:.2f}"
    return f"DRAFT {what}. Over these loads {gain} × no draft; {best}; {end}."


def _ranges(calibration: ServerCalibration) -> str:
    """3 from 1, 2 from 8, none from 64 requests on."""
    parts, last = [], None
    for each in calibration.loads:
        if each.scheduled != last:
            parts.append(f"{each.scheduled or 'none'} from {each.concurrency}")
            last = each.scheduled
    return ", ".join(parts) + " requests on"


def _loads(calibration: ServerCalibration) -> Titled:
    lookaheads = sorted({k for each in calibration.loads for k in each.predicted})
    shown = [
        k for k in lookaheads if k in calibration.lookaheads or any(each.scheduled == k for each in calibration.loads)
    ]
    table = Titled(
        "Tokens/s by requests at once: measured, else predicted [90 %]", "at once", *("no draft" if k == 0 else f"k = {k}" for k in shown),
        "run", "gain", "sure",
    )  # fmt: skip
    for each in calibration.loads:
        run = "-" if not each.scheduled else str(each.scheduled)
        table.add_row(
            str(each.concurrency),
            *(_speed(each, k) for k in shown),
            run,
            interval(each.gain, ".2f"),
            f"{each.sure:.0%}",
        )
    return table


def _speed(load: CalibratedLoad, lookahead: int) -> str:
    if lookahead in load.measured:
        return f"{load.measured[lookahead]:{form_of(load.measured[lookahead])}} measured"
    return interval(load.predicted[lookahead], form_of(load.predicted[lookahead].value))


def form_of(speed: float) -> str:
    """How tokens/s are written: whole ones from 100 on."""
    return ",.0f" if speed >= 100 else ".1f"


def _accepted(calibration: ServerCalibration) -> Text:
    if not calibration.survival:
        return Text("")
    shares = ", ".join(f"{share:.2f}" for share in calibration.survival)
    taus = ", ".join(f"{tau:.2f} at k = {k}" for k, tau in calibration.tokens_per_step.items())
    even = (
        f"; below {calibration.break_even:.2f} it gains nothing at {calibration.usual_load} at once"
        if (calibration.break_even or 0) > 1
        else ""
    )
    return Text(f"\nsteps that accept so many drafted tokens or more: {shares}; tokens per step {taus}{even}")


def _basis(calibration: ServerCalibration) -> Text:
    runs = ", ".join("no draft" if k == 0 else f"k = {k}" for k in calibration.lookaheads)
    line = f"\n{calibration.rows} loads measured ({runs}), which the law misses by {calibration.error:.1%} on average"
    return Text("\n".join((line, *(f"not measured: {each}" for each in calibration.missing))), style="dim")
