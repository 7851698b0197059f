"""Folders of documents: what is read of them, and what of the unreadable and the hostile becomes of it."""

import subprocess
import sys
import time
import zipfile
import zlib
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from batch_platform.core.data.contract import Rejected
from batch_platform.core.data.intake import PartitionReader
from batch_platform.core.data.partitions import PartitionCalendar
from batch_platform.core.data.readers import documents
from batch_platform.core.spec import parse_spec
from batch_platform.errors import PipelineFileError
from batch_platform_tests.mini import ATTRIBUTES

DAY = "2026-01-02"
COLUMNS = {
    "path": {"type": "string"},
    "text": {"type": "string", "required": True},
    "title": {"type": "string"},
    "media_type": {"type": "string"},
    "size": {"type": "int64"},
}


def attributes(**source: Any) -> dict[str, Any]:
    made = {"uri": "in/{partition}", "format": "documents", "row_key": "path", "columns": COLUMNS}
    return {**ATTRIBUTES, "source": {**made, **source}}


def read(folder: Path, **source: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Rejected]]:
    """Rows and rejected rows, by the file's name."""
    spec = parse_spec(attributes(**source), "p").source
    reader = PartitionReader(
        spec, PartitionCalendar.of("daily", "2026-01-01", None, "UTC").partition(DAY), folder
    )
    good, bad = {}, {}
    for rows, rejected in reader:
        good |= {Path(row["path"]).name: row for row in rows.to_pylist()}
        bad |= {Path(row.source_file).name: row for row in rejected}
    return good, bad


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / "in" / DAY / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pdf(*streams: bytes, more: bytes = b"") -> bytes:
    """A PDF with a page for each content stream (already compressed, where `more` says so)."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    pages = []
    for stream in streams:
        objects.append(b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(stream), more, stream))
        contents = len(objects)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % contents
        )
        pages.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(pages), len(pages))
    made, places = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return (
        made
        + head
        + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(made))
    )


def shows(text: str) -> bytes:
    return b"BT /F1 12 Tf 20 200 Td (" + text.encode() + b") Tj ET"


def mail(body: str, subtype: str = "plain") -> bytes:
    message = EmailMessage()
    message["Subject"] = "Grüße"
    message["From"] = "a@example.org"
    message.set_content(body, subtype=subtype)
    message.add_attachment(
        b"PK\x03\x04 not unpacked", maintype="application", subtype="zip", filename="../../x.zip"
    )
    return bytes(message)


def test_each_kind_of_document(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "\ufeffplain\ntext")
    write(tmp_path, "b.md", "# A *title*\n\nSome [link](http://x).\n\n- one\n- two\n")
    page = "<html><head><title> The page </title><script>x()</script></head><body><p>Hello <b>you</b></p></body></html>"
    write(tmp_path, "sub/c.html", page)
    write(tmp_path, "d.pdf", pdf(shows("first page"), shows("second page")))
    write(tmp_path, "e.eml", mail("Hello there"))
    write(tmp_path, "f.EML", mail("<p>Only <i>HTML</i></p>", "html"))
    write(tmp_path, "_unfinished.txt", "x")
    write(tmp_path, "g.txt", "zwei".encode("utf-16"))
    good, bad = read(tmp_path)
    assert bad == {}
    assert {name: (row["text"].split(), row["title"]) for name, row in good.items()} == {
        "a.txt": (["plain", "text"], None),
        "b.md": (["A", "title", "Some", "link", ".", "one", "two"], "A title"),
        "c.html": (["Hello", "you"], "The page"),
        "d.pdf": (["first", "page", "second", "page"], None),
        "e.eml": (["Hello", "there"], "Grüße"),
        "f.EML": (["Only", "HTML"], "Grüße"),
        "g.txt": (["zwei"], None),
    }
    assert good["c.html"]["path"] == good["c.html"]["row_key"] == f"in/{DAY}/sub/c.html"
    assert (good["c.html"]["media_type"], good["c.html"]["size"]) == ("text/html", len(page))


def test_unreadable_documents_are_quarantined(tmp_path: Path) -> None:
    write(tmp_path, "good.txt", "good")
    write(tmp_path, "latin.txt", "Grüße".encode("latin-1"))
    write(tmp_path, "zip.txt", b"PK\x03\x04\x00\x00")
    write(tmp_path, "empty.md", " \n")
    write(tmp_path, "cut.pdf", pdf(shows("x"))[:80])
    write(tmp_path, "page.pdf", b"<html>not a PDF</html>")
    write(tmp_path, "scan.pdf", pdf(b""))
    write(tmp_path, "odd.eml", "just words\n")
    write(tmp_path, "charset.eml", b"Subject: x\nContent-Type: text/plain; charset=klingon\n\nx\xff\n")
    write(tmp_path, "sheet.xlsx", b"PK")
    good, bad = read(tmp_path)
    assert set(good) == {"good.txt"}
    assert {name: row.error_type for name, row in bad.items()} == {
        "latin.txt": "invalid_utf8",
        "zip.txt": "unparsable",
        "empty.md": "no_text",
        "cut.pdf": "unparsable",
        "page.pdf": "unparsable",
        "scan.pdf": "no_text",
        "odd.eml": "unparsable",
        "charset.eml": "unparsable",
        "sheet.xlsx": "unknown_kind",
    }
    assert all((row.source_row, row.payload) == (0, None) for row in bad.values())


def test_bombs_are_refused_and_the_next_document_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_MOST_BYTES", 1 << 20)
    bomb = tmp_path / "in" / DAY / "archive.zip"
    bomb.parent.mkdir(parents=True)
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../../escaped.txt", b"0" * (64 << 20))
    packed = zlib.compress(b"0 " * (150 << 20), 9)
    assert len(packed) < 1 << 20
    write(tmp_path, "bomb.pdf", pdf(packed, more=b"/Filter /FlateDecode"))
    write(tmp_path, "large.txt", "x" * (2 << 20))
    write(tmp_path, "next.txt", "still read")
    good, bad = read(tmp_path)
    assert set(good) == {"next.txt"}
    assert bad["archive.zip"].error_type == "unknown_kind"
    assert bad["large.txt"].error_type == "too_large"
    assert bad["bomb.pdf"].error_type in ("unparsable", "too_large")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_links_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    inside = write(tmp_path, "a.txt", "inside")
    (inside.parent / "link.txt").symlink_to(inside)
    (inside.parent / "out.txt").symlink_to(tmp_path / "secret.txt")
    good, bad = read(tmp_path)
    assert set(good) == {"a.txt", "link.txt"}
    assert {name: row.error_type for name, row in bad.items()} == {"out.txt": "outside"}


def test_a_document_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is ended, and another one reads the next document."""
    stuck = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = subprocess.Popen
    commands = iter([stuck])
    monkeypatch.setattr(
        documents.subprocess, "Popen", lambda command, **pipes: started(next(commands, command), **pipes)
    )
    paths = [(write(tmp_path, name, "text"), name) for name in ("a.txt", "b.txt")]
    reader = documents.Documents(tmp_path, most_seconds=1)
    began = time.monotonic()
    (slow,) = reader.read(*paths[0], {"text": "string"}).unparsable
    assert slow.error_type == "too_slow"
    assert time.monotonic() - began < 500
    reader._most_seconds = 300
    assert reader.read(*paths[1], {"text": "string"}).batch.to_pylist() == [{"text": "text"}]
    reader.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"columns": {"path": {"type": "string"}, "body": {"type": "string"}}},
            "documents have no column 'body'",
        ),
        ({"uri": "in"}, "documents need {partition} in uri"),
    ],
)
def test_sources_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PipelineFileError) as caught:
        parse_spec(attributes(**changes), "p")
    assert words in str(caught.value)
