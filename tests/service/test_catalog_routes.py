from acmix.catalog import Catalog
from tests.service.deployed import Deployed
from tests.service.menu import catalog


def test_the_catalog_is_what_the_worker_posted(api: Deployed) -> None:
    api.enrol()
    assert Catalog.model_validate(api.get("/v1/catalog")) == catalog()


def test_a_backbone_lists_its_slots_in_depth_order(api: Deployed) -> None:
    api.enrol()
    resnet26 = api.get("/v1/catalog")["backbones"][0]
    assert [slot["name"] for slot in resnet26["slots"]][:2] == ["layer1.0.conv2", "layer2.0.conv2"]
    assert resnet26["slots"][1] == {"name": "layer2.0.conv2", "kind": "conv2d", "channels": 128, "stride": 2}


def test_a_family_lists_its_variants_and_no_slots(api: Deployed) -> None:
    api.enrol()
    family = api.get("/v1/catalog")["backbones"][-1]
    assert (family["name"], family["slots"], family["variants"]) == ("zoo", None, ["lion", "lioness", "tiger_small"])


def test_an_option_is_described_by_its_json_schema(api: Deployed) -> None:
    api.enrol()
    (form,) = api.get("/v1/catalog")["mixers"][0]["forms"]
    assert form["options"]["properties"]["heads"]["default"] == 4


def test_before_any_worker_has_come_there_is_no_catalog(api: Deployed) -> None:
    response = api.http.get("/v1/catalog")
    assert response.status_code == 503
    assert "no worker has posted a catalog" in response.json()["detail"]
    assert int(response.headers["Retry-After"]) > 0
