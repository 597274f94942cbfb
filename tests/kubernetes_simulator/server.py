"""The listening socket: HTTPS on 127.0.0.1 with an authority of its own, and a port that can be closed for a while."""

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Server:
    """Serves every path with one handler. ``ca`` is the file clients trust."""

    def __init__(self, handle: Callable[[web.Request], Awaitable[web.StreamResponse]], folder: Path):
        """Write the certificate into ``folder``; nothing listens before ``start``."""
        self.ca, self.port = folder / "ca.crt", 0
        _write_certificate(self.ca, folder / "server.key")
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(self.ca, folder / "server.key")
        application = web.Application(client_max_size=8 * 2**20)
        application.router.add_route("*", "/{path:.*}", handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        self._reopening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen on a free port."""
        await self._runner.setup()
        await self._listen()
        self.port = self._runner.addresses[0][1]

    async def close_for(self, seconds: float) -> None:
        """Reset every connection and refuse new ones; the same port opens again by itself."""
        await self._site.stop()
        self._reset_connections()
        self._reopening = asyncio.create_task(self._reopen(seconds))

    async def stop(self) -> None:
        """End every connection, also those that stream."""
        if self._reopening:
            self._reopening.cancel()
        self._reset_connections()
        await self._runner.cleanup()
        await asyncio.sleep(0.05)  # the transports close in the next rounds of the loop

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True)
        await self._site.start()

    async def _reopen(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._listen()

    def _reset_connections(self) -> None:
        for connection in list(self._runner.server.connections) if self._runner.server else []:
            if connection.transport is not None:
                connection.transport.abort()


def _write_certificate(certificate: Path, key: Path) -> None:
    """One self-signed certificate is both authority and server."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes simulator")])
    today = datetime.datetime.now(datetime.UTC)
    hosts = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    signed = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(hours=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
