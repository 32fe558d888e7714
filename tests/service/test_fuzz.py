"""Every route of the OpenAPI document, called with whatever it allows and with what it does not: none fails.

And what is answered is as documented. Calls of one route lead to another's, as a client's would.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import run_state_machine_as_test
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)

from tests.service.deployed import PLAN, Deployed
from tests.service.menu import catalog

CHECKS = [not_a_server_error, response_schema_conformance, content_type_conformance, response_headers_conformance]
QUIET = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
)
WITHOUT_INPUT = {"GET /healthz", "GET /readyz", "GET /metrics", "GET /v1/catalog", "GET /v1/usage", "GET /v1/workers"}
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def schema(api: Deployed) -> BaseSchema:
    """With a worker, whose menu has no models that only a plan could look into."""
    menu = catalog()
    api.enrol(menu.model_copy(update={"backbones": [each for each in menu.backbones if each.name != "zoo"]}))
    found: BaseSchema = schemathesis.openapi.from_asgi("/openapi.json", api.app)
    return found


@pytest.mark.parametrize("mode", GenerationMode)
def test_no_route_fails_whatever_it_is_called_with(api: Deployed, schema: BaseSchema, mode: GenerationMode) -> None:
    called: set[str] = set()
    with api.housekeeper(lambda _: {"plan": PLAN}):
        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()
            if mode == GenerationMode.NEGATIVE and operation.label in WITHOUT_INPUT:
                continue

            @settings(QUIET, max_examples=12)
            @given(case=operation.as_strategy(generation_mode=mode))
            def call(case: Any) -> None:
                called.add(case.operation.label)  # called at once
                case.call_and_validate(checks=CHECKS)

            call()
    assert len(called) >= (46 if mode == GenerationMode.POSITIVE else 40)


def test_no_sequence_of_calls_makes_one_fail(api: Deployed, schema: BaseSchema) -> None:
    class Calls(schema.as_state_machine()):  # type: ignore[misc]  # made of the document
        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            case.validate_response(response, checks=CHECKS)

    with api.housekeeper(lambda _: {"plan": PLAN}):
        run_state_machine_as_test(Calls, settings=settings(QUIET, max_examples=10, stateful_step_count=12))
