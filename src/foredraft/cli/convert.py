"""The verb `foredraft convert`. Refuses to know: how anything is read or written; it imports its room when it runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli.console import print_json, progress_bar
from foredraft.cli.options import JSON, one_of


def convert(
    source: Annotated[
        Path, typer.Argument(help="A GGUF file, or a folder with pytorch_model.bin (a model or a draft head).")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16; left out, bfloat16 of a GGUF file, as stored of a pickle.",
            callback=one_of("float32", "bfloat16", "float16"),
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A folder whose tokenizer takes the place of the source's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the model's folder that is there.")] = False,
    json: JSON = False,
) -> None:
    """Write SOURCE as a Hugging Face folder: safetensors, config.json, tokenizer, chat template, generation settings."""
    from foredraft.shapes import check_folder
    from foredraft.shapes.gguf import is_gguf

    if is_gguf(source):
        check_folder(source)
    from foredraft.models.convert import convert as run

    with progress_bar() as bar:
        task = bar.add_task("reading")
        conversion = run(
            source, out, dtype=dtype, tokenizer=tokenizer, force=force,
            progress=lambda work, part, total: bar.update(task, description=work, completed=part, total=total),
        )  # fmt: skip
    sizes = f"{conversion.num_values / 1e6:,.1f} M values in {conversion.num_tensors} tensors"
    print(f"{out}: {sizes}, {conversion.dtype or 'as stored'}", file=sys.stderr)
    if json:
        print_json({"out": str(out), "conversion": conversion})
        return
    print(_next_command(out))


def _next_command(out: Path) -> str:
    """What to do with the folder: let a model answer, judge a draft head."""
    from foredraft import kinds
    from foredraft.shapes import read_config, tensor_names, unfolded

    kind = kinds.of_checkpoint(unfolded(read_config(out)), tensor_names(out))
    if kind.parts is not None:
        return f'foredraft generate TARGET/ "Once upon a time" --draft {out} --stats'
    chat = " --chat" if any((out / name).is_file() for name in ("chat_template.jinja", "chat_template.json")) else ""
    return f'foredraft generate {out} "Why is the sky blue?"{chat} --draft ngram --stats'
