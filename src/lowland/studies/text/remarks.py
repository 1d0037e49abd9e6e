"""What must be known of the data of a text study to believe its numbers, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FEW = 10  # test texts of a class below which its part in a macro average is mostly luck
MOST = 6  # classes that a sentence names

Labelled = tuple[Sequence[str], Sequence[int]]  # texts, class indices


def remarks(parts: Mapping[str, Labelled], names: Sequence[str]) -> list[str]:
    """Say which classes are small or absent in a split, and which texts stand in two splits.

    `parts` are the splits by "training", "validation" and "test".

    >>> remarks({"training": (["a", "b"], [0, 1]), "test": (["c"] * 20, [0] * 20)}, ["x", "y"])
    ["no test text is of class 'y': its part of every macro average is no measurement"]
    >>> remarks({"training": (["a", "b"], [0, 1]), "test": (["b", "c"] * 10, [0, 1] * 10)}, ["x", "y"])
    ['10 of 20 test texts are training texts too: the test is too kind to every method']
    """
    found = []
    counts = {what: [list(labels).count(index) for index in range(len(names))] for what, (_, labels) in parts.items()}
    for what in ("validation", "test"):
        if what not in counts:
            continue
        absent = [name for name, count in zip(names, counts[what], strict=True) if count == 0]
        if absent:
            why = (
                "its part of every macro average is no measurement"
                if what == "test"
                else "nothing is chosen with a view to it"
            )
            found.append(f"no {what} text is of {_classes(absent)}: {why.replace('its', _its(absent))}")
    if "test" in counts:
        few = [f"{name!r} ({count})" for name, count in zip(names, counts["test"], strict=True) if 0 < count < FEW]
        if few:
            more = f" and {len(few) - MOST} more" if len(few) > MOST else ""
            found.append(
                f"classes with fewer than {FEW} test texts: {', '.join(few[:MOST])}{more}; macro averages give them "
                "as much weight as the others"
            )
    for one, other in (("training", "validation"), ("training", "test"), ("validation", "test")):
        if one in parts and other in parts:
            known = set(parts[one][0])
            shared = sum(text in known for text in parts[other][0])
            if shared:
                result = "the test is too kind" if other == "test" else "what is chosen by them is chosen too kindly"
                found.append(
                    f"{shared} of {len(parts[other][0])} {other} texts are {one} texts too: {result}"
                    + (" to every method" if other == "test" else "")
                )
    return found


def _classes(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ("class " if len(names) == 1 else "the classes ") + ", ".join(map(repr, names[:MOST])) + more


def _its(names: Sequence[str]) -> str:
    return "its" if len(names) == 1 else "their"
