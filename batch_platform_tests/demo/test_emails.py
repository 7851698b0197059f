import csv
import json
from pathlib import Path

import pytest

from batch_platform.demo.emails import label_of, read_email, write_days
from batch_platform.errors import SourceError

RECEIVED = (
    b"Received: from relay.example.com by mx.example.org with SMTP id 1;\r\n"
    b"\tThu, 22 Aug 2002 23:30:00 -0400 (EDT)\r\n"
    b"Received: from liar by relay.example.com; Mon, 01 Jan 1990 00:00:00 +0000\r\n"
)


def mail(*headers: bytes, body: bytes = b"hello", received: bytes = RECEIVED) -> bytes:
    return received + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def test_the_day_is_the_receiving_servers_and_not_the_senders() -> None:
    forged = read_email(mail(b"Date: Fri, 01 Jan 2038 00:00:00 +0000"), "m")
    # 23:30 in New York is the next day in UTC.
    assert forged.received_at == "2002-08-23T03:30:00Z"


def test_delivery_date_stands_in_where_the_relays_were_stripped() -> None:
    read = read_email(
        mail(b"Delivery-Date: Fri Sep  6 14:54:14 2002", b"Date: x", received=b""), "easy-ham-1/1"
    )
    assert read.received_at == "2002-09-06T14:54:14Z"


def test_an_unreadable_date_falls_to_the_next_header() -> None:
    read = read_email(mail(received=b"Received: by a; yesterday\r\n" + RECEIVED), "m")
    assert read.received_at == "2002-08-23T03:30:00Z"


def test_without_any_date_the_file_is_named() -> None:
    with pytest.raises(SourceError, match=r"spam-1/7\.txt"):
        read_email(mail(b"Date: Fri, 06 Sep 2002 10:00:00 +0000", received=b""), "spam-1/7.txt")


def test_plain_text_is_preferred_and_html_left_as_it_is() -> None:
    parts = (
        b"--b\r\nContent-Type: text/html\r\n\r\n<p>hi</p>\r\n"
        b"--b\r\nContent-Type: text/plain\r\n\r\nhi\r\n--b--\r\n"
    )
    both = read_email(mail(b'Content-Type: multipart/alternative; boundary="b"', body=parts), "m")
    assert (both.body, both.content_type, both.attachments) == ("hi", "text/plain", 1)
    html = read_email(mail(b"Content-Type: text/html", body=b"<p>hi</p>"), "m")
    assert (html.body, html.content_type) == ("<p>hi</p>", "text/html")


@pytest.mark.parametrize("charset", [b"us-ascii", b"no-such-charset", b"utf-8"])
def test_bytes_that_are_not_of_the_charset_still_give_text(charset: bytes) -> None:
    read = read_email(mail(b"Content-Type: text/plain; charset=" + charset, body=b"caf\xe9"), "m")
    assert read.body == "café"


def test_undecodable_headers_give_no_lone_surrogates() -> None:
    read = read_email(mail(b"Subject: caf\xe9", b"From: =?no-such?Q?x?= <a@b>"), "m")
    json.dumps([read.subject, read.sender], ensure_ascii=False).encode()


def test_days_hold_raw_rows_without_labels_and_labels_apart(tmp_path: Path) -> None:
    later = RECEIVED.replace(b"23:30", b"23:40")
    corpus = [
        ("package/data/spam-1/1.txt", mail(b"Message-Id: <b@x>", received=later)),
        ("package/data/easy-ham-2/2.txt", mail(b"Message-Id: <a@x>")),
        ("package/data/spam-2/3.txt", mail(b"Subject: no id", received=later)),
        ("package/LICENSE.txt", b"ignored"),
    ]
    assert write_days(corpus, tmp_path) == 3
    lines = (tmp_path / "raw" / "2002-08-23.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    # By time of arrival, an e-mail without a key included; nothing tells the label.
    assert [row["message_id"] for row in rows] == ["<a@x>", None, "<b@x>"]
    assert "spam-1" not in lines[2] and "label" not in rows[0]
    with (tmp_path / "labels" / "2002-08-23.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"message_id": "<a@x>", "label": "ham"},
            {"message_id": "<b@x>", "label": "spam"},
        ]


def test_only_the_corpus_folders_have_labels() -> None:
    assert label_of("package/data/hard-ham-1/00001.x.txt") == "ham"
    assert label_of("package/data/spam-2/00001.x.txt") == "spam"
    assert label_of("package/data/spam-2/00001.x.json") is None
    assert label_of("package/README.txt") is None
