"""No secret is left in what is shown."""

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable

import pytest

from providers.kit import Request, basic
from worker.mask import Mask

SECRET = "sk+live/0123=456789"


@pytest.mark.parametrize(
    "text",
    [
        f"Invalid key {SECRET}!",
        "https://up.example/t?token=sk%2Blive%2F0123%3D456789&x=1",
        "a=1&key=sk%2Blive/0123%3D456789",
        json.dumps({"key": SECRET}),
    ],
)
def test_hides_a_secret_in_each_of_its_forms(text: str) -> None:
    shown = Mask([SECRET])(text)
    assert "***" in shown
    assert "456789" not in shown


@pytest.mark.parametrize("around", ["{}", "{}:", ":{}", "user:{}", "us:{}@", "{}é"])
@pytest.mark.parametrize("encode", [b64encode, urlsafe_b64encode])
def test_hides_a_secret_inside_base64(around: str, encode: Callable[[bytes], bytes]) -> None:
    coded = encode(around.format(SECRET).encode()).decode()
    shown = Mask([SECRET])(f"said {coded} twice: {coded}.")
    assert shown.count("***") == 2
    assert not any(coded[at : at + 8] in shown for at in range(4, len(coded) - 12))


def test_hides_the_lines_of_a_key_however_they_end() -> None:
    pem = f"-----BEGIN KEY-----\n{'Ab3+' * 16}\n{'Cd4/' * 16}\n-----END KEY-----"
    for said in (pem.replace("\n", " "), json.dumps(json.dumps(pem)), pem.replace("\n", "\r\n")):
        shown = Mask([pem])(said)
        assert "Ab3+" not in shown
        assert "Cd4/" not in shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("basic dXNlcjpwYXNz", "basic ***"),
        ("key whsec_MDEyMzQ1Njc4OWFi is bad", "key *** is bad"),
        ("test_sk_abcdefgh1234 and sk_abcdefgh1234", "*** and ***"),
        ("token ya29.a0AfH6SM-x_y expired", "token *** expired"),
        ("eyJhbGciOiJFUzI1.eyJpc3MiOiJ0.c2ln", "***"),
        ("a risk_assessment of basic facts", "a risk_assessment of basic facts"),
        ("Basic authentication required", "Basic authentication required"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_hides_what_looks_like_a_credential(said: str, shown: str) -> None:
    assert Mask([])(said) == shown


@pytest.mark.parametrize("left", range(6, len(SECRET)))
def test_hides_what_a_cut_has_left_of_a_secret(left: int) -> None:
    for said in (SECRET, json.dumps(SECRET)[1:-1], b64encode(SECRET.encode()).decode()):
        assert Mask([SECRET])(f"said {SECRET}, {said[:left]}") == "said ***, ***"


def test_a_secret_s_beginning_elsewhere_is_a_word() -> None:
    assert Mask(["https-key-01234567"])("https-key is bad") == "https-key is bad"


def test_the_longest_secret_goes_first() -> None:
    assert Mask(["abcdefgh", "abcdefghijkl", ""])("abcdefghijkl abcdefgh") == "*** ***"


def test_hides_a_secret_of_several_lines_inside_json() -> None:
    pem = "-----BEGIN KEY-----\nAbCdEf\n-----END KEY-----"
    assert Mask([pem])(json.dumps({"pem": pem})) == '{"pem": "***"}'


def test_a_short_secret_is_hidden_only_where_it_stands_alone() -> None:
    assert Mask(["abc"])("abc=abcdef, abc") == "***=abcdef, ***"


def test_keeps_the_host_of_a_url_that_is_a_secret() -> None:
    url = "https://hooks.slack.com/services/T0/B0/abcdefghijklmnopqrstuvwx"
    request = Request("POST", url, body=b"{}")
    assert Mask([url]).request(request).url == "https://hooks.slack.com/***"


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        (basic("key", SECRET), "Basic ***"),
        (f"Basic {SECRET}", "Basic ***"),
        (f"Bearer {SECRET}", "Bearer ***"),
        (basic("nobody"), basic("nobody")),
    ],
)
def test_hides_credentials_in_headers(header: str, shown: str) -> None:
    request = Request("POST", "https://up.example/", (("Authorization", header),))
    assert Mask([SECRET]).request(request).headers == (("Authorization", shown),)


def test_hides_what_was_signed_with_a_secret_in_a_token_request() -> None:
    request = Request.form(
        "https://auth.example/token", {"grant_type": "jwt", "assertion": "eyJh.eyJi.c2ln"}
    )
    assert Mask([SECRET]).request(request).body == b"grant_type=jwt&assertion=***"


def test_leaves_a_binary_body_and_everything_else_alone() -> None:
    request = Request("PUT", "https://up.example/o", (("X-A", "1"),), b"\x1f\x8b\x00\xff")
    assert Mask([SECRET]).request(request) == request
    assert Mask([]).request(request) == request
