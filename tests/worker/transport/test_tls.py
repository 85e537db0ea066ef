"""TLS: the name is verified, nothing is downgraded, and the address dialled is the checked one."""

import asyncio
import socket
import ssl
import warnings
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from tests.worker.transport.conftest import (
    Dialler,
    MakeTransport,
    StartUpstream,
    Upstream,
    post,
    resolving,
)
from worker.transport import Transport, TransportError, verifying_context

NAME = "api.example.com"
ADDRESS = "93.184.215.14"
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def transport(make: MakeTransport, authority: trustme.CA) -> Transport:
    """One that trusts the test's authority, and for which `NAME` and others have an address."""
    context = verifying_context()
    authority.configure_trust(context)
    look_up = resolving(
        api_example_com=[ADDRESS], other_example_com=[ADDRESS], two_example_com=["1.2.3.4", ADDRESS]
    )
    return make(resolver=look_up, ssl_context=context)


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def served(
    start_upstream: StartUpstream, dialler: Dialler, context: ssl.SSLContext | None
) -> Upstream:
    upstream = await start_upstream(context)
    dialler.port = upstream.port
    return upstream


async def refusal(transport: Transport, url: str = f"https://{NAME}/") -> TransportError:
    with pytest.raises(TransportError) as caught:
        await transport.send(post(url), pool="int_1", timeout=20)
    return caught.value


async def test_the_name_is_kept_for_tls_and_host(
    transport: Transport, start_upstream: StartUpstream, dialler: Dialler, authority: trustme.CA
) -> None:
    names: list[str | None] = []
    context = server_context(authority.issue_cert(NAME))
    context.sni_callback = lambda _, name, __: names.append(name)
    upstream = await served(start_upstream, dialler, context)
    for _ in range(2):
        response = await transport.send(post(f"https://{NAME}/x"), pool="int_1", timeout=20)
        assert response.body == b"ok"
    assert dialler.dialled == [(ADDRESS, 443)]
    assert names == [NAME]
    assert upstream.received[0].values("host") == [NAME]


async def test_names_that_share_an_address_share_no_connection(
    transport: Transport, start_upstream: StartUpstream, dialler: Dialler, authority: trustme.CA
) -> None:
    context = server_context(authority.issue_cert(NAME, "other.example.com"))
    upstream = await served(start_upstream, dialler, context)
    for name in (NAME, "other.example.com"):
        await transport.send(post(f"https://{name}/"), pool="int_1", timeout=20)
    assert upstream.opened == 2


async def test_an_address_is_verified_as_one(
    transport: Transport, start_upstream: StartUpstream, dialler: Dialler, authority: trustme.CA
) -> None:
    await served(start_upstream, dialler, server_context(authority.issue_cert(ADDRESS)))
    response = await transport.send(post(f"https://{ADDRESS}/"), pool="int_1", timeout=20)
    assert response.status == 200
    assert (await refusal(transport)).reason == "tls"


@pytest.mark.parametrize("fault", ["other name", "self-signed", "expired", "unknown authority"])
async def test_a_bad_certificate_is_refused(
    transport: Transport,
    start_upstream: StartUpstream,
    dialler: Dialler,
    authority: trustme.CA,
    fault: str,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    stranger = trustme.CA()
    match fault:
        case "other name":
            authority.issue_cert("other.example.com").configure_cert(context)
        case "expired":
            authority.issue_cert(NAME, not_after=YESTERDAY).configure_cert(context)
        case "unknown authority":
            stranger.issue_cert(NAME).configure_cert(context)
        case _:
            with stranger.cert_pem.tempfile() as cert, stranger.private_key_pem.tempfile() as key:
                context.load_cert_chain(cert, key)
    upstream = await served(start_upstream, dialler, context)
    error = await refusal(transport)
    assert (error.reason, error.fault) == ("tls", "settings")
    assert NAME in error.message
    assert upstream.received == []
    assert dialler.dialled == [(ADDRESS, 443)]  # no second try with less


def old_server(listening: socket.socket, context: ssl.SSLContext) -> str:
    """Shake hands with one client; return why that failed."""
    peer, _ = listening.accept()
    try:
        context.wrap_socket(peer, server_side=True).close()
    except OSError as error:
        return str(error)
    finally:
        peer.close()
    return ""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_tls_is_refused(
    transport: Transport, dialler: Dialler, authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    context = server_context(authority.issue_cert(NAME))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        dialler.port = listening.getsockname()[1]
        served = asyncio.create_task(asyncio.to_thread(old_server, listening, context))
        error = await refusal(transport)
        assert "unsupported protocol" in (await served).lower().replace("_", " ")
    assert (error.reason, error.fault) == ("tls", "settings")


async def test_a_server_without_tls_is_refused(
    transport: Transport, start_upstream: StartUpstream, dialler: Dialler
) -> None:
    upstream = await served(start_upstream, dialler, None)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    upstream.script = script
    error = await refusal(transport)
    assert (error.reason, error.fault) == ("tls", "settings")


async def test_a_hang_up_instead_of_a_handshake_is_transient(
    transport: Transport, start_upstream: StartUpstream, dialler: Dialler
) -> None:
    upstream = await served(start_upstream, dialler, None)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)

    upstream.script = script
    error = await refusal(transport)
    assert (error.reason, error.fault) == ("reset", "upstream")


async def test_a_handshake_that_hangs_ends_with_the_deadline(
    transport: Transport, start_upstream: StartUpstream, dialler: Dialler
) -> None:
    upstream = await served(start_upstream, dialler, None)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    upstream.script = script
    with pytest.raises(TransportError) as caught:
        await transport.send(post(f"https://{NAME}/"), pool="int_1", timeout=0.2)
    assert (caught.value.reason, caught.value.fault) == ("timeout", "upstream")
    await asyncio.wait_for(upstream.ended.wait(), 20)


def test_the_default_context_verifies() -> None:
    context = verifying_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
