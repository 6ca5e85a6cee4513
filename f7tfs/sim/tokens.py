"""The token endpoint and the JWTs it signs (v1 FACTS §1 Auth)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from f7tfs.sim.replies import refuse, reply

TOKEN_PATH = "/auth/realms/sim/protocol/openid-connect/token"
SCOPE = "firecrest profile email"


class Expired(ValueError):
    """A good token that is too old."""


@dataclass(frozen=True)
class Client:
    client_id: str
    client_secret: str
    user: str


def _pack(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Tokens:
    """Issues and checks HS256 tokens. Lives as long as the process: the key is random."""

    def __init__(self, clients: list[Client], lifetime: float) -> None:
        self._key = secrets.token_bytes(32)
        self._clients = {client.client_id: client for client in clients}
        self._lifetime = lifetime

    def mint(self, user: str, lifetime: float, scope: str = SCOPE) -> str:
        claims: dict[str, Any] = {
            "preferred_username": user,
            "iat": int(time.time()),
            "exp": time.time() + lifetime,
            "scope": scope,
            "jti": secrets.token_hex(8),
        }
        head = _pack(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        signed = f"{head}.{_pack(json.dumps(claims).encode())}"
        return f"{signed}.{self._sign(signed)}"

    def _sign(self, text: str) -> str:
        return _pack(hmac.digest(self._key, text.encode(), hashlib.sha256))

    def user_of(self, request: Request) -> str:
        """The user of a request's bearer token, or the 401 that the services answer."""
        header = request.headers.get("authorization")
        if header is None:
            raise refuse("No Auth Header given", status=401)
        try:
            scheme, token = header.split(" ")
            if scheme != "Bearer":
                raise ValueError(scheme)
            signed, _, signature = token.rpartition(".")
            _, payload = signed.split(".")
            claims = json.loads(_unpack(payload))
            scopes = claims["scope"].split(" ")
            user, expiry = str(claims["preferred_username"]), float(claims["exp"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise refuse("Bad header or JWT, general exception raised", status=401) from None
        if not hmac.compare_digest(signature.encode(), self._sign(signed).encode()):
            raise refuse("JWT token has invalid signature", status=401)
        if expiry < time.time():
            raise refuse("JWT token has expired", status=401)
        if "firecrest" not in scopes:
            raise refuse("Scope 'firecrest' wasn't found in JWT", status=401)
        return user

    def verified(self, token: str) -> tuple[str, float]:
        """User and expiry of a token, its scope aside. Expired, ValueError."""
        try:
            signed, _, signature = token.rpartition(".")
            _, payload = signed.split(".")
            claims = json.loads(_unpack(payload))
            user, expiry = str(claims["preferred_username"]), float(claims["exp"])
        except (KeyError, TypeError, AttributeError) as mistake:
            raise ValueError(token) from mistake
        if not hmac.compare_digest(signature.encode(), self._sign(signed).encode()):
            raise ValueError(token)
        if expiry < time.time():
            raise Expired
        return user, expiry

    async def endpoint(self, request: Request) -> Response:
        async with request.form() as form:
            fields = {key: str(value) for key, value in form.items()}
        if fields.get("grant_type") != "client_credentials":
            return reply(
                {"error": "unsupported_grant_type", "error_description": "Unsupported grant_type"},
                400,
            )
        client = self._clients.get(fields.get("client_id", ""))
        offered = fields.get("client_secret", "").encode()
        if client is None or not hmac.compare_digest(client.client_secret.encode(), offered):
            return reply(
                {
                    "error": "unauthorized_client",
                    "error_description": "Invalid client secret",
                },
                401,
            )
        return reply(
            {
                "access_token": self.mint(client.user, self._lifetime),
                "expires_in": int(self._lifetime),
                "refresh_expires_in": 0,
                "token_type": "Bearer",
                "not-before-policy": 0,
                "scope": SCOPE,
            }
        )
