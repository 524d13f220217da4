"""An authority and what it signed, as files: for what speaks TLS in a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """A server's certificate for this machine, a client's, and the authority of both."""

    authority: Path
    server_certificate: Path
    server_key: Path
    client_certificate: Path
    client_key: Path

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        authority = trustme.CA()
        made = cls(*(folder / f"{name}.pem" for name in ("ca", "server", "server-key", "client", "client-key")))
        server, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("executor")
        authority.cert_pem.write_to_path(made.authority)
        server.cert_chain_pems[0].write_to_path(made.server_certificate)
        server.private_key_pem.write_to_path(made.server_key)
        client.cert_chain_pems[0].write_to_path(made.client_certificate)
        client.private_key_pem.write_to_path(made.client_key)
        return made
