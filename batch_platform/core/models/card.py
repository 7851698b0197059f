"""The model card: who answers for a model, what it is for, and how good it is.

It decides which statements a card must make; it does not judge them.
"""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from batch_platform.errors import ModelError

REQUIRED = ("intended_use", "training_data", "metrics", "owner")


def check_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Check a card and return it as plain JSON values.

    Other fields than `REQUIRED`, as `validator` and `expires` (an ISO date), are kept.

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
    if card.get("expires") is not None:
        try:
            date.fromisoformat(card["expires"])
        except (TypeError, ValueError):
            raise ModelError(
                f"the model card's expires {card['expires']!r} is no date as 2026-12-31"
            ) from None
    try:
        return json.loads(json.dumps(dict(card), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(f"the model card holds something that JSON does not: {error}") from None


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
