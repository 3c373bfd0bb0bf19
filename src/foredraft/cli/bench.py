"""The verb `foredraft bench`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import measure_options as of_measure
from foredraft.cli.console import check_models, print_blocks, print_json, progress_bar, prompts_of, set_threads
from foredraft.cli.options import BATCH, JSON, TEMPERATURE, Device, Dtype, Threads, whole


def bench(
    target: Annotated[
        str, typer.Argument(help="Folder of a Hugging Face checkpoint with its tokenizer, or a GGUF file.")
    ],
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft",
            "-d",
            help="ngram or a folder (dir+ngram: behind a look-up), with @k for its lookahead (dir@5) or a head's tree (dir@5,4,16); repeat for more.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", help="Prompts: a line each, or rows of JSON (Spec-Bench with all turns, chats) or Parquet."
        ),
    ] = None,
    num: Annotated[int, typer.Option(help="Prompts to take.", callback=whole())] = 16,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer.", callback=whole())] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", callback=TEMPERATURE)] = 0.0,
    batch: Annotated[int, typer.Option(help="Requests decoded together.", callback=BATCH)] = 1,
    chat: of_measure.Chat = "auto",
    rounds: Annotated[int, typer.Option(help="Counted rounds; a warm-up comes before.", callback=whole())] = 3,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write bench.json there.")] = None,
    json: JSON = False,
) -> None:
    """Time plain decoding and every draft on the same prompts, in turn, in one run."""
    check_models(target, draft or ())
    from foredraft import records
    from foredraft.data.conversation import asked, question_of
    from foredraft.data.sources import Skips
    from foredraft.measure.bench import bench as run
    from foredraft.measure.settings import MeasureSettings

    set_threads(threads)
    settings = MeasureSettings(
        max_tokens=max_tokens,
        temperatures=(temperature,),
        batches=(batch,),
        rounds=rounds,
        chat=chat,
        dtype=dtype,
        device=device,
    )
    prompts = asked(file, Skips("stop")) if file else [question_of(prompts_of(None, None))]
    with records.reserved(out) if out else nullcontext(), progress_bar() as bar:
        task = bar.add_task("decoding", total=None)
        result = run(
            target, draft or ["ngram"], prompts[:num], settings, lambda total: bar.update(task, advance=1, total=total)
        )
    report = {"conditions": result.conditions, "arms": result.rows}
    if out:
        records.write(out / "bench.json", report)
    if json:
        print_json(report)
        return
    from foredraft.report.terminal import bench_tables

    print_blocks(bench_tables(result.rows, result.conditions))
