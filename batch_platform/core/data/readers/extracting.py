"""The text of one document, in a process of its own: `python -m batch_platform.core.data.readers.extracting`.

Decides how text is got out of each kind of document, and what its title is. Documents come from anywhere, and parsers of
them have been led astray before: the process may use so much memory, and whoever started it ends it when it takes too
long. It reads documents from standard input and writes one line of JSON for each. It knows no files.
"""

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Any, BinaryIO

MOST_MEMORY = 2 << 30
MOST_CHARACTERS = 16 << 20
MEDIA_TYPES = {
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
    ".pdf": "application/pdf",
    ".eml": "message/rfc822",
}


class UnreadableError(Exception):
    """Why a document has no text."""

    def __init__(self, error_type: str, reason: str) -> None:
        super().__init__(reason)
        self.error_type = error_type


@dataclass(frozen=True)
class Extract:
    """What a document says; the title is None where it has none."""

    text: str
    title: str | None = None


def extract(suffix: str, content: bytes) -> Extract:
    """The text of a document.

    Args:
        suffix: a key of `MEDIA_TYPES`.

    Raises:
        UnreadableError: it is damaged, encrypted, too large, or of another kind than its name says.
    """
    found = _EXTRACTORS[MEDIA_TYPES[suffix]](content)
    if len(found.text) > MOST_CHARACTERS:
        raise UnreadableError("too_large", f"the text has more than {MOST_CHARACTERS} characters")
    if "\x00" in found.text:
        raise UnreadableError("unparsable", "the text has null characters: the document is of another kind")
    if not found.text.strip():
        raise UnreadableError("no_text", "the document has no text (a scan, say)")
    return found


def _decoded(content: bytes) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError("invalid_utf8", f"the text is not valid UTF-8 (byte {error.start})") from None


def _plain(content: bytes) -> Extract:
    return Extract(_decoded(content))


def _html(content: bytes | str) -> Extract:
    from bs4 import BeautifulSoup

    page = BeautifulSoup(content, "html.parser")  # which finds the encoding that the page declares
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for element in page(["script", "style", "noscript", "template", "title"]):
        element.decompose()
    lines = (" ".join(line.split()) for line in page.get_text("\n").splitlines())
    return Extract("\n".join(line for line in lines if line), title or None)


def _markdown(content: bytes) -> Extract:
    from markdown_it import MarkdownIt

    rendered = MarkdownIt("commonmark").render(_decoded(content))
    heading = next((line[4:-5] for line in rendered.splitlines() if line.startswith("<h1>")), None)
    return Extract(_html(rendered).text, None if heading is None else " ".join(_html(heading).text.split()))


def _pdf(content: bytes) -> Extract:
    import io

    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("encrypted", "the PDF is encrypted")
        text, length = [], 0
        for page in reader.pages:
            text.append(page.extract_text())
            length += len(text[-1])
            if length > MOST_CHARACTERS:
                break
        title = reader.metadata.title if reader.metadata else None
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        # pypdf meets broken files with more than its own errors.
        raise UnreadableError(
            "unparsable", f"the PDF cannot be read ({type(error).__name__}: {error})"
        ) from None
    return Extract("\n\n".join(text), title or None)


def _email(content: bytes) -> Extract:
    from email import policy
    from email.parser import BytesParser

    message = BytesParser(EmailMessage, policy=policy.default).parsebytes(content)
    if not message.keys():
        raise UnreadableError("unparsable", "the e-mail has no headers")
    try:
        body = message.get_body(("plain", "html"))
        text = "" if body is None else body.get_content()
        subject = message["subject"]
    except (
        LookupError,
        ValueError,
        AttributeError,
    ) as error:  # an encoding that nobody knows, or a broken header
        raise UnreadableError("unparsable", f"the e-mail cannot be read ({error})") from None
    is_html = body is not None and body.get_content_type() == "text/html"
    return Extract(_html(text).text if is_html else text, None if subject is None else str(subject))


_EXTRACTORS: dict[str, Callable[[bytes], Extract]] = {
    "text/plain": _plain,
    "text/markdown": _markdown,
    "text/html": _html,
    "application/pdf": _pdf,
    "message/rfc822": _email,
}


def _answer(suffix: str, content: bytes) -> dict[str, Any]:
    try:
        found = extract(suffix, content)
    except UnreadableError as error:
        return {"error_type": error.error_type, "reason": str(error)}
    except (MemoryError, RecursionError) as error:
        return {
            "error_type": "too_large",
            "reason": f"reading it takes more than is allowed ({type(error).__name__})",
        }
    except Exception as error:  # noqa: BLE001 - whatever a parser meets in a document is told of that document
        return {"error_type": "unparsable", "reason": f"it cannot be read ({type(error).__name__}: {error})"}
    printable = (
        None if value is None else value.encode("utf-8", "replace").decode()
        for value in asdict(found).values()
    )
    return dict(zip(asdict(found), printable, strict=True))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests, each a line of JSON (`suffix`, `bytes`) and so many bytes, until there are no more."""
    while line := requests.readline():
        asked = json.loads(line)
        answer = _answer(asked["suffix"], requests.read(asked["bytes"]))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    answering, sys.stdout = sys.stdout.buffer, sys.stderr  # parsers that print must not garble the answers
    serve(sys.stdin.buffer, answering)
