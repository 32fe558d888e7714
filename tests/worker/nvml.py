"""A stand-in for NVML, since tests have no GPU: its calls over cards that are plain data, or functions for some."""

from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """Not supported, unless `value` says otherwise."""

    def __init__(self, value: int = 3) -> None:
        super().__init__(value)
        self.value = value


class Nvml:
    """What a card has no word of is not supported; one that is `lost` answers nothing else."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_RESET_REQUIRED = 16

    def __init__(self, *cards: dict[str, Any]) -> None:
        self.cards = cards

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  # its names are NVML's
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        return self._there(self.cards[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:  # noqa: N802
        for device in (each for card in self.cards for each in (card, *card.get("parts", ()))):
            if device["nvmlDeviceGetUUID"] == uuid:
                return self._there(device)
        raise NVMLError(self.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: dict[str, Any], index: int) -> dict[str, Any]:  # noqa: N802
        if index >= len(card["parts"]):
            raise NVMLError
        return dict(card["parts"][index])

    def _there(self, card: dict[str, Any]) -> dict[str, Any]:
        if card.get("lost"):
            raise NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        return card

    def __getattr__(self, name: str) -> Any:
        def ask(card: dict[str, Any], *_: Any) -> Any:
            if name not in card:
                raise NVMLError
            found = card[name]
            return found() if callable(found) else found

        return ask


def card(number: int, **more: Any) -> dict[str, Any]:
    return {
        "nvmlDeviceGetUUID": f"GPU-{number}",
        "nvmlDeviceGetName": b"NVIDIA H200",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2**30, total=2**37),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75, memory=20),
        "nvmlDeviceGetPowerUsage": 350_500,
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetComputeRunningProcesses": [],
        **more,
    }


def divided(number: int, *parts: str, **more: Any) -> dict[str, Any]:
    """A card in MIG mode, with instances of these UUIDs."""
    memory = SimpleNamespace(used=5, total=2**34)
    name = b"NVIDIA H200 MIG 1g.18gb"
    made = [{"nvmlDeviceGetUUID": uuid, "nvmlDeviceGetName": name, "nvmlDeviceGetMemoryInfo": memory} for uuid in parts]
    return card(number, nvmlDeviceGetMaxMigDeviceCount=7, parts=made, **more)


def holds(card: dict[str, Any], *pids: int) -> None:
    """These processes hold memory of it from now on."""
    card["nvmlDeviceGetComputeRunningProcesses"] = [SimpleNamespace(pid=pid) for pid in pids]
