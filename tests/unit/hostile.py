"""Text that nobody in their right mind sends."""

from hypothesis import strategies as st


def hostile_text(max_size: int, special: str = "") -> st.SearchStrategy[str]:
    """Any text, with lone surrogates and the ``special`` characters in it as often as all others together.

    (A union given to ``st.text`` as alphabet becomes one range, in which single characters hardly ever come up.)
    """
    return st.lists(st.characters() | st.sampled_from("\ud800\udfff" + special), max_size=max_size).map("".join)
