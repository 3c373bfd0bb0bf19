"""The options of `foredraft measure` that no other verb has, a type each. Refuses to know: what they set."""

from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli.options import BATCH, TEMPERATURE, each, number_format, one_of, real, whole

Target = Annotated[
    str | None,
    typer.Argument(
        help="Folder of a Hugging Face checkpoint with its tokenizer, or a GGUF file; none with --endpoint."
    ),
]
Prompts = Annotated[
    Path,
    typer.Option(
        "--prompts", "-p", help="Spec-Bench or ShareGPT JSON, or a text file of a prompt a line; packed or not."
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder for observations.jsonl and measurements.jsonl.")]
Drafts = Annotated[
    list[str] | None,
    typer.Option(
        "--draft",
        "-d",
        help="ngram or a folder (dir+ngram: behind a look-up; dir~ or dir~FILE.json: lengths by confidence), with @k for its lookahead "
        "(dir@5) or a tree (dir@5,4,16: depth, top-k, nodes); repeat for more arms.",
    ),
]
Adaptive = Annotated[
    bool,
    typer.Option(
        "--adaptive",
        help="First measure what lengths by confidence rest on, of each chain (dir@7), into OUT/NAME-lengths.json: "
        "then dir~OUT/NAME-lengths.json is an arm.",
    ),
]
Num = Annotated[int | None, typer.Option(help="Prompts of each category at most.", callback=whole())]
MaxTokens = Annotated[int, typer.Option(help="Tokens per answer.", callback=whole())]
Batch = Annotated[str, typer.Option(help="Requests decoded together: a list such as 1,8.", callback=each(int, BATCH))]
Temperatures = Annotated[
    str,
    typer.Option(help="Of live decoding, 0 is greedy: a list such as 0,1.", callback=each(float, TEMPERATURE)),
]
Way = Annotated[
    str,
    typer.Option(
        help="live (the engine's steps), forced (one pass over answers), or both.",
        callback=one_of("live", "forced", "both"),
    ),
]
Chat = Annotated[
    str,
    typer.Option(
        help="The tokenizer's chat template: auto (as each prompt says), always or never.",
        callback=one_of("auto", "always", "never"),
    ),
]
Stop = Annotated[
    bool, typer.Option("--stop/--no-stop", help="Answers end at the end token, or run on to --max-tokens.")
]
Rounds = Annotated[int, typer.Option(help="Timed rounds; a warm-up comes before.", callback=whole())]
Width = Annotated[
    float,
    typer.Option(
        help="Wished width of the interval of tokens per step: says how many requests that takes.",
        callback=real(above=0),
    ),
]
RunName = Annotated[
    str | None,
    typer.Option(help="Name of the run, which a bootstrap over runs resamples; each draft's by default."),
]
DraftTokens = Annotated[
    float | None,
    typer.Option(
        help="Tokens that the drafts were trained on, where their folder does not say.",
        callback=real(above=0, most=1e18),
    ),
]
DraftParams = Annotated[
    float | None,
    typer.Option(help="Parameters of the drafts, instead of their own count.", callback=real(above=0, most=1e15)),
]
Family = Annotated[
    str | None,
    typer.Option(help="Name of the recipe that the drafts share with others; laws are fitted within a family."),
]
Kept = Annotated[
    Path | None,
    typer.Option(help="Folder in which what TARGET says of the prompts is kept for the next draft (teacher-forced)."),
]
Params = Annotated[
    str,
    typer.Option(
        help="Parameters to count: stored (all, as published rows do) or non_embedding.",
        callback=one_of("stored", "non_embedding"),
    ),
]
OnError = Annotated[
    str,
    typer.Option(
        help="Of a broken line, or a prompt too long: stop, or skip and count it.", callback=one_of("stop", "skip")
    ),
]
Types = Annotated[
    str | None,
    typer.Option(
        help="float32 (by default), bfloat16 or float16; of --endpoint: the server's weights, where it does not say.",
        callback=number_format,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(help="URL of a running vLLM or SGLang server to measure instead, such as http://localhost:8000."),
]
Clients = Annotated[
    str | None,
    typer.Option(
        "--concurrency",
        "-c",
        help="Of --endpoint: clients at once, a list such as 1,8.",
        callback=each(int, BATCH),
    ),
]
RequestRate = Annotated[
    str | None,
    typer.Option(
        help="Of --endpoint: requests per second, a list; their times are random.",
        callback=each(float, real(above=0)),
    ),
]
ModelName = Annotated[str | None, typer.Option(help="Of --endpoint: the model's name there; its first by default.")]
ServerEngine = Annotated[str, typer.Option(help="Of --endpoint: auto, vllm or sglang.")]
ServerMethod = Annotated[
    str | None,
    typer.Option(help="Of --endpoint: eagle, eagle3, draft_model, ngram, where the server does not say."),
]
PrefixCache = Annotated[
    str,
    typer.Option(
        help="Of --endpoint: cold (each load under a cache salt of its own) or warm.",
        callback=one_of("cold", "warm"),
    ),
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="FOREDRAFT_API_KEY", help="Of --endpoint: its key, if it asks for one.")
]
Timeout = Annotated[
    float,
    typer.Option(
        help="Of --endpoint: seconds without a word after which it is given up.", callback=real(above=0, most=1e6)
    ),
]
