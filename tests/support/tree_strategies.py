"""Random trees for hypothesis."""

from hypothesis import strategies as st


@st.composite
def parent_lists(draw, most=24):
    size = draw(st.integers(1, most))
    return [-1] + [draw(st.integers(0, node - 1)) for node in range(1, size)]
