"""What documents of all kinds have: a language, dates, addresses, and questions about them."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import numpy as np

LOCALES = {"en": "en_GB", "de": "de_DE", "fr": "fr_FR", "es": "es_ES"}
DATES = {"en": "%d %B %Y", "de": "%d.%m.%Y", "fr": "%d/%m/%Y", "es": "%d-%m-%Y"}

Asked = list[tuple[str, str, str]]  # question, answer, kind of question


def random_day(rng: np.random.Generator) -> date:
    return date(2016, 1, 1) + timedelta(days=int(rng.integers(3650)))


def address_lines(people: Any) -> list[str]:
    return [line for line in people.address().splitlines() if line.strip()][-2:]
