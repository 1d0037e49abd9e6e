"""Every number among the results of the README and of the docs comes from a result file, and is what that file says.

`docs/claims.toml` holds the pointers: a piece of a page with `{}` for each number, and an expression over the result
file for each `{}`, or for several in a row. Between `<!-- results:begin -->` and `<!-- results:end -->` a number
without a pointer fails.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import statistics
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lowland.studies.text import demo

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
NUMBER = r"[+\u2212-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
# Names of rows and methods that hold a number.
NAMES = r"(?:Multi)?A?(?:SWAG?|SGD) 1\.\d+|epoch 1\b|Hits@\d+(?:/\d+)*|\b[23][piu]\b"


def got(data: dict[str, Any], claim: str) -> float:
    """The number of a benchmark's check whose claim begins like this."""
    (check,) = (check for check in data["checks"] if check["claim"].startswith(claim))
    return float(re.match(r"[\d.e+-]+", check["got"])[0])  # type: ignore[index]


# What an expression may call. The file of claims is part of this repository.
FUNCTIONS = {
    "len": len, "min": min, "max": max, "sum": sum, "abs": abs, "sorted": sorted, "float": float, "int": int,
    "mean": statistics.mean, "sd": statistics.stdev, "got": got,
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A piece of a page with its numbers, and what they are computed from."""

    page: str
    text: str
    source: str
    values: tuple[str, ...]

    @property
    def pattern(self) -> re.Pattern[str]:
        """The piece with a group for each number; any white space stands for any other."""
        pieces = [r"\s+".join(map(re.escape, re.split(r"\s+", piece))) for piece in self.text.split("{}")]
        return re.compile(f"({NUMBER})".join(pieces))


CLAIMS = [
    Claim(page, one["text"], one["source"], tuple(one["values"]))
    for page, claims in tomllib.loads((ROOT / "docs" / "claims.toml").read_text()).items()
    for one in claims
]


def shown(number: str) -> tuple[float, float]:
    """The value of a number as it is written, and half of its last digit."""
    plain = number.replace(",", "").replace("\u2212", "-")
    decimals = len(plain.partition(".")[2])
    return float(plain), 0.5 * 10**-decimals


@functools.cache
def source(name: str) -> Any:
    """What a claim is computed from: a result file, or the configuration of the demo."""
    if name in ("demo", "demo --full"):
        return dataclasses.asdict(demo(full=name == "demo --full"))
    return json.loads((RESULTS / name).read_text())


def differs(claim: Claim, text: str) -> str:
    """What is wrong with a claim on its page, or nothing."""
    found = claim.pattern.findall(text)
    if len(found) != 1:
        return f"the piece stands {len(found)} times on the page"
    numbers = [found[0]] if isinstance(found[0], str) else list(found[0])
    data = source(claim.source)
    values = []
    for expression in claim.values:
        value = eval(expression, {"__builtins__": {}, **FUNCTIONS, "d": data})
        values += [(expression, float(one)) for one in (value if isinstance(value, list) else [value])]
    if len(numbers) != len(values):
        return f"{len(numbers)} numbers and {len(values)} values"
    for number, (expression, value) in zip(numbers, values, strict=True):
        written, half = shown(number)
        # A number that is written with its sign has the sign of the value; one without is its size.
        if not math.isclose(written, value, rel_tol=0, abs_tol=half * (1 + 1e-6)):
            return f"{number} is written, {expression} of {claim.source} is {value}"
    return ""


def pages() -> dict[str, str]:
    return {page: (ROOT / page).read_text() for page in PAGES}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.text[:50]}")
def test_a_claim_is_what_its_file_says(claim: Claim) -> None:
    assert not differs(claim, (ROOT / claim.page).read_text())


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.text[:50]}")
def test_a_changed_digit_fails(claim: Claim) -> None:
    text = (ROOT / claim.page).read_text()
    match = claim.pattern.search(text)
    assert match is not None
    for group in range(1, claim.text.count("{}") + 1):
        for place in range(match.start(group), match.end(group)):
            if text[place].isdigit():
                other = str((int(text[place]) + 1) % 10)
                assert differs(claim, text[:place] + other + text[place + 1 :]), f"{match[group]}, digit {text[place]}"


def without_source(page: str, text: str) -> list[str]:
    """The numbers between the marks of a page that no claim covers."""
    covered = list(text)
    for claim in CLAIMS:
        if claim.page == page:
            for match in claim.pattern.finditer(text):
                for group in range(1, claim.text.count("{}") + 1):
                    covered[match.start(group) : match.end(group)] = " " * (match.end(group) - match.start(group))
    rest = "".join(covered)
    left = []
    for block in re.findall(r"<!-- results:begin -->(.*?)<!-- results:end -->", rest, re.DOTALL):
        # Code, targets of links and names that hold a digit are no claims.
        prose = re.sub(rf"```.*?```|`[^`]*`|\]\([^)]*\)|{NAMES}", " ", block, flags=re.DOTALL)
        left += re.findall(rf"(?<![\w.-]){NUMBER}(?![\w-]*[A-Za-z])", prose)
    return left


@pytest.mark.parametrize("page", PAGES)
def test_no_number_among_results_is_without_a_source(page: str) -> None:
    assert without_source(page, (ROOT / page).read_text()) == []


def test_a_number_without_a_source_is_found() -> None:
    text = "<!-- results:begin -->\nlower by 0.123 in `f(1)` of [x](a2.md), CIFAR-10\n<!-- results:end --> 0.5"
    assert without_source("README.md", text) == ["0.123"]
