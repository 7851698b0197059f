"""The model card: who answers for a model, who has validated it, what it is for, how good it is, and until when.

It decides which statements a card must make; it does not judge them. An expired card warns and stops nothing:
a date that passes at night must not end the scoring.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from batch_platform.errors import ModelError

_log = logging.getLogger(__name__)
REQUIRED = ("intended_use", "training_data", "metrics", "owner", "validator", "expires")


def check_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Check a card and return it as plain JSON values.

    `metrics` are an object, `expires` is an ISO date, the last day of use; other fields than `REQUIRED` are kept.

    Raises:
        ModelError: names the fields that are absent or wrong.
    """
    absent = [name for name in REQUIRED if card.get(name) in (None, "", {}, [])]
    if absent:
        raise ModelError(
            f"the model card says nothing about {', '.join(absent)}: it needs {', '.join(REQUIRED)}"
        )
    if not isinstance(card["metrics"], Mapping):
        raise ModelError('the model card\'s metrics are an object of names and numbers, as {"auc": 0.97}')
    try:
        date.fromisoformat(card["expires"])
    except (TypeError, ValueError):
        raise ModelError(f"the model card's expires {card['expires']!r} is no date as 2026-12-31") from None
    try:
        return json.loads(json.dumps(dict(card), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(f"the model card holds something that JSON does not: {error}") from None


def expiry(card: Mapping[str, Any] | None, today: date | None = None) -> str | None:
    """What to warn of where the card has expired; None where it has not, or names no day.

    Args:
        card: of a registered version; None where it has none.
        today: UTC; default: now.
    """
    day = None if card is None else card.get("expires")
    if card is None or day is None or date.fromisoformat(day) >= (today or datetime.now(UTC).date()):
        return None
    return (
        f"the model card expired after {day}: {card['owner']} has it validated again and registers a new version, "
        "or retires it"
    )


def warn_of_expiry(about: str, card: Mapping[str, Any] | None) -> None:
    """Say in the log that the card of a model has expired, where it has."""
    if (expired := expiry(card)) is not None:
        _log.warning("model %s: %s", about, expired)


def read_card(path: Path) -> dict[str, Any]:
    """Read a card from a JSON file; `check_card` judges it.

    Raises:
        ModelError: the file is unreadable or no JSON object.
    """
    try:
        card = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as a model card: {error}") from None
    if not isinstance(card, dict):
        raise ModelError(f"{path}: a model card is a JSON object with {', '.join(REQUIRED)}")
    return card
