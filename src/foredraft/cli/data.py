"""The verbs of `foredraft data`: a tokenizer, token folders, what is in them, and the target's own answers.

Refuses to know: how anything is computed; every verb imports its room when it runs, so that `--help` stays instant.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foredraft.cli import measure_options as of_measure
from foredraft.cli.console import check_models, print_json, progress_bar, refuse
from foredraft.cli.options import (
    BATCH,
    CONTEXT,
    JSON,
    LOOKAHEAD,
    SHARE,
    TEMPERATURE,
    Device,
    Dtype,
    Seed,
    one_of,
    real,
    whole,
)

if TYPE_CHECKING:
    from foredraft.data.samples import DocumentSample
    from foredraft.data.tokens import TokenData

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Token data for training: train a tokenizer, prepare token folders, show what is masked, let a target answer prompts.",
)

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="JSONL, JSON, Parquet or text files (plain, .gz, .zst), folders of them, or hf:NAME[@CONFIG][:SPLIT[:COLUMN]]."
    ),
]
OnError = Annotated[
    str, typer.Option(help="Of a broken line: stop, or skip and count it.", callback=one_of("stop", "skip"))
]


@app.command()
def tokenizer(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    vocab: Annotated[
        int, typer.Option(help="Ids at most, end and padding tokens included.", callback=whole(1, 10**7))
    ] = 8192,
    documents: Annotated[int | None, typer.Option(help="Learn from the first so many.", callback=whole())] = None,
    on_error: OnError = "stop",
) -> None:
    """Train a byte-level BPE on INPUTS, with an end token and a plain chat template; it loads with AutoTokenizer."""
    from itertools import islice

    from foredraft.data.sources import Skips, origins, read
    from foredraft.data.tokenizer import train

    skips = Skips(on_error)
    rows = (document for origin in origins(inputs) for document in read(origin, "chat", skips))
    texts = (text for document in islice(rows, documents) for text in document.texts())
    num_ids = train(islice(texts, documents), vocab, out)
    _print_skips(skips.count, skips.named)
    print(
        f"wrote {out}: {num_ids:,} ids"
        + (f", since the texts hold no more than that of {vocab:,}" if num_ids < vocab else ""),
        file=sys.stderr,
    )


@app.command()
def prepare(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Token folder to make.")],
    tokenizer: Annotated[
        str,
        typer.Option("--tokenizer", "-t", help="The target's folder or GGUF file, or another folder with a tokenizer."),
    ],
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Conversations, in the tokenizer's chat template; only answers are predicted."),
    ] = False,
    template: Annotated[Path | None, typer.Option(help="A chat template (jinja) instead of the tokenizer's.")] = None,
    documents: Annotated[int | None, typer.Option(help="Take the first so many.", callback=whole())] = None,
    val_share: Annotated[
        float,
        typer.Option(
            help="Share of documents held out, by contents; makes OUT/train and OUT/val.",
            callback=real(least=0, most=0.999),
        ),
    ] = 0.0,
    on_error: OnError = "stop",
    licence: Annotated[str | None, typer.Option(help="Of the inputs, to be noted beside them.")] = None,
    json: JSON = False,
) -> None:
    """Turn INPUTS into a token folder: memory-mapped ids, document boundaries, loss mask, counts."""
    import time

    from foredraft.data.prepare import prepare as prepare_folders
    from foredraft.data.sources import origins
    from foredraft.records import read_text

    total, start = sum(origin.bytes or 0 for origin in origins(inputs)), time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task("tokenising", total=total or None)
        prepared = prepare_folders(
            inputs, out, tokenizer, chat=chat, template=read_text(template) if template else None, documents=documents,
            val_share=val_share, on_error=on_error, licence=licence,
            progress=lambda done, tokens: bar.update(task, completed=done, description=f"tokenising, {tokens:,} tokens"),
        )  # fmt: skip
    seconds = time.perf_counter() - start
    _print_skips(prepared.skipped, prepared.named)
    _print_warnings(prepared.warnings)
    print(f"wrote {out}: {prepared.characters / 1e6:.1f} million characters in {seconds:.1f} s", file=sys.stderr)
    if json:
        print_json({name or "data": data for name, data in prepared.folders.items()})
        return
    for name, data in prepared.folders.items():
        _print_counts(out / name, data)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A token folder.")],
    num: Annotated[int, typer.Option(help="Documents to show.", callback=whole())] = 3,
    tokens: Annotated[int, typer.Option(help="Tokens of each at most.", callback=whole())] = 200,
    seed: Seed = 0,
    json: JSON = False,
) -> None:
    """Print documents as training will see them, and the counts. What is not to be predicted is dim, or in ⟦brackets⟧."""
    from foredraft.data.samples import samples
    from foredraft.data.tokenizer import load
    from foredraft.data.tokens import TokenFolder

    opened = TokenFolder.open(folder)
    documents = samples(opened, load(folder), num, tokens, seed)
    if json:
        print_json({"data": opened.data, "samples": documents})
        return
    for document in documents:
        _print_document(document)
    _print_counts(folder, opened.data)


@app.command()
def regenerate(
    ctx: typer.Context,
    inputs: Inputs,
    target: Annotated[Path, typer.Option(help="Folder of the target, with its tokenizer, or a GGUF file; with --endpoint the tokenizer is enough.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL to write or to go on with.")],
    plain: Annotated[bool, typer.Option("--plain", help="Go on from each text as it stands, without a chat template.")] = False,
    prompt_tokens: Annotated[int | None, typer.Option(help="With --plain: of each text take the first so many tokens.", callback=whole())] = None,
    turns: Annotated[int | None, typer.Option(help="Answer so many turns of a conversation at most.", callback=whole())] = None,
    num: Annotated[int | None, typer.Option(help="Take the first so many prompts.", callback=whole())] = None,
    draft: Annotated[str | None, typer.Option("--draft", "-d", help="ngram, the folder of a draft, or DIR+ngram: the same answers, sooner.")] = None,
    lookahead: Annotated[int, typer.Option("--lookahead", "-k", help="Draft tokens per step.", callback=LOOKAHEAD)] = 4,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", callback=whole())] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", callback=TEMPERATURE)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Smallest set of this mass.", callback=SHARE)] = 1.0,
    top_k: Annotated[int, typer.Option(help="Most probable tokens only; 0 for all.", callback=whole(0))] = 0,
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(help="Prompts decoded together.", callback=BATCH)] = 8,
    context: Annotated[int | None, typer.Option(help="Most tokens per prompt and answer; the model's own by default.", callback=CONTEXT)] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    on_error: OnError = "stop",
    endpoint: Annotated[str | None, typer.Option(help="URL of a running server of the OpenAI API to ask, --batch at once.")] = None,
    model: of_measure.ModelName = None,
    api_key: of_measure.ApiKey = None,
    timeout: of_measure.Timeout = 600,
    json: JSON = False,
) -> None:  # fmt: skip
    """Let a target answer prompts, into JSONL for `prepare --chat`. Interrupted, the same command goes on."""
    if endpoint is None:
        refuse(ctx, ("model", "api_key", "timeout"), "used with --endpoint alone; leave out, or name the server's URL")
        check_models(target, [draft] if draft else [])
    else:
        refuse(
            ctx,
            ("draft", "lookahead", "dtype", "device"),
            "not used with --endpoint, whose server decodes by settings of its own; leave out",
        )
    from foredraft.data import regenerate as room
    from foredraft.data.remarks import Remarks
    from foredraft.data.sources import Skips

    settings = room.RegenerateSettings(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, batch=batch, plain=plain, turns=turns,
        prompt_tokens=prompt_tokens, lookahead=lookahead, context=context, dtype=dtype, device=device,
    )  # fmt: skip
    skips, remarks = Skips(on_error), Remarks()
    prompts = room.prompts(inputs, plain, skips, num, remarks)
    with progress_bar() as bar:
        task = bar.add_task("loading")
        beside: dict[str, Any] = {
            "skips": skips, "remarks": remarks,
            "progress": lambda work, part, total: bar.update(task, description=work, completed=part, total=total),
        }  # fmt: skip
        if endpoint is None:
            done = room.regenerate(prompts, target, out, settings, draft=draft, **beside)
        else:
            from foredraft.measure.server_answers import regenerate_served
            from foredraft.serving.endpoint_http import address_of

            done = regenerate_served(
                prompts, address_of(endpoint, api_key, timeout), target, out, settings, model=model, **beside
            )
    _print_skips(skips.count, skips.named)
    _print_warnings(remarks.lines())
    print(f"wrote {done.written:,} answered prompts to {out}, {done.existing:,} were there", file=sys.stderr)
    if done.steps:
        from foredraft.text import summary

        print(summary(done.steps), file=sys.stderr)
    if json:
        print_json(
            {
                "out": str(out),
                "written": done.written,
                "found": done.existing,
                "tokens": done.tokens,
                "skipped": skips.count,
            }
        )


def _print_skips(count: int, named: list[str]) -> None:
    if count:
        more = f"; and {count - len(named)} more" if count > len(named) else ""
        print(f"skipped {count} broken: {'; '.join(named)}{more}", file=sys.stderr)


def _print_warnings(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _print_counts(folder: Path, data: "TokenData") -> None:
    print(f"{folder}: {data.num_tokens:,} tokens in {data.num_documents:,} documents")
    print(
        f"  raw {data.raw_tokens:,} · regenerated {data.regenerated_tokens:,} · to be predicted {data.predicted_tokens:,}",
        end=" ",
    )
    print(f"({data.predicted_tokens / data.num_tokens:.1%})")
    print(
        f"  vocabulary {data.vocab_size:,} ({data.dtype}) · end token {data.eos_id} · tokenizer {data.tokenizer_sha256[:12]}"
    )
    for source in data.sources:
        skipped = f", {source.skipped:,} broken rows skipped" if source.skipped else ""
        licence = f", {source.licence}" if source.licence else ""
        print(f"  {source.name}: {source.documents:,} documents{skipped}{licence}")


def _print_document(sample: "DocumentSample") -> None:
    from rich.console import Console
    from rich.text import Text

    from foredraft.records import visible

    console = Console(highlight=False, soft_wrap=True)
    last = sample.first + sum(piece.num_tokens for piece in sample.pieces)
    title = f"document {sample.document}: tokens {sample.first}…{last} of {sample.num_tokens:,}, {sample.predicted_tokens:,} to be predicted"
    console.print(Text(title, style="bold"))
    for piece in sample.pieces:
        text = visible(piece.text)
        if piece.predicted:
            console.print(Text(text), end="")
        else:
            console.print(Text(text, style="dim") if console.is_terminal else Text(f"⟦{text}⟧"), end="")
    console.print("\n")


__all__ = ["app"]
