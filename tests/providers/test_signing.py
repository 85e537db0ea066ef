"""Signatures, against the standard library's."""

import base64
import hmac

from hypothesis import given
from hypothesis import strategies as st

from providers.kit.signing import standard_webhook


@given(st.binary(min_size=1, max_size=200), st.binary(max_size=300))
def test_a_webhook_is_signed_with_hmac_sha256(key: bytes, body: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    digest = hmac.digest(key, b"evt_1.1700000000." + body, "sha256")
    expected = "v1," + base64.b64encode(digest).decode()
    assert standard_webhook("evt_1", 1_700_000_000, body, secret) == expected
