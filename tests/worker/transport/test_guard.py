"""What may be dialled: every URL and address of the list of bad input, and rebinding answers."""

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from providers.kit import WebUrl
from tests.worker.transport.conftest import (
    OK,
    OURS,
    Dialler,
    MakeTransport,
    Upstream,
    framed,
    post,
    resolving,
)
from worker.transport import BlockedUrl, TransportError, check_url, resolver
from worker.transport.guard import check_address, is_ours, parse
from worker.transport.resolver import Resolver

PUBLIC, OTHER = "93.184.215.14", "93.184.215.15"

BAD_URLS = [
    # 58, 59, 60: names and numbers of this machine
    "http://127.0.0.1",
    "https://127.0.0.1/",
    "https://localhost/",
    "https://localhost./",
    "https://LOCALHOST/",
    "https://a.localhost/",
    "https://0x7f.1/",
    "https://0x7f000001/",
    "https://2130706433/",
    "https://127.1/",
    "https://0177.0.0.1/",
    "https://127.0.0.1./",
    "https://8.8.8.08/",
    "https://8.8.8/",
    "https://a.0x/",
    "https://\u2460\u2461\u2466.0.0.1/",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://\uff11\uff12\uff17\uff0e\uff10\uff0e\uff10\uff0e\uff11/",
    "https://127\u30020\u30020\u30021/",
    "https://\u0661.1.1.1/",
    # 61, 62, 63: IPv6
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:8.8.8.8]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[fec0::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[2a00:1450::1%eth0]/",
    "https://[::1/",
    "https://[1:2]/",
    "https://::1/",
    "https://[v1.a]/",
    # 64, 65: metadata and reserved
    "https://169.254.169.254/latest/meta-data/",
    "https://[fd00:ec2::254]/",
    "https://168.63.129.16/",
    "https://metadata.google.internal/",
    "https://metadata/",
    "https://10.1.2.3/",
    "https://172.31.255.255/",
    "https://192.168.0.1/",
    "https://100.100.100.200/",
    "https://0.0.0.0/",
    "https://198.19.0.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    # 66, 67, 68: parts that deceive
    "https://user:pw@example.com/",
    "https://example.com@127.0.0.1/",
    "https://@example.com/",
    "http://127.0.0.1\\@evil.com/",
    "https://evil.com\\@127.0.0.1/",
    "https://evil.com/\\x",
    "https://example.com/#@127.0.0.1",
    "https://example.com#@127.0.0.1/",
    "https://exa\tmple.com/",
    "https://example.com/a\nb",
    "https://example.com/a\rb",
    "https://example.com/a b",
    " https://example.com/",
    "https://example.com/\x00",
    "https://example.com/\x7f",
    "https://example.com/\u00fc",
    "https://example.com/\u2028",
    # 69: ports
    "https://example.com:0/",
    "https://example.com:22/",
    "https://example.com:25/",
    "https://example.com:6379/",
    "https://example.com:65536/",
    "https://example.com:99999/",
    "https://example.com:80/",
    "https://example.com:/",
    "https://example.com:0443/",
    "https://example.com:+443/",
    "https://example.com:\u0664\u0664\u0663/",
    "https://example.com:443:443/",
    # 70, 71: schemes and nothing
    "file:///etc/passwd",
    "gopher://example.com/",
    "ftp://example.com/",
    "unix:/run/docker.sock",
    "data:text/plain,x",
    "javascript:alert(1)",
    "https:",
    "https:/",
    "https://",
    "https:///x",
    "https://?x",
    "https:example.com",
    "//x",
    "x",
    "",
    # 72, 73: names
    f"https://{'a' * 300}.com/",
    f"https://{'a.' * 130}com/",
    "https://example.com./",
    "https://example..com/",
    "https://.example.com/",
    "https://example.com../",
    "https://-a.example.com/",
    "https://a-.example.com/",
    "https://exa%6dple.com/",
    "https://exa!mple.com/",
    "https://xn--a.com/",
    "https://xn--.com/",
    "https://a\u200d.com/",
    # 78, 80
    "https://example.com/" + "a" * 8173,
    "http://example.com/",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_url_is_not_saved(url: str) -> None:
    with pytest.raises(BlockedUrl) as caught:
        check_url(url, allow_private=False)
    message = str(caught.value)
    assert message.isprintable()
    assert "pw" not in message
    assert len(message) < 400


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("url", [url for url in BAD_URLS if len(url) < 8000])
async def test_a_bad_url_is_never_dialled(make: MakeTransport, dialler: Dialler, url: str) -> None:
    async def asked(host: str) -> list[str]:
        pytest.fail(f"looked up {host}")

    transport = make(resolver=asked)
    with pytest.raises(TransportError) as caught:
        await transport.send(post(url), pool="int_1", timeout=5)
    assert (caught.value.reason, caught.value.fault) == ("blocked", "settings")
    assert dialler.dialled == []


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("https://example.com", "example.com", "/"),
        ("HTTPS://EXAMPLE.com:8443/A?b=c", "example.com", "/A?b=c"),
        ("https://example.com?@127.0.0.1", "example.com", "/?@127.0.0.1"),
        ("https://example.com/%0d%0aX:%201?a=%0D%0A", "example.com", "/%0d%0aX:%201?a=%0D%0A"),
        ("https://my_app.example.com/", "my_app.example.com", "/"),
        ("https://b\u00fccher.example/", "xn--bcher-kva.example", "/"),
        ("https://B\u00dcCHER.example/", "xn--bcher-kva.example", "/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", "/"),
        ("https://\u0430pple.example/", "xn--pple-43d.example", "/"),  # shown as what it is
        ("https://8.8.8.8/", "8.8.8.8", "/"),
        ("https://[2A00:1450:0:0::1]:443/", "2a00:1450::1", "/"),
        ("https://example.com/" + "a" * 8172, "example.com", "/" + "a" * 8172),
    ],
)
def test_a_good_url_is_read(url: str, host: str, target: str) -> None:
    check_url(url, allow_private=False)
    origin, found = parse(url, allow_private=False)
    assert (origin.host, found) == (host, target)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://example.com:443/", "example.com"),
        ("https://example.com:8443/", "example.com:8443"),
        ("https://[2a00:1450::1]:8443/", "[2a00:1450::1]:8443"),
        ("http://localhost:80/", "localhost"),
        ("http://sandbox:9000/", "sandbox:9000"),
        ("http://127.0.0.1:65535/", "127.0.0.1:65535"),
    ],
)
def test_the_host_header_names_an_unusual_port(url: str, authority: str) -> None:
    assert parse(url, allow_private=True)[0].authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "https://u@localhost/",
        "http://0x7f.1/",
        "http://2130706433/",
        "http://a\\b/",
        "ftp://localhost/",
        "http://[fe80::1%eth0]/",
        "http://localhost/#x",
    ],
)
def test_private_upstreams_do_not_make_the_reading_lax(url: str) -> None:
    with pytest.raises(BlockedUrl):
        check_url(url, allow_private=True)


# First, last and inner address of each network, and their public neighbours.
BAD_ADDRESSES = """
0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.0 127.0.0.1
127.255.255.255 168.63.129.16 169.254.0.0 169.254.169.254 169.254.255.255 172.16.0.0
172.31.255.255 192.0.0.0 192.0.0.192 192.0.0.255 192.0.2.0 192.0.2.255 192.88.99.0 192.88.99.255
192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.0 198.51.100.255 203.0.113.0
203.0.113.255 224.0.0.0 239.255.255.255 240.0.0.0 255.255.255.254 255.255.255.255
:: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1
64:ff9b:1::a00:1 100::1 1fff:ffff::1 2001::1 2001:10::1 2001:20::1 2001:1ff:ffff::1 2001:db8::1
2001:db8:ffff::1 2002:7f00:1:: 2002:808:808:: 3fff::1 3fff:fff:ffff::1 4000::1 5f00::1 fc00::1
fd00:ec2::254 fdff::1 fe80::1 fe80::1%eth0 2a00:1450::1%eth0 fec0::1 ff02::1 ff0e::1
localhost 127.1 0x7f.0.0.1 010.0.0.1 1.2.3 1.2.3.4.5 256.1.1.1 /run/socket
""".split()  # noqa: SIM905  words read better
GOOD_ADDRESSES = """
1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255
128.0.0.0 168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0
192.0.1.0 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255
198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255
2000::1 2001:200::1 2001:4860:4860::8888 2001:db7:ffff::1 2001:db9::1 2003::1 2600::1 2a00:1450::1
3ffe:ffff::1 3fff:1000::1
""".split()  # noqa: SIM905  idem


@pytest.mark.parametrize("address", [*BAD_ADDRESSES, ""])
def test_an_address_that_is_nobodys_own_is_refused(address: str) -> None:
    with pytest.raises(BlockedUrl):
        check_address(address)


@pytest.mark.parametrize("address", GOOD_ADDRESSES)
def test_a_public_address_passes(address: str) -> None:
    check_address(address)


def passes(address: str) -> bool:
    try:
        check_address(address)
    except BlockedUrl:
        return False
    return True


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_passes_that_is_known_to_be_special(address: IPv4Address) -> None:
    special = address.is_private or address.is_multicast or address.is_reserved
    assert not (passes(str(address)) and special)


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_passes_that_is_known_to_be_special(address: IPv6Address) -> None:
    odd = not address.is_global or address.ipv4_mapped or address.sixtofour or address.teredo
    assert not (passes(str(address)) and odd)


def test_this_machines_own_addresses_are_known(socket_enabled: None) -> None:
    assert is_ours("127.0.0.1")
    assert not is_ours(PUBLIC)


def taken(url: str) -> str | None:
    """Return the URL as settings keep it, None where they do not take it."""
    try:
        return TypeAdapter(WebUrl).validate_python(url)
    except ValidationError:
        return None


HOSTS = st.lists(
    st.sampled_from([*"aZ0x7.-_:[]%@", "xn--", "\u00fc", "\u3002", "\uff11", "\u2460", "\u200d"]),
    max_size=8,
)


@given(HOSTS, st.sampled_from(["", "/a?b=c", "/\u00fc?\u00fc", "/|", "//", "?"]))
def test_what_settings_take_can_be_dialled(host: list[str], rest: str) -> None:
    """Settings check what is typed, the guard what is sent: they must read a URL alike."""
    kept = taken(f"https://{''.join(host)}{rest}")
    if kept is not None:
        origin, _ = parse(kept, allow_private=True)
        assert kept.startswith((f"https://{origin.host}", f"https://[{origin.host}]"))


@pytest.mark.parametrize(
    "url", ["https://example.com./", "https://127.0.0.1./", "https://[v1.a]/", "https://a_b.com/"]
)
def test_what_can_be_read_in_two_ways_is_not_taken(url: str) -> None:
    assert taken(url) is None


# --- resolution --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [["10.0.0.1"], [PUBLIC, "127.0.0.1"], ["::1", PUBLIC], ["fe80::1%2"], ["nonsense"], [OURS]],
)
async def test_every_answer_must_pass(
    make: MakeTransport, dialler: Dialler, answer: list[str]
) -> None:
    transport = make(resolver=resolving(api_example_com=answer))
    with pytest.raises(TransportError) as caught:
        await transport.send(post("https://api.example.com/?token=s3cret"), pool="1", timeout=5)
    assert (caught.value.reason, caught.value.fault) == ("blocked", "settings")
    assert "s3cret" not in caught.value.message
    assert dialler.dialled == []


async def test_a_name_that_is_not_found_is_transient(make: MakeTransport, dialler: Dialler) -> None:
    async def failing(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    for look_up in (failing, resolving()):
        with pytest.raises(TransportError) as caught:
            await make(resolver=look_up).send(post("https://no.example/"), pool="1", timeout=5)
        assert (caught.value.reason, caught.value.fault) == ("dns", "upstream")
    assert dialler.dialled == []


async def test_a_name_server_that_hangs_ends_with_the_deadline(
    make: MakeTransport, dialler: Dialler
) -> None:
    async def hanging(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return ()

    with pytest.raises(TransportError) as caught:
        await make(resolver=hanging).send(post("https://a.example/"), pool="1", timeout=0.1)
    assert (caught.value.reason, caught.value.fault) == ("timeout", "upstream")


async def test_the_address_dialled_is_the_one_checked(
    make: MakeTransport, dialler: Dialler
) -> None:
    transport = make(resolver=resolving(api_example_com=[PUBLIC]))
    with pytest.raises(TransportError) as caught:
        await transport.send(post("https://api.example.com:8443/"), pool="1", timeout=5)
    assert caught.value.reason == "connect"
    assert dialler.dialled == [(PUBLIC, 8443)]


async def test_an_answer_that_changes_to_a_private_one_is_never_dialled(
    make: MakeTransport, dialler: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"], ["169.254.169.254"]])

    async def rebinding(host: str) -> Sequence[str]:
        return next(answers)

    transport = make(resolver=rebinding)
    url = "https://api.example.com/"
    for _ in range(3):  # within the minute: the answer that was checked
        with pytest.raises(TransportError):
            await transport.send(post(url), pool="1", timeout=5)
    assert dialler.dialled == [(PUBLIC, 443)] * 3
    monkeypatch.setattr(resolver, "FRESH_SECONDS", 0)
    for _ in range(2):
        with pytest.raises(TransportError) as caught:
            await transport.send(post(url), pool="1", timeout=5)
        assert caught.value.reason == "blocked"
    assert dialler.dialled == [(PUBLIC, 443)] * 3


async def test_a_redirect_to_a_private_address_is_an_answer(
    make: MakeTransport, upstream: Upstream
) -> None:
    upstream.answer = framed(
        "HTTP/1.1 302 Found\nLocation: http://169.254.169.254/\nContent-Length: 0"
    )
    transport = make(allow_private_upstreams=True)
    response = await transport.send(post(upstream.url()), pool="1", timeout=5)
    assert response.status == 302


async def test_private_upstreams_may_be_allowed(make: MakeTransport, upstream: Upstream) -> None:
    upstream.answer = OK
    look_up = resolving(intranet=["127.0.0.1"])
    transport = make(allow_private_upstreams=True, resolver=look_up)
    response = await transport.send(post(upstream.url("/", "intranet")), pool="1", timeout=5)
    assert response.status == 200


# --- the resolver ------------------------------------------------------------------------------


class Answers:
    """A look-up that counts; it answers when told to, unless `ready`."""

    def __init__(self, *, ready: bool = True) -> None:
        self.asked = 0
        self.ready = asyncio.Event()
        self.found: Sequence[str] | OSError = (PUBLIC, PUBLIC, OTHER)
        if ready:
            self.ready.set()

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked += 1
        await self.ready.wait()
        if isinstance(self.found, OSError):
            raise self.found
        return self.found


async def test_look_ups_at_one_time_are_one_and_its_answer_is_kept() -> None:
    answers = Answers(ready=False)
    names = Resolver(answers)
    asking = [asyncio.create_task(names.addresses("a.example")) for _ in range(5)]
    await asyncio.sleep(0)
    asking.pop().cancel()  # takes nothing from the others
    answers.ready.set()
    assert await asyncio.gather(*asking) == [(PUBLIC, OTHER)] * 4
    assert await names.addresses("a.example") == (PUBLIC, OTHER)
    assert answers.asked == 1
    names.close()


async def test_a_failure_is_not_kept() -> None:
    answers = Answers()
    names = Resolver(answers)
    answers.found = ()
    with pytest.raises(socket.gaierror):
        await names.addresses("a.example")
    answers.found = (OTHER,)
    assert await names.addresses("a.example") == (OTHER,)
    names.close()


async def test_the_last_answer_stands_in_for_a_failing_name_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = Answers()
    names = Resolver(answers)
    await names.addresses("a.example")
    monkeypatch.setattr(resolver, "FRESH_SECONDS", 0)
    answers.found = socket.gaierror(socket.EAI_AGAIN, "try again")
    assert await names.addresses("a.example") == (PUBLIC, OTHER)
    monkeypatch.setattr(resolver, "PATIENCE_SECONDS", 0.01)
    answers.ready.clear()
    assert await names.addresses("a.example") == (PUBLIC, OTHER)
    names.close()


async def test_the_memory_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MAX_NAMES", 2)
    answers = Answers()
    names = Resolver(answers)
    for name in ("a.example", "b.example", "c.example", "b.example", "a.example"):
        await names.addresses(name)
    assert answers.asked == 4
    names.close()


async def test_the_systems_names_are_used_by_default() -> None:
    names = Resolver()
    assert "127.0.0.1" in await names.addresses("localhost")
    with pytest.raises(OSError, match="not a name"):
        await names.addresses("a" * 64)
    names.close()
