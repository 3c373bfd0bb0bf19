"""`foredraft calibrate`: its law on rows that a law made, its schedule, its files, and the verb on small servers, all without torch."""

import json
import subprocess
import sys
import threading
import urllib.request
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fake_server import FakeServer
from test_light import BLOCK, ROOT
from typer.testing import CliRunner

from foredraft import records
from foredraft.calibrate.conclude import KnownServer, _step, conclude, next_lookahead
from foredraft.calibrate.files import write_files
from foredraft.calibrate.law import accepted_by_position, served_law
from foredraft.calibrate.runs import CalibrationSettings, measure_runs
from foredraft.calibrate.schedule import ranges_of, scheduled
from foredraft.cli import main as cli
from foredraft.cli.main import app
from foredraft.engines import ENGINES, SERVERS
from foredraft.engines.counters import Counters, Totals
from foredraft.engines.operations import Thresholds, alerts, compose, helm, planned_thresholds
from foredraft.records import Observation, Plan, Provenance, ServerCalibration
from foredraft.report.calibrated import verdict
from foredraft.serving.builtin import questions
from foredraft.serving.endpoint_http import address_of
from foredraft.serving.watch import PageReading, seconds_of, stretches_of

SURVIVAL = (0.75, 0.55, 0.4, 0.28, 0.2)
RUNS = ROOT.parents[1] / "examples/runs.csv"
KNOWN = KnownServer("http://here", "org/model", draft="org/head", method="eagle3")


def planted(load: int, k: int, knee: float = 40.0) -> float:
    """Tokens/s of a server whose step reads weights, multiplies tokens beyond a knee, and drafts pass by pass."""
    tokens = load * (1 + k)
    step = (
        0.007 * (1 + (tokens / knee) ** 3) ** (1 / 3)
        + 1e-5 * load
        + (0.0012 + (0.0007 + 4e-6 * load) * k if k else 0.0)
    )
    prefill = 0.2e-3 * load * (1 + sum(SURVIVAL[:k])) / 128
    return load * (1 + sum(SURVIVAL[:k])) / (step + prefill)


def row(load: int, k: int, speed: float, **more: Any) -> Observation:
    drafted = {"tokens_per_step": 1 + sum(SURVIVAL[:k]), "survival": SURVIVAL[:k], "steps": 20_000} if k else {}
    return Observation(
        run="here", target="model", method="eagle3" if k else "none", engine="vllm", lookahead=k, concurrency=load, output_tok_s=float(speed),
        input_len=200.0, output_len=128.0, num_requests=400, provenance=Provenance(source="planted", versions={"vllm": "0.32.0"}),
        **{**drafted, **more},
    )  # fmt: skip


def rows_of(
    lookaheads: tuple[int, ...], loads: tuple[int, ...], noise: float = 0.02, seed: int = 0
) -> list[Observation]:
    rng = np.random.default_rng(seed)
    return [
        row(load, k, planted(load, k) * np.exp(noise * rng.standard_normal())) for k in lookaheads for load in loads
    ]


@pytest.mark.parametrize("lookaheads", [(0, 1, 3), (0, 1, 5), (0, 4)])
def test_unmeasured_loads_are_predicted(lookaheads):
    """With 2 % of noise (seed 0), the mean error at loads and lookaheads between is below the goal of 8 %, and two thirds lie inside 90 %."""
    law = served_law(rows_of(lookaheads, (1, 8, 32)))
    loads, ks = (1, 2, 4, 8, 16, 32), tuple(range(max(lookaheads) + 1))
    drawn = law.draws(loads, ks)
    truth = np.array([[planted(load, k) for k in ks] for load in loads])
    unseen = np.array([[not (load in (1, 8, 32) and k in lookaheads) for k in ks] for load in loads])
    assert np.abs(np.median(drawn, axis=-1) / truth - 1)[unseen].mean() < 0.08
    low, high = np.quantile(drawn, (0.05, 0.95), axis=-1)
    assert ((low <= truth) & (truth <= high))[unseen].mean() > 2 / 3


@pytest.mark.parametrize("seed", range(3))
def test_a_schedule_loses_little_to_the_best_lookahead(seed):
    """Of the planted server, noise left out: 2 % on average over loads of which half were not measured."""
    rows = rows_of((0, 1, 5), (1, 8, 64), seed=seed)
    plan = scheduled(served_law(rows), rows, {2**i: 1.0 for i in range(7)})
    losses = []
    for each in plan.loads:
        best = max(planted(each.concurrency, k) for k in range(6))
        losses.append(1 - planted(each.concurrency, each.scheduled) / best)
    assert np.mean(losses) < 0.02
    gains = [np.log(planted(each.concurrency, each.scheduled) / planted(each.concurrency, 0)) for each in plan.loads]
    assert plan.gain.low <= np.exp(np.mean(gains)) <= plan.gain.high


def test_where_drafts_lose_they_are_switched_off():
    slower = {1: 1.2, 4: 1.2, 16: 2.2, 64: 2.2}
    rows = [row(load, k, planted(load, k) / (slower[load] if k else 1)) for k in (0, 3) for load in slower]
    plan = scheduled(served_law(rows), rows)
    assert 4 <= (plan.off_above or 0) < 16
    only_busy = scheduled(served_law(rows), rows, {64: 1.0})
    assert [each.scheduled for each in only_busy.loads] == [0]
    assert only_busy.off_above == 0


def test_a_run_without_a_draft_alone_and_one_with_it_alone_say_what_they_lack():
    plain, drafted = (conclude(rows_of(lookaheads, (1, 8)), KNOWN) for lookaheads in ((0,), (3,)))
    assert not plain.is_whole
    assert not drafted.is_whole
    assert verdict(plain).startswith("NOT YET KNOWN")
    assert "usual shares" in verdict(drafted)
    assert any("without a draft" in clause for clause in drafted.missing)
    assert (next_lookahead(plain), next_lookahead(drafted)) == (3, 0)
    assert drafted.gain.high / drafted.gain.low > 1.3  # as wide as what is not known


def test_acceptance_pools_positions_over_steps():
    rows = [row(1, 1, 100.0, survival=(0.9,), steps=100), row(1, 3, 100.0, survival=(0.6, 0.4, 0.2), steps=300)]
    accepted = accepted_by_position(rows)
    assert accepted is not None
    assert accepted.survival == pytest.approx([0.675, 0.4, 0.2])
    assert accepted_by_position([row(1, 0, 100.0)]) is None
    told = accepted_by_position([row(1, 3, 100.0, survival=None, tokens_per_step=2.2)])
    assert told is not None
    assert told.tokens_per_step(3) == pytest.approx(2.2)


def test_files_say_the_schedule_in_each_engines_words(tmp_path):
    for name in SERVERS:
        rows = [
            records.decode(Observation, json.dumps({**json.loads(_json(each)), "engine": name}))
            for each in rows_of((0, 1, 5), (1, 8, 64))
        ]
        calibration = conclude(rows, KNOWN)
        written = {path.name: path for path in write_files(calibration, tmp_path / name)}
        script = written["serve.sh"].read_text()
        assert "org/head" in script
        assert "org/head" in written["compose.yaml"].read_text()
        assert records.read(ServerCalibration, written["calibration.json"]) == calibration
        most = max(each.scheduled for each in calibration.loads)
        assert ENGINES[name].lookahead(calibration.settings) == (
            calibration.best_fixed if ENGINES[name].one_mode else most
        )
    vllm = records.read_json(tmp_path / "vllm" / "vllm_speculative_config.json")
    ranges = vllm["num_speculative_tokens_per_batch_size"]
    assert (vllm["method"], ranges[0][0], ranges[-1][1]) == ("eagle3", 1, 64)
    assert all(before[1] + 1 == after[0] for before, after in pairwise(ranges))
    assert "0.24" in (tmp_path / "vllm" / "helm-values.yaml").read_text()
    assert not (tmp_path / "sglang" / "helm-values.yaml").exists()
    write_files(conclude(rows_of((3,), (1,)), KNOWN), tmp_path / "vllm")
    assert not (tmp_path / "vllm" / "serve.sh").exists()  # what does not hold any more is gone


def _json(record: Any) -> bytes:
    import msgspec

    return msgspec.json.encode(record)


def test_what_is_written_is_yaml():
    yaml = pytest.importorskip("yaml")
    settings = {"method": "eagle3", "model": "a 'b' \"c\"", "num_speculative_tokens": 3}
    for engine in SERVERS.values():
        service = yaml.safe_load(
            compose(engine, "org/model", settings if engine.name == "vllm" else {"--x": 1}, "0.32.0")
        )["services"][engine.name]
        assert service["image"].endswith(":v0.32.0")
        rules = yaml.safe_load(alerts(engine, Thresholds(1.4, 2.0, 48)))["groups"][0]["rules"]
        assert {rule["alert"] for rule in rules} >= {"SpeculationLoses", "SpeculationDrifted", "SpeculationPastItsLoad"}
        assert any(rule["expr"].endswith("> 48") for rule in rules)
    values = yaml.safe_load(helm(ENGINES["vllm"], "org/model", settings))["servingEngineSpec"]["modelSpec"][0]
    assert json.loads(values["vllmConfig"]["extraArgs"][1]) == settings
    assert not any(
        "SpeculationLoses" in alerts(ENGINES["vllm"], thresholds)
        for thresholds in (Thresholds(), Thresholds(None, 2.0))
    )


def test_a_plans_alerts_and_folders_of_this_machine():
    calibration = conclude(rows_of((0, 1, 5), (1, 8, 64)), KNOWN)
    steps = [_step(each, calibration) for each in calibration.loads]
    thresholds = planned_thresholds(steps)
    assert thresholds is not None
    assert (thresholds.off_above is None) == steps[-1].gains
    assert planned_thresholds([]) is None
    service = compose(
        ENGINES["sglang"],
        "/models/target",
        {"--speculative-draft-model-path": "/d", "--speculative-token-map": "/d/map.pt"},
    )
    assert '"/d:/d:ro", "/models/target:/models/target:ro"]' in service
    assert "sglang.launch_server" in service


def test_ranges_meet_midway():
    rows = rows_of((0, 1, 5), (1, 8, 64))
    loads = scheduled(served_law(rows), rows).loads
    ranges = ranges_of(loads)
    assert ranges[0][0] == 1
    assert ranges[-1][1] == loads[-1].concurrency
    for each in loads:
        assert next(k for first, last, k in ranges if first <= each.concurrency <= last) == each.scheduled


def test_builtin_prompts_differ():
    assert len({question.words for question in questions(300)}) == 300
    assert len({question.category for question in questions(8)}) == 8


@pytest.mark.parametrize(("text", "seconds"), [("5m", 300), ("90s", 90), ("1.5h", 5400), ("20", 20)])
def test_times_are_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5 days", "-1s", "nan", "1e9h"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="--watch must be a time"):
        seconds_of(text)


def test_idle_time_restarts_and_changes_are_left_out():
    def at(second: float, generated: float, running: float, steps: int) -> PageReading:
        spec = Counters(steps=steps, drafted=3 * steps, accepted=steps, by_position=(steps, 0, 0))
        return PageReading(second, Totals(spec, generated, running=running))

    readings = [
        at(0, 0, 4, 0),
        at(1, 100, 4, 50),
        at(2, 100, 0, 50),
        at(3, 100, 0, 50),
        at(4, 10, 4, 5),
        at(5, 110, 4, 55),
        at(6, 300, 16, 90),
    ]
    stretches, notes = stretches_of(readings)
    assert [stretch.tokens for stretch in stretches] == [100, 100]
    assert any("anew" in note for note in notes)
    assert any("changed much" in note for note in notes)


# On servers.

QUICK = CalibrationSettings(loads=(1, 4), requests_per_client=1, max_tokens=8)


def calibrate(*words: object) -> None:
    cli.app(["calibrate", *map(str, words)], standalone_mode=False)


def test_runs_add_up_in_a_folder_and_nothing_is_measured_twice(tmp_path, capsys):
    common = ["--out", tmp_path / "c", "-c", "1,4", "--requests", 1, "--max-tokens", 8]
    with FakeServer(0) as plain, FakeServer(3) as drafted:
        calibrate(drafted.url, *common)
        out = capsys.readouterr().out
        assert "NOT YET KNOWN" in out
        assert f"foredraft calibrate {drafted.url}" in out
        assert not (tmp_path / "c" / "serve.sh").exists()
        calibrate(plain.url, drafted.url, *common, "--draft", "org/head", "--method", "eagle3")
        rows = records.read_lines(Observation, tmp_path / "c" / "observations.jsonl")
        assert [(each.lookahead, each.concurrency) for each in rows] == [(3, 1), (3, 4), (0, 1), (0, 4)]
        assert {each.method for each in rows if each.lookahead == 0} == {"none"}
        calibration = records.read(ServerCalibration, tmp_path / "c" / "calibration.json")
        assert calibration.is_whole
        assert (calibration.version, calibration.path) == ("0.32.0", "org/model")
        posts = plain.posts
        measure_runs([address_of(plain.url)], questions(8), QUICK, tmp_path / "c", {})
        assert plain.posts - posts <= 6  # trials and a warm-up: no load again
        with pytest.raises(ValueError, match="holds rows measured otherwise"):
            calibrate(plain.url, *common[:-1], 9)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_in_use_is_watched(tmp_path, engine, capsys):
    with FakeServer(3, engine=engine) as server:
        stop = threading.Event()
        users = [threading.Thread(target=_use, args=(server.url, stop), daemon=True) for _ in range(3)]
        for user in users:
            user.start()
        calibrate(server.url, "--watch", "1s", "--every", "0.2", "--out", tmp_path / "w")
        stop.set()
        for user in users:
            user.join()
    (watched, *_) = records.read_lines(Observation, tmp_path / "w" / "observations.jsonl")
    assert (watched.lookahead, watched.engine) == (3, engine)
    assert watched.tokens_per_step == pytest.approx(2.5, abs=0.3)  # 0.7, 0.5 and 0.3 of the steps, hundreds of them
    assert "usual shares" in capsys.readouterr().out


def _use(url: str, stop: threading.Event) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 30, "stream": True}).encode()
    while not stop.is_set():
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).read()


def test_a_server_that_shows_no_metrics_is_one_line():
    with FakeServer(0) as server:
        server.metrics = False
        with pytest.raises(ValueError, match="shows no running requests"):
            calibrate(server.url, "--watch", "1s", "--out", "unused")


def test_the_verb_runs_without_torch(tmp_path):
    """The whole of it, and a plan of a known target and draft, where torch, transformers and safetensors cannot be imported."""
    with FakeServer(0) as plain, FakeServer(2) as drafted:
        words = [
            "calibrate", plain.url, drafted.url, "--out", str(tmp_path / "c"), "-c", "1,4", "--requests", "1", "--max-tokens", "8",
            "--target", "Llama-3.1-8B", "--draft", "Llama-3.2-1B", "--method", "draft_model",
        ]  # fmt: skip
        code = f"{BLOCK}\nfrom foredraft.cli import main\nmain.app({words!r}, standalone_mode=False)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c" / "Plan.json").is_file() or "NO DRAFT" in done.stdout
    plan_file = tmp_path / "c" / "Plan.json"
    plan = records.read(Plan, plan_file)
    assert plan.target == "Llama-3.1-8B"
    assert [step.concurrency for step in plan.schedule] == [1, 2, 4]


def test_a_missing_package_is_named_in_a_line(tmp_path):
    code = f"""
import sys
sys.modules["httpx2"] = None
sys.argv = ["foredraft", "calibrate", "http://localhost:1", "--out", {str(tmp_path / "c")!r}]
from foredraft.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "foredraft[endpoint]" in done.stderr
    assert "Traceback" not in done.stderr


# Of rows that were measured before.


def test_rows_of_a_benchmark_take_a_servers_place(tmp_path):
    """No torch, no client of HTTP: the verdict, the schedule and the files, of a public benchmark of vLLM."""
    words = ["calibrate", "--observations", str(RUNS), "--out", str(tmp_path / "c")]
    code = f"{BLOCK}\nsys.modules['httpx2'] = None\nfrom foredraft.cli import main\nmain.app({words!r}, standalone_mode=False)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    calibration = records.read(ServerCalibration, tmp_path / "c" / "calibration.json")
    assert calibration.lookaheads == (0, 1, 2)
    assert 128 < (calibration.off_above or 0) < 256
    assert "switch it off above" in done.stdout
    assert (tmp_path / "c" / "serve.sh").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("Qwen3-32B,none,,0,1,", "Qwen3-8B,none,,0,1,"), "rows of 2 targets"),
        (lambda text: text.replace("speculator.eagle3,2,", "speculator.other,2,"), "rows of 2 drafts"),
        (lambda text: text.replace("concurrency", "nothing"), "no row has tokens/s"),
    ],
)
def test_rows_that_are_not_of_one_server_are_refused(tmp_path, change, words):
    (tmp_path / "rows.csv").write_text(change(RUNS.read_text()))
    done = CliRunner().invoke(
        app, ["calibrate", "--observations", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "c")]
    )
    assert words in str(done.exception)
    both = CliRunner().invoke(app, ["calibrate", "http://localhost:1", "--observations", str(RUNS)])
    assert "or --observations" in str(both.exception)
