"""How a walk is shown."""

import math

from lowland.landscape import Walk


def test_a_walk_is_shown_in_a_line_and_a_table() -> None:
    places = tuple(i / 999 for i in range(1000))
    walk = Walk(places, {"loss": places, "<b>": (math.nan,) * 1000}, (1.0,) * 999)
    assert len(repr(walk)) < 100 and "places 1000" in repr(walk) and "loss 0 to 1" in repr(walk)
    assert "&lt;b&gt;" in walk._repr_html_() and "<b>" not in walk._repr_html_()
