"""Signatures of webhooks: the published example, and a computation by the definition of HMAC."""

import base64
import hashlib
import re
import time
from pathlib import Path
from typing import Any

from service.store.signatures import new_secret, signed


def test_the_published_example_of_standard_webhooks_comes_out() -> None:
    secret, message_id = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert signed(secret, message_id, 1614265330, b'{"test": 2432232314}') == {
        "webhook-id": message_id,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_signature_is_the_hmac_of_id_time_and_body_under_the_secrets_bytes() -> None:
    secret = new_secret()
    key = base64.b64decode(secret.removeprefix("whsec_")).ljust(64, b"\0")
    text = "dlv_1.1700000000.{}é".encode()
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + text).digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()
    headers = signed(secret, "dlv_1", 1_700_000_000, "{}é".encode())
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(outer).decode()}"


def test_every_secret_is_another_and_has_32_bytes() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert {len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) for secret in made} == {32}


def test_the_readmes_lines_tell_ours_from_others() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = re.search(r"```python\n(import base64.*?)```", readme, re.DOTALL)
    assert code
    lines: dict[str, Any] = {}
    exec(code[1], lines)
    is_acmix = lines["is_acmix"]
    secret, now, body = new_secret(), int(time.time()), b'{"type":"job.succeeded"}'
    headers = signed(secret, "dlv_1", now, body)
    assert is_acmix(headers, body, secret)
    both = {**headers, "webhook-signature": f"v1,other {headers['webhook-signature']}"}
    assert is_acmix(both, body, secret), "a secret that changes signs twice"
    assert not is_acmix(headers, body + b" ", secret)
    assert not is_acmix(headers, body, new_secret())
    assert not is_acmix({**headers, "webhook-id": "dlv_2"}, body, secret)
    assert not is_acmix(signed(secret, "dlv_1", now - 1000, body), body, secret), "it is an old one"
