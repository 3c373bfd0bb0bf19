"""What lies in a folder that holds no model: the true cause, in a line, with the command that mends it.

Promises: only names and first bytes are looked at. Refuses to know: what is in a config.
"""

import re
from pathlib import Path

from foredraft.records import is_lfs, lfs_pointer, no_file, other_than_file, read_json, with_hint

WEIGHTS = SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_READ = (".json", ".safetensors", ".jinja", ".model", ".txt", ".bin")  # endings of what is read in a model's folder
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def no_config(file: Path) -> ValueError:
    """Why there is no config.json at `file`."""
    folder = file.parent
    if file.name != "config.json":
        return ValueError(f"{file}: no such file; give a config.json, or a folder that holds one")
    if not folder.exists():
        return no_folder(str(folder), folder)
    if problem := no_files(folder):
        return problem
    if snapshot := _snapshot(folder):
        return with_hint(
            ValueError(f"{folder}: a model of the Hub's cache, whose files lie deeper"), f"give {snapshot}"
        )
    if (folder / ADAPTER).is_file():
        return adapter(folder)
    if files := sorted(folder.glob("*.gguf")):
        return with_hint(
            ValueError(f"{folder}: holds GGUF files and no config.json; give the file"), f"give {files[0]}"
        )
    if (folder / "params.json").is_file() and any(folder.glob("consolidated*")):
        return with_hint(
            ValueError(
                f"{folder}: weights in the maker's own format (params.json, consolidated files), which is not read here"
            ),
            "download the model's files in the format of Hugging Face: config.json and model*.safetensors",
        )
    if inner := sorted(path.parent for path in folder.glob("*/config.json")):
        names = ", ".join(path.name for path in inner[:4]) + (", …" if len(inner) > 4 else "")
        return with_hint(ValueError(f"{file}: no such file; models lie in its folders {names}"), f"give {inner[0]}")
    return ValueError(f"{file}: no such file; give a folder that holds config.json and {SINGLE}")


def no_files(folder: Path) -> ValueError | None:
    """For a folder in which something else has the name of a file that is read: a pipe, at which a reader waits, a link to what was removed."""
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ and (what := other_than_file(path)):
            return no_file(path, what)
    return None


def _snapshot(folder: Path) -> Path | None:
    """The snapshot of a model's folder in the Hub's cache: the one that `main` names, else the last by name."""
    main = folder / "refs" / "main"
    name = main.read_text(errors="replace").strip() if main.is_file() else ""
    if re.fullmatch(r"[0-9a-f]{4,64}", name) and (folder / "snapshots" / name / "config.json").is_file():
        return folder / "snapshots" / name
    found = sorted(folder.glob("snapshots/*/config.json"))
    return found[-1].parent if found else None


def adapter(folder: Path) -> ValueError:
    """For a folder that holds a LoRA adapter."""
    try:
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    error = ValueError(
        f"{folder}: an adapter (LoRA) of {base or 'another model'}, which is no model of its own; merge it into that"
    )
    code = f"from peft import AutoPeftModelForCausalLM as M; M.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained('MERGED')"
    return with_hint(error, f'python -c "{code}", then copy the tokenizer to MERGED and give it')


def no_folder(name: str, path: Path) -> ValueError:
    """Why `name`, at `path`, is no folder: it is a file, a model's name on the Hub, or not there."""
    if path.is_file():
        return ValueError(f"{name}: is a file; give the folder that holds config.json and {SINGLE}")
    error = ValueError(f"{name}: no such folder; give one that holds config.json and {SINGLE}")
    return with_hint(error, download(name)) if is_hub_id(name) else error


def is_hub_id(name: str) -> bool:
    """Whether a name can be a model's on the Hub: OWNER/NAME."""
    return bool(_HUB_NAME.fullmatch(name))


def download(name: str, *files: str) -> str:
    """The command that fetches a model of the Hub, or some of its files, and what to give then."""
    local = name.rsplit("/", 1)[-1]
    chosen = f" --include {' '.join(map(repr, files))}" if files else ""
    return f"hf download {name}{chosen} --local-dir {local}, then give {local}"


def missing_weights(folder: Path) -> ValueError | None:
    """Why a folder's weights cannot be read: there are none, only pickles, shards without their index, files that were not downloaded; None
    where they are there.
    """
    if not folder.is_dir():
        return no_folder(str(folder), folder)
    if problem := no_files(folder):
        return problem
    shards = {path: match for path in sorted(folder.glob("*.safetensors")) if (match := _SHARD.fullmatch(path.name))}
    if any((folder / name).is_file() for name in WEIGHTS):
        files = [folder / SINGLE] if (folder / SINGLE).is_file() else [folder / INDEX, *shards]
        return next(filter(None, map(_not_downloaded, files)), None)
    if (folder / ADAPTER).is_file():
        return adapter(folder)
    if shards:
        return _without_index(folder, shards)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        why = "pickled weights are never loaded here, they can run code; convert them to safetensors"
        error = ValueError(f"{folder / pickles[0]}: {why}: foredraft convert {folder} OUT/")
        return with_hint(error, f"foredraft convert {folder} OUT/")
    return ValueError(f"{folder}: holds neither {SINGLE} nor {INDEX}")


def _not_downloaded(file: Path) -> ValueError | None:
    return lfs_pointer(file) if is_lfs(file) else None


def _without_index(folder: Path, shards: dict[Path, re.Match[str]]) -> ValueError:
    first, match = next(iter(shards.items()))
    if problem := next(filter(None, map(_not_downloaded, shards)), None):
        return problem
    of = int(match[3])
    what = (
        f"holds {len(shards)} of {of} shards ({first.name}, …)"
        if len(shards) != of
        else f"holds {of} shards ({first.name}, …)"
    )
    error = ValueError(f"{folder}: {what} without their index, {INDEX}, which says what is in which")
    return with_hint(error, f"hf download OWNER/NAME --local-dir {folder} fetches what is missing")
