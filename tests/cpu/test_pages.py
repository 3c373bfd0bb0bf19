"""Memory for weights and caches: zeros, each tensor's own, from a line of its own on."""

import pytest
import torch

from foredraft.models import pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_lie_apart_each_from_a_line_on(dtype: torch.dtype) -> None:
    shapes = [(3, 5), (1,), (2, 2, 33)]
    tensors = pages.zeros(shapes, dtype, "cpu")
    assert [(tuple(each.shape), each.dtype) for each in tensors] == [(shape, dtype) for shape in shapes]
    assert all(each.data_ptr() % pages.LINE == 0 for each in tensors)
    for number, each in enumerate(tensors):
        assert not each.any()
        each.fill_(number + 1)
    assert [each.float().mean().item() for each in tensors] == [1, 2, 3]


def test_without_huge_pages_they_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("mmap.MADV_HUGEPAGE", raising=False)
    (tensor,) = pages.zeros([(4, 4)], torch.float32, "cpu")
    assert tensor.untyped_storage().nbytes() == 64
