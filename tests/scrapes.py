"""What Prometheus is told, taken apart."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.store.vitals import REGISTRY


class Scrape:
    """One answer in Prometheus' text format."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in families for sample in family.samples]
        self.names = {sample.name for sample in self.samples}

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of what has these labels; 0 where nothing has."""
        wanted = labels.items()
        return sum(each.value for each in self.samples if each.name == name and wanted <= each.labels.items())


def of(registry: CollectorRegistry) -> Scrape:
    """What this process would tell now."""
    return Scrape(generate_latest(registry).decode())


class Counted:
    """How much each figure of this process has risen since this was made."""

    def __init__(self) -> None:
        self._before = of(REGISTRY)

    def __call__(self, name: str, **labels: str) -> float:
        return of(REGISTRY)(name, **labels) - self._before(name, **labels)
