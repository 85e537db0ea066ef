"""Names and certificates: of upstreams, and of the store."""

import ssl
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from tests.faults.proxy import Proxy
from tests.faults.scene import PROJECT, WINDOW, Make
from tests.stack import eventually
from worker.sandbox.upstreams import webhooks

pytestmark = pytest.mark.processes
STRICT = {"ONWARD_CREDENTIAL_THRESHOLD": "2", "ONWARD_RETRY_THRESHOLD": "1000"}
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
LOOK_UPS = """
import socket, time
from pathlib import Path
real, asked = socket.getaddrinfo, {asked!r}
def look_up(host, *rest, **more):
    if not str(host).endswith(".example.com"):
        return real(host, *rest, **more)
    with open(asked, "a") as log:
        log.write(f"{{host}}\\n")
    if host.startswith("hangs"):
        time.sleep(3600)
    if host.startswith("private") or (
        host.startswith("turns") and Path(asked).read_text().count("turns") > 1
    ):
        return real("127.0.0.1", *rest, **more)
    raise socket.gaierror(socket.EAI_NONAME, "no such name")
socket.getaddrinfo = look_up
"""


def context_of(certificate: trustme.LeafCert, newest: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = newest
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def speak(link: Proxy, context: ssl.SSLContext) -> None:
    """Speak TLS so from now on."""
    link.tls = context
    link.close()
    link.reset()
    link.open()


@pytest.mark.slow
@pytest.mark.row(35, "TLS: expired, another's name, unknown authority, only TLS 1.1")
def test_bad_certificates(scene: Make, tmp_path: Path) -> None:
    authority, newest = trustme.CA(), ssl.TLSVersion.TLSv1_3
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    good = authority.issue_cert("localhost")
    faults = {
        "certificate has expired": authority.issue_cert("localhost", not_after=YESTERDAY),
        "not valid for 'localhost'": authority.issue_cert("other.example"),
        "unable to get local issuer": trustme.CA().issue_cert("localhost"),
    }
    private = {"ONWARD_ALLOW_PRIVATE_UPSTREAMS": "1", "ONWARD_UPSTREAM": ""}
    with scene({**STRICT, **private}) as s, Proxy(s.sandbox_port) as link:
        url = f"https://localhost:{link.port}/a.customer.example/onward"
        hook = s.integration("webhooks", url=url)
        s.receivers[hook] = ("webhooks", "a.customer.example", PROJECT)
        s.worker(SSL_CERT_FILE=str(tmp_path / "ca.pem"))
        for said, certificate in faults.items():
            speak(link, context_of(certificate, newest))
            s.send(20)
            eventually(lambda: s.state(hook).active == 2, 60, f"suspended: {said}")
            assert said in (s.state(hook).last_error_message or "")
            assert s.arrived() == len(s.sent[PROJECT]) - 20, "nothing by a lesser way"
            speak(link, context_of(good, newest))
            s.activate(hook)
            eventually(lambda: s.arrived() == len(s.sent[PROJECT]), 60, f"all after: {said}")
        speak(link, context_of(good, ssl.TLSVersion.TLSv1_1))  # this server hangs up wordlessly
        s.send(20)
        eventually(lambda: s.state(hook).delivery_error_count >= 3, 60, "tried again")
        assert s.arrived() == len(s.sent[PROJECT]) - 20
        speak(link, context_of(good, newest))
        s.check(ordered=True, flips=len(faults))


@pytest.mark.slow
@pytest.mark.row(34, "name not found, name server hangs, answer turns private")
def test_names(scene: Make, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    asked.touch()
    (tmp_path / "sitecustomize.py").write_text(LOOK_UPS.format(asked=str(asked)))
    with scene({**STRICT, "ONWARD_ATTEMPT_TIMEOUT": "2"}) as s:
        hooks = []
        for name in ("gone", "hangs", "turns", "private"):
            host = f"{name}.example.com"
            hooks.append(s.integration("webhooks", url=f"https://{host}/onward"))
            s.receivers[hooks[-1]] = ("webhooks", host, PROJECT)
        gone, hangs, turns, private = hooks
        worker = s.worker(PYTHONPATH=f"{tmp_path}:{Path.cwd()}", ONWARD_UPSTREAM="")
        s.send(50)
        eventually(lambda: s.state(private).active == 2, 60, "private: suspended at once")
        eventually(lambda: s.state(turns).active == 2, 60, "private later: suspended then")
        for hook in (gone, hangs):
            eventually(lambda: s.state(hook).delivery_error_count >= 3, 60, "tried again")  # noqa: B023
            assert s.state(hook).active == 1
        assert "not a public address" in (s.state(turns).last_error_message or "")
        assert "was not found" in (s.state(gone).last_error_message or "")
        assert "in time" in (s.state(hangs).last_error_message or "")
        assert s.arrived() == 0
        s.stop(worker, seconds=30)
        s.worker()
        for hook in (private, turns):
            s.activate(hook)
        s.check(ordered=True, flips=2)


@pytest.mark.slow
@pytest.mark.row("T", "TLS to the store: verified, and over a broken link")
def test_tls_to_the_store(scene: Make, tmp_path: Path) -> None:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    good = context_of(authority.issue_cert("localhost"), ssl.TLSVersion.TLSv1_3)
    bad = context_of(trustme.CA().issue_cert("localhost"), ssl.TLSVersion.TLSv1_3)
    with scene() as s, Proxy(s.redis_port) as link:
        s.hook("a")
        speak(link, bad)
        worker = s.begin(ONWARD_REDIS_URL=f"rediss://localhost:{link.port}/0?ssl_ca_certs={ca}")
        eventually(lambda: "certificate verify failed" in s.log(worker.name), 60, "refused")
        eventually(lambda: not worker.running, 60, "it does not go on without")
        speak(link, good)
        s.start(worker)
        with s.load():
            s.moving(100)
            link.reset()
            s.moving(100)
        s.check(duplicates=WINDOW)
        assert webhooks.TOKEN not in s.log(worker.name)
