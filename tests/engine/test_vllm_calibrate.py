"""`foredraft calibrate` on the real vLLM: what the server says of itself, and a schedule that it takes."""

import contextlib
from pathlib import Path

import ours
import vllm_here
import vllm_server

from foredraft import records
from foredraft.records import Observation, Plan, ServerCalibration


def test_a_server_with_a_draft_and_one_without_make_a_schedule_that_vllm_takes(tmp_path: Path) -> None:
    """Speeds mean nothing here: that runs are told apart, acceptance is the draft's, and the written script starts a server that drafts."""
    out, common = (
        tmp_path / "calibrated",
        ("-c", "1,4", "--requests", 1, "--max-tokens", 16, "--no-stop", "--prompts", ours.PROMPTS),
    )
    ours.foredraft("deploy", ours.ZOO / "eagle2", "-t", ours.TARGET, "-o", tmp_path / "draft", "-k", ours.LOOKAHEAD)
    assert {"compose.yaml", "helm-values.yaml"} <= {file.name for file in (tmp_path / "draft").iterdir()}
    with contextlib.ExitStack() as running:
        drafted = running.enter_context(vllm_here.serving(tmp_path / "draft", tmp_path / "log"))
        ours.foredraft("calibrate", drafted, "--out", out, *common, "--draft", tmp_path / "draft", "--method", "eagle")
        calibration = records.read(ServerCalibration, out / "calibration.json")
        assert (calibration.lookaheads, calibration.version) == ((ours.LOOKAHEAD,), "0.32.0")
        assert 1 >= calibration.survival[0] >= calibration.survival[-1] > 0
        assert not (out / "serve.sh").exists()
        rows = records.read_lines(Observation, out / "observations.jsonl")
    plain = [_without_draft(row) for row in rows]  # a second server would cost a quarter of a minute and show no more
    records.write_lines(out / "observations.jsonl", [*rows, *plain])
    _conclude_again(out, tmp_path / "draft")
    assert records.read(Plan, out / "Plan.json").draft is not None
    with _script(out / "serve.sh", tmp_path / "scheduled.log") as url:
        ours.foredraft("calibrate", url, "--out", tmp_path / "again", *common)
    again = records.read_lines(Observation, tmp_path / "again" / "observations.jsonl")
    longest = max(each.scheduled for each in records.read(ServerCalibration, out / "calibration.json").loads)
    assert longest > 0
    assert all(0 < (row.lookahead or 0) <= longest for row in again)


def _without_draft(row: Observation) -> Observation:
    """A slower plain row at the same load, so that the draft pays."""
    import msgspec

    return msgspec.structs.replace(
        row, method="none", draft=None, lookahead=0, output_tok_s=(row.output_tok_s or 1.0) / 1.5, steps=None, drafted=None, accepted=None,
        survival=None, tokens_per_step=None,
    )  # fmt: skip


def _conclude_again(out: Path, draft: Path) -> None:
    from foredraft.calibrate.conclude import KnownServer, conclude, plan_of
    from foredraft.calibrate.files import write_files
    from foredraft.calibrate.runs import measured_rows, served_path
    from foredraft.kinds import shape_named
    from foredraft.shapes import named

    known, rows = KnownServer("here", served_path(out), draft=str(draft), method="eagle"), measured_rows(out)
    calibration = conclude(rows, known)
    write_files(calibration, out, plan_of(calibration, rows, known, named(str(ours.TARGET)), shape_named(str(draft))))


def _script(script: Path, log: Path) -> contextlib.AbstractContextManager[str]:
    command = ["sh", script, "--dtype", "float32", "--enforce-eager", "--max-model-len", str(vllm_here.CONTEXT)]
    return vllm_server.serving(command, vllm_server.environment(vllm_here.python(), 1), log)
