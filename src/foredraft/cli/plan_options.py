"""The options of `foredraft plan` that no other verb has, a type each. Refuses to know: what they set."""

from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli.options import (
    DRAWS,
    TEMPERATURE,
    concurrencies,
    loads,
    number_format,
    one_of,
    real,
    task_word,
    whole,
)

Target = Annotated[
    str,
    typer.Argument(
        help="A public model (Llama-3.1-70B, Qwen3-30B-A3B-FP8, …), the folder of a Hugging Face config.json, or a Shape as JSON."
    ),
]
ShapeFile = Annotated[
    Path | None,
    typer.Option(
        "--shape",
        help="TARGET's sizes as JSON, where its config cannot be read; foredraft list models NAME --json prints one.",
    ),
]
DraftName = Annotated[
    str | None,
    typer.Option(
        "--draft",
        "-d",
        help="Weigh this draft alone: a public model or head by name or id, a folder, or a kind by its name in foredraft list kinds.",
    ),
]
Beside = Annotated[
    list[str] | None,
    typer.Option(
        "--beside",
        help="Weigh this draft that is trained already beside all others: as --draft names it; repeat for more.",
    ),
]
Accept = Annotated[
    str | None,
    typer.Option(
        help="Its acceptance, where it is known: 2.6@3 (tokens per step at a lookahead) or 0.8,0.6,0.4 (by position)."
    ),
]
VocabOverlap = Annotated[
    float | None,
    typer.Option(
        help="Share of its tokens that TARGET has, where their vocabularies differ.", callback=real(above=0, most=1)
    ),
]
DataParallel = Annotated[int, typer.Option(help="Replicas that the devices make.", callback=whole(1, 4096))]
ExpertParallel = Annotated[bool, typer.Option("--expert-parallel", help="Experts whole on all devices together.")]
KVDtype = Annotated[
    str | None, typer.Option(help="KV cache; the model's 16-bit type when left out.", callback=number_format)
]
Concurrency = Annotated[
    str | None,
    typer.Option(
        "--concurrency",
        "-c",
        help="Concurrent requests: a list 1,8,64 or a range 1-256 (powers of 2); 1-64 when left out.",
        callback=concurrencies,
    ),
]
Load = Annotated[
    str | None,
    typer.Option(
        "--load",
        help="In place of -c: concurrent requests with the share of the time at which so many are at once, 1:0.2,8:0.5,64:0.3.",
        callback=loads,
    ),
]
InputLen = Annotated[float, typer.Option(help="Mean prompt tokens.", callback=real(above=0))]
OutputLen = Annotated[float, typer.Option(help="Mean answer tokens.", callback=real(above=0))]
Temperature = Annotated[float, typer.Option(help="Sampling temperature of the load.", callback=TEMPERATURE)]
Task = Annotated[
    str | None,
    typer.Option(
        help="What the prompts are of: chat, code, math, rag, summarisation, translation, qa, …; a mix when left out.",
        callback=task_word,
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        help="throughput, latency (TPOT) or tokens_per_flop.",
        callback=one_of("throughput", "latency", "tokens_per_flop"),
    ),
]
Engine = Annotated[str, typer.Option(help="vllm, sglang and tensorrt-llm (chains), or foredraft (chains and trees).")]
MaxLookahead = Annotated[int, typer.Option(help="Longest chain to consider.", callback=whole(1, 16))]
ServedTokens = Annotated[
    float, typer.Option(help="Output tokens over which training is paid back.", callback=real(above=0, most=1e24))
]
MaxHours = Annotated[
    float,
    typer.Option(
        "--max-gpu-hours",
        help="Most device-hours that training may cost, the target's own answers included.",
        callback=real(above=0),
    ),
]
Answers = Annotated[
    bool,
    typer.Option(
        "--answers/--no-answers",
        help="A head's training costs TARGET's own answers to its prompts too; --no-answers where you have them.",
    ),
]
TrainMachine = Annotated[
    str | None,
    typer.Option(
        "--train-machine", help="What a draft is trained on, e.g. 8xH100, or a Machine record; --machine when left out."
    ),
]
DeviceHour = Annotated[
    float | None,
    typer.Option(
        "--device-hour",
        help="Price of an hour of one device, in any currency: money per million tokens.",
        callback=real(above=0, most=1e6),
    ),
]
TrainDeviceHour = Annotated[
    float | None,
    typer.Option(
        "--train-device-hour",
        help="The same of the training machine; as --device-hour when left out.",
        callback=real(above=0, most=1e6),
    ),
]
TTFT = Annotated[
    float | None,
    typer.Option(
        "--ttft", help="Most seconds to the first token, on average at each load.", callback=real(above=0, most=3600)
    ),
]
TPOT = Annotated[
    float | None,
    typer.Option("--tpot", help="Most seconds per further output token, on average.", callback=real(above=0, most=60)),
]
Rate = Annotated[
    float | None,
    typer.Option("--rate", help="Requests per second to be served in all.", callback=real(above=0, most=1e6)),
]
Kinds = Annotated[
    str, typer.Option(help="Kinds of draft to weigh, of head, lm (an independent model) and lookup (n-gram).")
]
Words = Annotated[
    Path | None,
    typer.Option(
        "--words",
        help="A token folder of data prepare, whose tokens say how many fall outside a draft's vocabulary; a law's share when left out.",
    ),
]
Always = Annotated[bool, typer.Option("--always", help="Plan the best draft even where none pays.")]
Draws = Annotated[
    int,
    typer.Option(help="Joint draws behind gains, intervals and choices; rounded up to a power of 2.", callback=DRAWS),
]
