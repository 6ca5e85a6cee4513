"""AWS Signature Version 4 for presigned links and form posts, as a real S3 checks them."""

from __future__ import annotations

import base64
import calendar
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from f7tfs.sim.options import plain_number

ALGORITHM = "AWS4-HMAC-SHA256"
REGION = "eu-central-1"
_STAMP = "%Y%m%dT%H%M%SZ"


class Denied(Exception):
    """403 with this S3 error code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Signer:
    def __init__(self, expiry: float) -> None:
        self._access = "STAGING_KEY"
        self._secret = secrets.token_hex(20)
        self._expiry = expiry

    def _key(self, day: str) -> bytes:
        key = f"AWS4{self._secret}".encode()
        for part in (day, REGION, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), hashlib.sha256)
        return key

    def _scope(self, day: str) -> str:
        return f"{day}/{REGION}/s3/aws4_request"

    def _sign(self, day: str, text: str) -> str:
        return hmac.new(self._key(day), text.encode(), hashlib.sha256).hexdigest()

    # -- links

    def link(
        self,
        base: str,
        host: str,
        path: str,
        method: str = "GET",
        extra: Mapping[str, str] | None = None,
    ) -> str:
        """A link for one method; `path` is percent-encoded already."""
        stamp = time.strftime(_STAMP, time.gmtime())
        query = {
            **(extra or {}),
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{self._access}/{self._scope(stamp[:8])}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": plain_number(self._expiry),
            "X-Amz-SignedHeaders": "host",
        }
        signature = self._link_signature(method, host, path, query)
        return f"{base}{path}?{urlencode(query)}&X-Amz-Signature={signature}"

    def _link_signature(self, method: str, host: str, path: str, query: Mapping[str, str]) -> str:
        ordered = urlencode(sorted(query.items()), quote_via=quote, safe="-_.~")
        request = f"{method}\n{path}\n{ordered}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(request.encode()).hexdigest()
        stamp = query["X-Amz-Date"]
        text = f"{ALGORITHM}\n{stamp}\n{self._scope(stamp[:8])}\n{digest}"
        return self._sign(stamp[:8], text)

    def check_link(self, method: str, host: str, path: str, raw_query: str) -> None:
        query = dict(parse_qsl(raw_query, keep_blank_values=True))
        try:
            offered = query.pop("X-Amz-Signature")
            begin = calendar.timegm(time.strptime(query["X-Amz-Date"], _STAMP))
            end = begin + float(query["X-Amz-Expires"])
        except (KeyError, ValueError):
            raise Denied("AccessDenied", "Access Denied") from None
        # a link is signed for one method: HEAD on a GET link fails on a real S3 (FACTS §7)
        if not hmac.compare_digest(offered, self._link_signature(method, host, path, query)):
            raise Denied(
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
            )
        if time.time() > end:
            raise Denied("AccessDenied", "Request has expired")

    # -- forms

    def form(self, bucket: str, key: str) -> dict[str, str]:
        """The fields of a form post, in the order in which they are to be sent."""
        now = time.time()
        stamp = time.strftime(_STAMP, time.gmtime(now))
        fields = {
            "key": key,
            "x-amz-algorithm": ALGORITHM,
            "x-amz-credential": f"{self._access}/{self._scope(stamp[:8])}",
            "x-amz-date": stamp,
        }
        policy = {
            "expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + self._expiry)),
            "conditions": [{"bucket": bucket}, *({k: v} for k, v in fields.items())],
        }
        fields["policy"] = base64.b64encode(json.dumps(policy).encode()).decode()
        fields["x-amz-signature"] = self._sign(stamp[:8], fields["policy"])
        return fields

    def check_form(self, bucket: str, fields: Mapping[str, str]) -> None:
        try:
            policy_text = fields["policy"]
            day = fields["x-amz-credential"].split("/")[1]
            expected = self._sign(day, policy_text)
            if not hmac.compare_digest(fields["x-amz-signature"], expected):
                raise Denied("SignatureDoesNotMatch", "The request signature does not match.")
            policy: dict[str, Any] = json.loads(base64.b64decode(policy_text))
            end = calendar.timegm(time.strptime(policy["expiration"], "%Y-%m-%dT%H:%M:%SZ"))
        except (KeyError, ValueError, IndexError):
            raise Denied("AccessDenied", "Access Denied") from None
        if time.time() > end:
            raise Denied("AccessDenied", "Invalid according to Policy: Policy expired.")
        conditions = {k: v for one in policy["conditions"] for k, v in one.items()}
        sent = {"bucket": bucket, **fields}
        for name, value in conditions.items():
            if sent.get(name) != value:
                raise Denied(
                    "AccessDenied",
                    f'Invalid according to Policy: Policy Condition failed: ["eq", "${name}", '
                    f'"{value}"]',
                )
        extra = set(sent) - set(conditions) - {"policy", "x-amz-signature"}
        if extra:
            raise Denied(
                "AccessDenied",
                f"Invalid according to Policy: Extra input fields: {', '.join(sorted(extra))}",
            )
