"""What every test against the real vLLM needs, made once."""

from collections.abc import Iterator
from pathlib import Path

import ours
import pytest
import tiny_zoo
import vllm_here

from foredraft.models.decoder import Decoder
from foredraft.models.load import load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without vLLM skip what stands here, by a mark of each, so that a line tells of a whole file."""
    for item in items:
        if vllm_here.PYTHON is None and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=vllm_here.REASON))


@pytest.fixture(scope="session", autouse=True)
def zoo() -> Path:
    """The target, its drafts and prompts."""
    return tiny_zoo.make(ours.ZOO)


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vllm_here.Offline]:
    worker = vllm_here.Offline(tmp_path_factory.mktemp("offline"))
    yield worker
    worker.end()


@pytest.fixture(scope="session")
def target() -> Decoder:
    return load(ours.TARGET)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    return ours.prompt_ids()


@pytest.fixture(scope="session")
def own_answers(target: Decoder, prompts: list[list[int]]) -> list[list[int]]:
    """The target's greedy answers by our engine."""
    return ours.answers(target, prompts)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployed")
