"""Files of other benchmarks: each row is read under our names or named with the reason, and so is every column."""

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foredraft.published.opened import utf8_of
from foredraft.published.readers import joined, read
from foredraft.published.tables import Reading
from foredraft.records import Measurement, Observation, Provenance


def reading(tmp_path: Path, content: Any, name: str = "f.json") -> Reading:
    path = tmp_path / name
    path.write_bytes(
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    (part,) = read([path])
    return part


def fields(row: Observation) -> dict[str, Any]:
    """What a row says, but its origin."""
    values = {name: getattr(row, name) for name in row.__struct_fields__ if name not in ("run", "provenance")}
    return {name: value for name, value in values.items() if value is not None}


def refusal(tmp_path: Path, content: Any, name: str = "f.json") -> str:
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
        reading(tmp_path, content, name)
    assert "\n" not in str(error.value)
    return str(error.value)


# vLLM bench serve: keys as vllm/benchmarks/serve.py writes them, the figures of a made-up run.
VLLM = {
    "date": "20260115-101500", "backend": "openai-chat", "label": None, "model_id": "org/T", "tokenizer_id": "org/T", "num_prompts": 80,
    "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 8, "duration": 12.5, "completed": 80, "failed": 0,
    "total_input_tokens": 6400, "total_output_tokens": 16000, "request_throughput": 6.4, "output_throughput": 1280.0,
    "total_token_throughput": 1792.0, "mean_ttft_ms": 31.5, "p99_ttft_ms": 60.0, "mean_tpot_ms": 5.5, "mean_itl_ms": 14.5,
    "std_itl_ms": 1.0, "ttfts": [0.1] * 3, "generated_texts": ["a"] * 3,
}  # fmt: skip
SPEC = {
    "spec_decode_acceptance_rate": 40.0, "spec_decode_acceptance_length": 2.2, "spec_decode_num_drafts": 1000,
    "spec_decode_draft_tokens": 3000, "spec_decode_accepted_tokens": 1200, "spec_decode_per_position_acceptance_rates": [0.7, 0.3, 0.2],
}  # fmt: skip
RUN = {
    "target": "org/T", "concurrency": 8, "num_requests": 80, "input_len": 80.0, "output_len": 200.0, "output_tok_s": 1280.0,
    "ttft_s": 0.0315, "tpot_s": 0.0055, "itl_s": 0.0145,
}  # fmt: skip
DRAFTED = {
    "method": "unstated", "engine": "vllm", "lookahead": 3, "steps": 1000, "drafted": 3000, "accepted": 1200, "tokens_per_step": 2.2,
    "survival": (0.7, 0.3, 0.2),
}  # fmt: skip


def test_vllm_bench_serve(tmp_path):
    """Plain and drafted, with metadata under our usual names; percentiles and arrays are the tool's, an unknown key is named."""
    plain = reading(tmp_path, VLLM)
    assert [fields(row) for row in plain.rows] == [{"method": "none"} | RUN]
    assert (
        str(plain) == "f.json: 1 row read (vLLM bench serve); nothing said of speculation, read as plain decoding (1)"
    )
    part = reading(tmp_path, VLLM | SPEC | {"method": "eagle3", "gpu": "H100", "colour": "red"})
    assert fields(part.rows[0]) == RUN | DRAFTED | {"method": "eagle3", "machine": "H100"}
    assert str(part) == "f.json: 1 row read (vLLM bench serve); not used: colour"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(VLLM) + "\n" + json.dumps(VLLM | SPEC) + "\n",
        json.dumps(VLLM, indent=2) + "\n" + json.dumps(VLLM | SPEC, indent=2),
        json.dumps([VLLM, VLLM | SPEC]),
    ],
    ids=["a line each", "one after another", "a list"],
)
def test_several_documents_in_one_file(tmp_path, text):
    part = reading(tmp_path, text, "f.jsonl")
    assert [row.lookahead for row in part.rows] == [None, 3]
    assert len({row.run for row in part.rows}) == 2 or text.startswith("[")


def test_a_flat_csv_of_vllm_bench_serve(tmp_path):
    keys = [key for key in VLLM if key not in ("ttfts", "generated_texts")] + [*SPEC, "k"]
    rows = [VLLM | {"k": 0}, VLLM | SPEC | {"k": 2, "spec_decode_per_position_acceptance_rates": '"[0.7, 0.3, 0.2]"'}]
    text = "\n".join(
        [
            ",".join(keys),
            *(",".join(str(row.get(key) if row.get(key) is not None else "") for key in keys) for row in rows),
        ]
    )
    part = reading(tmp_path, text, "t.csv")
    assert fields(part.rows[0]) == {"method": "none", "lookahead": 0} | RUN
    assert (part.rows[1].lookahead, part.rows[1].survival) == (2, (0.7, 0.3))  # as far as this row's chain goes
    assert str(part) == "t.csv: 2 rows read (vLLM bench serve)"


SGLANG = {
    "tag": None, "backend": "sglang", "dataset_name": "sharegpt", "request_rate": "inf", "max_concurrency": 16, "sharegpt_output_len": None,
    "random_input_len": 1024, "random_output_len": 1024, "random_range_ratio": 0.0, "duration": 60.0, "completed": 200,
    "total_input_tokens": 60000, "total_output_tokens": 52000, "output_throughput": 865.0, "mean_ttft_ms": 60.0, "mean_tpot_ms": 16.0,
    "mean_itl_ms": 41.0, "p95_itl_ms": 50.0, "concurrency": 14.3, "accept_length": 2.64,
}  # fmt: skip


def test_sglang_bench_serving(tmp_path):
    """Clients are max_concurrency, not the measured mean; what the server said of itself is read where it is there."""
    row = fields(reading(tmp_path, SGLANG, "f.jsonl").rows[0])
    measured = {
        "dataset": "sharegpt", "engine": "sglang", "concurrency": 16, "input_len": 300.0, "output_len": 260.0, "num_requests": 200,
        "tokens_per_step": 2.64, "output_tok_s": 865.0, "ttft_s": 0.06, "tpot_s": 0.016, "itl_s": 0.041,
    }  # fmt: skip
    assert row == {"target": "unstated", "method": "unstated"} | measured
    info = {
        "model_path": "org/T", "tp_size": 2, "dtype": "auto", "speculative_algorithm": "EAGLE3", "speculative_num_steps": 3,
        "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4,
    }  # fmt: skip
    told = fields(reading(tmp_path, SGLANG | {"server_info": info}, "f.jsonl").rows[0])
    assert told == measured | {
        "target": "org/T", "method": "eagle3", "tensor_parallel": 2, "lookahead": 3, "topk": 1, "tree_nodes": 3,
    }  # fmt: skip
    plain = reading(tmp_path, SGLANG | {"accept_length": None, "server_info": {"model_path": "org/T"}}, "f.jsonl").rows[
        0
    ]
    assert (plain.method, plain.tokens_per_step) == ("none", None)


def test_specforge(tmp_path):
    """Steps are the lookahead, draft tokens count the root, 0 steps are plain; 180 tokens/s for 400 s are 900 tokens for each of 80."""
    metrics = {
        "latency": 400.0,
        "output_throughput": 180.0,
        "accept_length": 2.9,
        "accuracy": None,
        "num_questions": 80,
    }
    run = {"batch_size": 1, "steps": 3, "topk": 2, "num_draft_tokens": 6, "metrics": [metrics], "num_samples": 80}
    document = {"model": "org/some-draft", "mtbench": [run, run | {"steps": 0, "topk": 0, "num_draft_tokens": 0}]}
    part = reading(tmp_path, document, "results.jsonl")
    common = {
        "target": "unstated", "dataset": "mtbench", "engine": "sglang", "batch_size": 1, "num_requests": 80, "output_len": 900.0,
        "output_tok_s": 180.0,
    }  # fmt: skip
    assert [fields(row) for row in part.rows] == [
        common
        | {
            "method": "eagle3",
            "draft": "org/some-draft",
            "lookahead": 3,
            "topk": 2,
            "tree_nodes": 5,
            "tokens_per_step": 2.9,
        },
        common | {"method": "none", "lookahead": 0},
    ]
    assert str(part) == "results.jsonl: 2 rows read (SpecForge)"


def test_columns_steps_topk_draft_tokens_are_sglangs_settings(tmp_path):
    header = "target,method,batch_size,steps,topk,num_draft_tokens,output_throughput,accept_length"
    rows = reading(tmp_path, f"{header}\nT,none,1,,,,189.0,\nT,eagle3,1,5,1,6,416.0,3.28\n", "t.csv").rows
    assert [(row.lookahead, row.topk, row.tree_nodes, row.steps) for row in rows] == [(None,) * 4, (5, 1, 5, None)]


def test_angelslim(tmp_path):
    """One benchmark's document after another; the mean of all is left out, by name."""
    run = {
        "timestamp": "t", "dataset": "gsm8k", "model_dir": "org/T", "eagle_dir": "org/E", "method": "eagle3", "num_spec_tokens": 2,
        "num_prompts": 80, "output_len": 1024, "temperature": 0, "top_p": 1.0, "top_k": -1, "total_num_input_tokens": 800,
        "total_num_output_tokens": 8000, "latency_seconds": 40.0, "output_throughput_tokens_per_sec": 200.0, "avg_input_tokens": 10.0,
        "avg_output_tokens": 100.0, "num_drafts": 4000, "num_draft_tokens": 8000, "num_accepted_tokens": 4000,
        "mean_acceptance_length": 2.0, "acceptance_rate_pos_0": 0.7, "acceptance_rate_pos_1": 0.3,
    }  # fmt: skip
    text = "\n".join(json.dumps(each, indent=2) for each in (run, run | {"dataset": "AVERAGE", "num_benchmarks": 1}))
    part = reading(tmp_path, text, "benchmark_stats.jsonl")
    assert [fields(row) for row in part.rows] == [
        {
            "target": "org/T", "draft": "org/E", "method": "eagle3", "dataset": "gsm8k", "engine": "vllm", "temperature": 0.0,
            "lookahead": 2, "num_requests": 80, "steps": 4000, "drafted": 8000, "accepted": 4000, "tokens_per_step": 2.0,
            "survival": (0.7, 0.3), "output_tok_s": 200.0, "input_len": 10.0, "output_len": 100.0,
        }
    ]  # fmt: skip
    assert "1 not used: the mean of the benchmarks beside it" in str(part)
    plain = reading(
        tmp_path, run | {"method": "ar", "num_drafts": 0, "num_draft_tokens": 0, "mean_acceptance_length": 1}
    ).rows[0]
    assert (plain.method, plain.lookahead, plain.tokens_per_step, plain.output_tok_s) == ("none", 0, None, 200.0)


AIPERF = {
    "output_token_throughput": {"unit": "tokens/sec", "avg": 1359.0}, "request_throughput": {"unit": "requests/sec", "avg": 6.4},
    "time_to_first_token": {"unit": "ms", "avg": 31.0, "p99": 60.0}, "inter_token_latency": {"unit": "ms", "avg": 5.5},
    "input_sequence_length": {"unit": "tokens", "avg": 550.0}, "output_sequence_length": {"unit": "tokens", "avg": 210.0},
    "request_count": {"unit": "requests", "avg": 64.0},
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"endpoint": {"model_names": ["org/T"]}, "loadgen": {"concurrency": 8}},
        {"models": ["org/T"], "phases": [{"name": "profiling", "concurrency": 8}]},
    ],
)
def test_aiperf(tmp_path, config):
    part = reading(tmp_path, AIPERF | {"input_config": config, "schema_version": "1.0"})
    assert [fields(row) for row in part.rows] == [
        {
            "target": "org/T", "method": "none", "concurrency": 8, "num_requests": 64, "input_len": 550.0, "output_len": 210.0,
            "output_tok_s": 1359.0, "ttft_s": 0.031, "tpot_s": 0.0055,
        }
    ]  # fmt: skip
    assert str(part).endswith("(AIPerf); nothing said of speculation, read as plain decoding (1)")


def test_aiperf_by_the_unit_of_a_metric(tmp_path):
    row = reading(tmp_path, AIPERF | {"time_to_first_token": {"unit": "sec", "avg": 0.5}}).rows[0]
    assert row.ttft_s == 0.5
    assert "unit 'fortnight'" in refusal(tmp_path, AIPERF | {"time_to_first_token": {"unit": "fortnight", "avg": 1}})


METRICS = {
    "output_tokens_per_second": {"successful": {"mean": 1359.0, "median": 1.0}}, "time_to_first_token_ms": {"successful": {"mean": 31.0}},
    "inter_token_latency_ms": {"successful": {"mean": 5.5}}, "time_per_output_token_ms": {"successful": {"mean": 5.6}},
    "prompt_token_count": {"successful": {"mean": 550.0}}, "output_token_count": {"successful": {"mean": 210.0}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "strategy", "clients"),
    [
        ("config", {"strategy": {"type_": "concurrent", "streams": 8}}, 8),
        ("scheduler", {"strategy": {"type_": "throughput", "max_concurrency": 512}}, 512),
        ("args", {"strategy": {"type_": "synchronous"}}, 1),
        ("config", {"strategy": {"type_": "poisson", "rate": 4.0, "max_concurrency": 512}}, None),
    ],
)
def test_guidellm_by_the_place_that_its_versions_have_the_strategy_in(tmp_path, place, strategy, clients):
    benchmark = {
        "type_": "generative_benchmark",
        place: strategy,
        "metrics": METRICS,
        "request_totals": {"successful": 64},
    }
    part = reading(tmp_path, {"metadata": {"version": 1}, "args": {"model": "org/T"}, "benchmarks": [benchmark]})
    (row,) = part.rows
    assert (row.target, row.concurrency, row.output_tok_s, row.ttft_s, row.tpot_s) == (
        "org/T",
        clients,
        1359.0,
        0.031,
        0.0055,
    )
    assert (row.input_len, row.output_len, row.num_requests, row.method) == (550.0, 210.0, 64, "none")


def test_spec_bench_answers(tmp_path):
    """Tokens over seconds, the bonus token counted; MT-bench's categories are one; AngelSlim's lengths leave the bonus token out."""
    answer = {
        "question_id": 1,
        "category": "writing",
        "answer_id": "a",
        "model_id": "vicuna-7b-v1.3-eagle-float16-temp-0.0",
        "tstamp": 1.0,
    }
    choice = {
        "index": 0,
        "turns": ["a", "b"],
        "decoding_steps": [2, 1],
        "new_tokens": [5, 3],
        "wall_time": [1.0, 3.0],
        "accept_lengths": [3, 2, 3],
    }
    other = answer | {"category": "math", "choices": [choice]}
    part = reading(tmp_path, "\n".join(json.dumps(each) for each in (answer | {"choices": [choice]}, other)), "a.jsonl")
    (row,) = part.rows
    assert fields(row) == {
        "target": "vicuna-7b-v1.3", "method": "eagle", "dtype": "float16", "temperature": 0.0, "dataset": "mt_bench", "batch_size": 1,
        "num_requests": 4, "output_len": 4.0, "output_tok_s": 2.0, "steps": 6, "tokens_per_step": 16 / 6,
    }  # fmt: skip
    slim = {key: value for key, value in choice.items() if key != "accept_lengths"} | {"accept_length": [2, 1, 2]}
    (row,) = reading(tmp_path, answer | {"model_id": "T-temperature-1.0", "choices": [slim]}, "b.jsonl").rows
    assert (row.target, row.temperature, row.tokens_per_step) == ("T", 1.0, pytest.approx(8 / 3))


PAGE = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="T"} 1000.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="T"} 2000.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="T"} 900.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="T",position="0"} 600.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="T",position="1"} 300.0
vllm:prompt_tokens_total{engine="0",model_name="T"} 5000.0
vllm:generation_tokens_total{engine="0",model_name="T"} 1900.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="T"} 6.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="T"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="T"} 10.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="T"} 0.5
vllm:time_to_first_token_seconds_count{engine="0",model_name="T"} 10.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0
vllm:num_requests_running{engine="0",model_name="T"} 3.0
"""


def test_a_metrics_page(tmp_path):
    part = reading(tmp_path, PAGE, "metrics.txt")
    assert [fields(row) for row in part.rows] == [
        {
            "target": "T", "method": "unstated", "engine": "vllm", "lookahead": 2, "steps": 1000, "drafted": 2000, "accepted": 900,
            "tokens_per_step": 1.9, "survival": (0.6, 0.3), "num_requests": 10, "input_len": 500.0, "output_len": 190.0, "ttft_s": 0.05,
            "kv_cache_tokens": 16000,
        }
    ]  # fmt: skip
    assert str(part).endswith("totals since the server's start (1); not used: vllm:num_requests_running")
    gauges = "\n".join(f'sglang:{name}{{model_name="T",tp_rank="{rank}"}} {value}' for rank in "01" for name, value in (
        ("spec_accept_length", 2.8), ("spec_num_steps", 3), ("spec_num_draft_tokens", 4), ("max_total_num_tokens", 500)))  # fmt: skip
    (row,) = reading(tmp_path, gauges, "m.prom").rows
    assert (row.engine, row.tokens_per_step, row.lookahead, row.tree_nodes) == ("sglang", 2.8, 3, 3)


# Dialects of tables

TABLE = "target,method,k,tau\nT,eagle3,1,1.8\nT,eagle3,2,2.4\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("T.CSV", TABLE.encode()),
        ("t.csv", TABLE.replace(",", ";").encode()),
        ("t.csv", TABLE.replace(",", ";").replace(".", ",").encode()),
        ("t.csv", ("sep=;\n" + TABLE.replace(",", ";")).encode()),
        ("t.tsv", TABLE.replace(",", "\t").encode()),
        ("t.csv", TABLE.encode("utf-8-sig")),
        ("t.csv", TABLE.encode("utf-16")),
        ("t.csv", TABLE.encode("utf-16-be")),
        ("t.csv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("t.csv", TABLE.replace("\n", "\r\n").encode()),
        ("t.csv", TABLE.replace("1.8", '"1,8"').encode()),
    ],
    ids=["CSV", "semicolons", "decimal commas", "sep=", "tabs", "mark", "UTF-16", "UTF-16 without mark", "gzip", "CR LF", "quoted comma"],
)  # fmt: skip
def test_one_table_in_many_dialects(tmp_path, name, data):
    rows = reading(tmp_path, data, name).rows
    assert [(row.lookahead, row.tokens_per_step) for row in rows] == [(1, 1.8), (2, 2.4)]
    assert [row.run for row in rows] == ["T:2", "T:3"] or all(row.run.startswith("t:") for row in rows)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"target,k,tau\nT,1,\xff\n", "not UTF-8 (invalid start byte at byte 17)"),
        (gzip.compress(TABLE.encode(), mtime=0)[:-9], "truncated or corrupt"),
        (
            b"target,k,tau\nT,1," + b"x" * 200_000,
            "column tau: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…' is not a number",
        ),
        (b'model,method,throughput\nT,none,"1,234"\n', "'1,234' may part thousands or decimals"),
        (b"target,k,tau\nT,1,1,81\n", "more cells than columns"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, data, words):
    assert words in refusal(tmp_path, data, "t.csv")


def test_a_cell_of_200_000_characters_is_read(tmp_path):
    (row,) = reading(tmp_path, f"target,k,tau,note\nT,1,1.5,{'n' * 200_000}\n", "t.csv").rows
    assert len(row.provenance.note or "") == 200_000


def test_tokens_s_of_a_table_of_tpot_alone(tmp_path):
    """8 clients at 10 ms a token are 800 tokens/s; with 100 ms before the first of 11 tokens, 8 × 11 in 0.2 s."""
    part = reading(tmp_path, "target,method,k,batch_size,tpot_ms\nT,none,0,8,10\n", "t.csv")
    assert part.rows[0].output_tok_s == pytest.approx(800)
    assert "tokens/s worked out from TPOT (1)" in str(part)
    (row,) = reading(tmp_path, "target,method,concurrency,osl,tpot_ms,ttft_ms\nT,none,8,11,10,100\n", "t.csv").rows
    assert row.output_tok_s == pytest.approx(440)


def test_a_row_without_a_figure_and_a_column_that_says_nothing_are_named(tmp_path):
    part = reading(tmp_path, "target,method,k,tau,colour\nT,eagle3,1,1.8,red\nT,eagle3,2,,blue\n", "t.csv")
    assert str(part) == "t.csv: 1 row read (table); 1 not used: no figure in it (3); not used: colour"


@pytest.mark.parametrize(
    ("draft", "method"), [("Qwen3-8B-DFlash-b16", "dflash"), ("my-eagle3-head", "eagle3"), ("tiny", "draft_model")]
)
def test_a_draft_model_whose_name_is_a_heads_is_that_head(tmp_path, draft, method):
    part = reading(tmp_path, f"target,method,draft,k,tau,dtype\nT,draft_model,{draft},1,1.8,BF16\n", "t.csv")
    assert (part.rows[0].method, part.rows[0].dtype) == (method, "bfloat16")
    assert (f"read as {method}" in str(part)) == (method != "draft_model")


# Our own rows, and what no reader knows

ROW = Observation(
    run="r",
    target="T",
    method="none",
    output_tok_s=1.0,
    dtype="bf16",
    provenance=Provenance(source="s", versions={"a": "1"}),
)


def test_our_own_rows_and_measurements(tmp_path):
    lines = msgspec.json.Encoder().encode_lines([ROW, ROW])
    part = reading(tmp_path, lines, "observations.jsonl")
    assert [row.dtype for row in part.rows] == ["bfloat16", "bfloat16"]
    assert part.rows[0].provenance is part.rows[1].provenance
    measured = [Measurement(observation=ROW, way="live"), Measurement(observation=ROW, way="live", category="qa")]
    part = reading(tmp_path, msgspec.json.Encoder().encode_lines(measured), "measurements.jsonl")
    assert (len(part.rows), list(part.unused.values())) == (1, [["2"]])
    broken = lines.replace(b'"none"', b"3", 2)
    assert "observations.jsonl:1" in refusal(tmp_path, broken, "observations.jsonl")


def test_json_of_no_known_tool_is_refused_with_its_keys_and_beside_known_ones_named(tmp_path):
    assert "no known tool (its keys: colour, size)" in refusal(tmp_path, {"colour": 1, "size": 2})
    part = reading(tmp_path, [VLLM, {"colour": 1}])
    assert (len(part.rows), part.unused) == (1, {"of no known tool": ["1"]})
    assert "f.json:2: not JSON" in refusal(tmp_path, json.dumps(VLLM) + "\n{broken")


def test_names_of_one_target_are_joined(tmp_path):
    rows = [msgspec.structs.replace(ROW, target=name) for name in ("smol", "org/SmolLM2", "other")]
    assert [row.target for row in joined(rows, ["smol", "org/SmolLM2"])] == ["smol", "smol", "other"]
    assert [row.target for row in joined(rows, ["smol"], "SmolLM2")] == ["SmolLM2", "org/SmolLM2", "other"]
    with pytest.raises(ValueError, match=r"target_name 'smoll': no row is of it; they name smol, org/SmolLM2, other"):
        joined(rows, ["smoll"])


def test_a_file_is_opened_by_its_bytes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(gzip.compress("ä".encode("utf-8-sig")))
    assert utf8_of(path) == "ä".encode()
