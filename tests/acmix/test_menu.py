"""What the library tells of the accelerators of its machine; stand-ins for what CUDA says, since tests have no GPU."""

from types import SimpleNamespace

import pytest
import torch

from acmix import menu
from acmix.catalog import Device


def test_a_device_is_told_with_the_uuid_by_which_cuda_finds_it_where_that_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an instance of a divided card torch tells the whole card's."""
    cards = [
        SimpleNamespace(name="NVIDIA H200", total_memory=2**37, uuid="1b"),
        SimpleNamespace(name="NVIDIA H200 MIG 1g.18gb", total_memory=2**34, uuid="2c"),
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert menu.devices() == [
        Device(index=0, name="NVIDIA H200", memory_bytes=2**37, uuid="GPU-1b"),
        Device(index=1, name="NVIDIA H200 MIG 1g.18gb", memory_bytes=2**34, uuid=None),
    ]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert [device.uuid for device in menu.devices()] == [None, None], "on other makers' cards it means something else"
