"""Turns the SpamAssassin corpus into what a mail server would hand over: a JSONL file a day, labels apart.

Decides the day of an e-mail (by the receiving server's clock), what of it is handed over, and that nothing
is repaired or dropped: duplicates, broken MIME and a missing Message-Id go on as they are. It does not know
the pipeline that reads the files.
"""

import csv
import email
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path

from batch_platform.errors import SourceError

# The folder of the corpus says what people judged an e-mail to be.
LABELS = {"easy-ham-1": "ham", "easy-ham-2": "ham", "hard-ham-1": "ham", "spam-1": "spam", "spam-2": "spam"}


@dataclass(frozen=True)
class Email:
    """One e-mail as it arrives, without its label.

    Attributes:
        message_id: the Message-Id header; None where the sender set none.
        received_at: ISO 8601 in UTC, by the receiving server.
        sender: the From header.
        subject: the Subject header, decoded; "" without one.
        content_type: of `body`, text/plain or text/html.
        body: the first readable part, HTML left as it is.
        attachments: other parts beside the body.
        size: bytes of the whole e-mail.
    """

    message_id: str | None
    received_at: str
    sender: str
    subject: str
    content_type: str
    body: str
    attachments: int
    size: int


def label_of(member: str) -> str | None:
    """The label that a member of the corpus has, or None for a file that is no e-mail."""
    path = Path(member)
    return LABELS.get(path.parent.name) if path.suffix == ".txt" else None


def write_days(corpus: Iterable[tuple[str, bytes]], folder: Path) -> int:
    """Write `raw/{day}.jsonl` and `labels/{day}.csv` for every day that has an e-mail.

    Args:
        corpus: member names (which carry the label) and the bytes of each e-mail.
        folder: receives the two folders.

    Returns:
        The number of e-mails.
    """
    days: dict[str, list[tuple[Email, str]]] = defaultdict(list)
    for member, content in corpus:
        label = label_of(member)
        if label is not None:
            mail = read_email(content, member)
            days[mail.received_at[:10]].append((mail, label))
    (folder / "raw").mkdir(parents=True)
    (folder / "labels").mkdir()
    for day, mails in days.items():
        # By time of arrival: the order of the corpus would give the labels away.
        mails.sort(key=lambda item: (item[0].received_at, item[0].message_id or ""))
        _write_day(folder, day, mails)
    return sum(map(len, days.values()))


def read_email(content: bytes, member: str) -> Email:
    """Read one e-mail.

    Raises:
        SourceError: no header says when it was received.
    """
    message = email.message_from_bytes(content)
    body, content_type, attachments = _body(message)
    return Email(
        message_id=_clean(str(message["Message-Id"])) if message["Message-Id"] else None,
        received_at=received_at(message, member).isoformat(timespec="seconds").replace("+00:00", "Z"),
        sender=_decoded(message["From"]),
        subject=_decoded(message["Subject"]),
        content_type=content_type,
        body=body,
        attachments=attachments,
        size=len(content),
    )


def received_at(message: Message, member: str) -> datetime:
    """When the receiving server took the e-mail in, in UTC.

    The topmost `Received` header is the receiving server's own; `Date` is written by the sender and forged by
    spam, so it is never read. Where the relays' headers were stripped, `Delivery-Date` is the server's.

    Raises:
        SourceError: no such header can be read.
    """
    candidates = [str(value).rsplit(";", 1)[-1] for value in message.get_all("Received") or []]
    if message["Delivery-Date"]:
        candidates.append(str(message["Delivery-Date"]))
    for candidate in candidates:
        try:
            moment = parsedate_to_datetime(re.sub(r"\s+", " ", candidate).strip())
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    raise SourceError(f"{member}: no Received or Delivery-Date header with a date")


def _body(message: Message) -> tuple[str, str, int]:
    """Text, content type and number of other parts; plain text is preferred to HTML."""
    parts = [part for part in message.walk() if not part.is_multipart()]
    for wanted in ("text/plain", "text/html"):
        for part in parts:
            if part.get_content_type() == wanted and part.get_content_disposition() != "attachment":
                return _text(part), wanted, len(parts) - 1
    return "", "text/plain", len(parts)


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    try:
        text = content.decode(part.get_content_charset("ascii"))
    except (LookupError, UnicodeDecodeError, ValueError):
        # An unknown or false charset: the usual one of 2002 reads any byte.
        text = content.decode("latin-1")
    return _clean(text.replace("\r\n", "\n"))


def _decoded(header: object) -> str:
    """A header with its encoded words decoded where they can be."""
    if header is None:
        return ""
    try:
        text = str(make_header(decode_header(str(header))))
    except (LookupError, UnicodeError, ValueError):
        text = str(header)
    return " ".join(_clean(text).split())


def _clean(text: str) -> str:
    # Undecodable header bytes come as lone surrogates, which JSON readers rightly refuse.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


def _write_day(folder: Path, day: str, mails: list[tuple[Email, str]]) -> None:
    with (folder / "raw" / f"{day}.jsonl").open("w", encoding="utf-8") as raw:
        for mail, _ in mails:
            raw.write(json.dumps(asdict(mail), ensure_ascii=False) + "\n")
    with (folder / "labels" / f"{day}.csv").open("w", encoding="utf-8", newline="") as labels:
        writer = csv.writer(labels)
        writer.writerow(("message_id", "label"))
        # An e-mail without a key cannot be scored, so it has no label to compare with.
        writer.writerows((mail.message_id, label) for mail, label in mails if mail.message_id is not None)
