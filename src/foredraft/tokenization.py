"""A folder's tokenizer and its chat template, which are others' files and others' programs.

Promises: whatever is wrong with them is one line; Python that a folder brings is never run, the network never asked. Refuses to know: what is
done with ids and texts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foredraft import records
from foredraft.shapes.folder import check_tokenizer

TOKENIZER = "tokenizer.json"
JSON_FILES = (
    TOKENIZER, "tokenizer_config.json", "config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
)  # fmt: skip
SHOWN = 200  # characters of another program's message


def of_folder(path: str | Path) -> Any:
    """The tokenizer in a folder, which need have no end token.

    Raises ValueError, one line, whatever is wrong with its files.
    """
    check_tokenizer(Path(path))
    for name in JSON_FILES:
        if (file := Path(path) / name).is_file() and not isinstance(records.read_json(file), dict):
            raise ValueError(f"{file}: expected a JSON object; copy the tokenizer again")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        tokenizer("x")
        return tokenizer
    except MemoryError:
        raise
    except Exception as error:  # whatever transformers and tokenizers meet in files that are not theirs
        if "custom code" in str(error):
            message = f"{path}: no tokenizer (it is Python of its own, named by auto_map, which is never run here)"
            raise records.with_hint(
                ValueError(message), f"save it as {TOKENIZER}, or give a folder that has one"
            ) from None
        reason = _reason(error)
        if "Field '" in reason or reason == _config_fault(path):  # transformers reads the model's config beside it
            raise ValueError(f"{Path(path) / 'config.json'}: {reason.removeprefix('ValueError: ')[:SHOWN]}") from None
        message = f"{path}: no tokenizer ({reason[:SHOWN]}); copy {TOKENIZER} beside config.json"
        raise records.with_hint(ValueError(message), "save the tokenizer into the model's folder") from None


def _reason(error: Exception) -> str:
    """The last line of what another program says."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _config_fault(path: str | Path) -> str | None:
    """What transformers finds wrong with a folder's config.json; None where it is as it should be."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        return _reason(error)
    return None


@contextmanager
def template_errors() -> Iterator[None]:
    """Raise ValueError, one line, for what a chat template raises, which is a program of others: of any kind; and where it runs on and on,
    or fills the memory (see `template_limits`).
    """
    from transformers.utils import chat_template_utils

    from foredraft.template_limits import BoundedEnvironment, limited

    # where transformers takes its sandbox from
    chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment  # pyright: ignore[reportPrivateImportUsage]
    try:
        with limited():
            yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the chat template fails: {reason}") from None
