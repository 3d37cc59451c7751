# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Fetch what AMD says about a report (certificates, revocation list), and keep it.

Zone: flows (owner's machine). The only door to HTTP (ADR-0015). Whoever answers is untrusted: nothing is returned or kept
before the report verifies with it, so a mirror, a proxy or a thief of the cache can withhold and delay, and that is all.

The service throttles: 429 and 503 are waited out as Retry-After asks, else twice as long each time, within one budget.
A certificate of a chip at a TCB never changes what it says, so it is kept for good; a revocation list until its next update.
"""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path

from cvmtool.config import write_atomic
from cvmtool.errors import ConfigError, CvmError, FormatError, HostError, VerificationError
from cvmtool.formats.report import parse_report
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.amdroots import Roots
from cvmtool.owner.crl import MAX_CRL_BYTES, parse_crl
from cvmtool.owner.kds import AMD_URL, Inquiry, inquire
from cvmtool.owner.verify import verify_report

MAX_ANSWER_BYTES = MAX_CRL_BYTES
TIMEOUT_SECONDS = 20.0
ATTEMPTS = 6
FIRST_WAIT_SECONDS = 2.0
MAX_WAIT_SECONDS = 60.0
BUDGET_SECONDS = 180.0
"""Of waiting, over all attempts at one path."""

_BUSY = (429, 503)
_TRANSIENT = (*_BUSY, 500, 502, 504)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The service answers itself; a redirection is a captive portal, or somebody who wants us elsewhere."""

    def redirect_request(self, *_args: object, **_named: object) -> None:
        """Follow nothing: the answer becomes an error with its code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """What a report was verified with. `certificates`: as they came, leaf first; `crl`: DER."""

    certificates: tuple[bytes, ...]
    crl: bytes | None
    fetched: tuple[str, ...]
    """Paths that were asked for; empty when everything was at hand."""


class KeyService:
    """AMD's key service or a mirror of it, by URL. `sleep` and `clock` are for tests; `clock` is Unix time in seconds."""

    def __init__(
        self,
        url: str = AMD_URL,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        timeout: float = TIMEOUT_SECONDS,
        attempts: int = ATTEMPTS,
    ) -> None:
        if not url.startswith(("https://", "http://")):
            raise ConfigError(f"the key service is {url!r}; required: an http or https address")
        self._url = url.rstrip("/")
        self._sleep = sleep
        self._clock = clock
        self._timeout = timeout
        self._attempts = attempts
        self._opener = urllib.request.build_opener(_NoRedirect)

    def get(self, path: str) -> bytes:
        """Return what the service has at `path`, at most 64 KiB (unverified).

        Raises:
            HostError: it has nothing there, answers nothing usable, or stays busy.
        """
        waited, pause, last = 0.0, FIRST_WAIT_SECONDS, "nothing"
        for attempt in range(self._attempts):
            try:
                return self._once(path)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _TRANSIENT:
                    raise self._refused(path, error.code) from None
                last = f"http status {error.code}"
                asked = self._retry_after(error.headers) if error.code in _BUSY else None
            except (OSError, http.client.HTTPException) as error:
                last, asked = _reason(error), None
            wait = max(pause, asked or 0.0)
            pause *= 2
            if attempt + 1 == self._attempts or wait > MAX_WAIT_SECONDS or waited + wait > BUDGET_SECONDS:
                break
            waited += wait
            self._sleep(wait)
        raise HostError(
            f"the key service gives {last} for {path}; required: an answer within {BUDGET_SECONDS:.0f} s of waiting",
            hint="try again later, use a mirror (--kds), or give the files (--vek, --chain, --crl)",
        )

    def _once(self, path: str) -> bytes:
        request = urllib.request.Request(self._url + path, headers={"User-Agent": "cvmtool"})  # noqa: S310 - checked above
        with self._opener.open(request, timeout=self._timeout) as answer:
            data = self._read(answer)
            declared = answer.headers.get("Content-Length")
        if len(data) > MAX_ANSWER_BYTES:
            raise HostError(f"the key service gives more than {MAX_ANSWER_BYTES} bytes for {path}; required: fewer")
        # A read with a bound does not notice an end that came too early.
        if declared is not None and declared != str(len(data)):
            raise http.client.IncompleteRead(data)
        return data

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        """Read up to one byte more than is allowed. The timeout is for each piece; the deadline, for a server that drips."""
        deadline = time.monotonic() + 3 * self._timeout
        data = bytearray()
        while len(data) <= MAX_ANSWER_BYTES and (piece := answer.read1(MAX_ANSWER_BYTES + 1 - len(data))):
            data += piece
            if time.monotonic() > deadline:
                raise TimeoutError
        return bytes(data)

    def _retry_after(self, headers: Message) -> float | None:
        """Return the seconds that Retry-After asks for, which may be a number or a date; None for anything else."""
        text = headers.get("Retry-After", "")
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - self._clock())
        except (ValueError, OverflowError):
            return None

    def _refused(self, path: str, code: int) -> HostError:
        hint = "does it know this chip and TCB? a wrong --line asks for another's" if code == 404 else None
        return HostError(f"the key service gives http status {code} for {path}; required: 200", hint=hint)


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return f"an answer that ends after {len(error.partial)} bytes"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(reason).__name__}"


class Store:
    """Collateral on disk below `folder`, by line, chip and TCB. Written atomically, verified at each use, trusted never."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> bytes | None:
        """Return what is kept under `name`, None if nothing (or nothing readable) is."""
        try:
            with (self._folder / name).open("rb") as file:
                data = file.read(MAX_ANSWER_BYTES + 1)
        except OSError:
            return None
        return data if len(data) <= MAX_ANSWER_BYTES else None

    def put(self, name: str, data: bytes) -> None:
        """Keep `data`. A disk that is full or read-only costs the next run a request, and this one nothing."""
        path = self._folder / name
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data, mode=0o644)


def collect(
    report: bytes,
    *,
    roots: Roots,
    at: datetime,
    store: Store,
    service: KeyService | None,
    given: tuple[bytes, ...] = (),
    crl: bytes | None = None,
    line: ProductLine | None = None,
) -> Collateral:
    """Return everything that `report` (1184 bytes) verifies with at the time `at`, from what is given, kept or fetched.

    `given` are certificates, `crl` a revocation list at hand: what is there is not asked for. `service` None: no network.

    Raises:
        HostError: something is missing and cannot be had.
        FormatError, VerificationError: the report does not verify with what came.
        ConfigError: the product line is unknown.
    """
    inquiry = inquire(parse_report(report), line)
    gatherer = _Gatherer(inquiry, simulated=roots.simulated, store=store, service=service, given=given, crl=crl, at=at)
    try:
        found = gatherer.gather(use_kept=True)
        verify_report(report, found.certificates, roots, at, found.crl)
    except (FormatError, VerificationError):
        # Something that was kept may have gone bad: once more, with fresh answers alone. If nothing was kept, it was they.
        if not gatherer.used_kept or service is None:
            raise
        found = gatherer.gather(use_kept=False)
        verify_report(report, found.certificates, roots, at, found.crl)
    gatherer.keep()
    return found


class _Gatherer:
    """Finds each part once; remembers what it fetched, to keep it after it has proven good."""

    def __init__(
        self,
        inquiry: Inquiry,
        *,
        simulated: bool,
        store: Store,
        service: KeyService | None,
        given: tuple[bytes, ...],
        crl: bytes | None,
        at: datetime,
    ) -> None:
        self._inquiry = inquiry
        # Another root's files never stand in for AMD's: they would only fail, but at each use anew.
        self._prefix = f"simulated/{inquiry.line}" if simulated else str(inquiry.line)
        self._store = store
        self._service = service
        self._given = given
        self._crl = crl
        self._at = at
        self._fetched: dict[str, tuple[str, bytes]] = {}
        self.used_kept = False

    def gather(self, *, use_kept: bool) -> Collateral:
        self._fetched.clear()
        inquiry = self._inquiry
        kind = inquiry.kind.name.lower()
        certificates = list(self._given)
        if not certificates and inquiry.vek_path is None:
            raise HostError("the certificate of a vlek is the provider's to give; required: --vek, or its container")
        # One certificate given is the leaf, as --vek or a host's table without its chain.
        if not certificates and inquiry.hwid is not None and inquiry.vek_path is not None:
            name = f"{inquiry.hwid.hex()}-{inquiry.tcb.encode().hex()}.der"
            certificates.append(self._part(name, inquiry.vek_path, use_kept=use_kept))
        if len(certificates) == 1:
            certificates.append(self._part(f"{kind}.pem", inquiry.chain_path, use_kept=use_kept))
        crl = self._crl or self._part(f"{kind}.crl", inquiry.crl_path, use_kept=use_kept, is_crl=True)
        return Collateral(
            certificates=tuple(certificates), crl=crl, fetched=tuple(path for path, _ in self._fetched.values())
        )

    def keep(self) -> None:
        for name, (_, data) in self._fetched.items():
            self._store.put(name, data)

    def _part(self, name: str, path: str, *, use_kept: bool, is_crl: bool = False) -> bytes:
        name = f"{self._prefix}/{name}"
        kept = self._store.get(name) if use_kept else None
        if kept is not None and not (is_crl and self._stale(kept)):
            self.used_kept = True
            return kept
        if self._service is None:
            raise HostError(
                f"{name} is not kept here, and nothing may be fetched; required: a run with the network, or the file",
                hint="leave out --offline, or give the files (--vek, --chain, --crl)",
            )
        data = self._service.get(path)
        self._fetched[name] = (path, data)
        return data

    def _stale(self, kept: bytes) -> bool:
        try:
            return parse_crl(kept).next_update < self._at
        except CvmError:
            return True
