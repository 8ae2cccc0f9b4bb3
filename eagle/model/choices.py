"""The static draft tree of EAGLE-1, as root-to-node paths; each step is a child's rank among its siblings.

`mc_sim_7b_63` is the reference's name for its tree. It is written down by the number of children of every inner node,
which shows its shape: wide near the root, and deep only along the likeliest path.
"""

_CHILDREN: dict[tuple[int, ...], int] = {
    (): 4,
    (0,): 3,
    (1,): 2,
    (2,): 2,
    (3,): 1,
    (0, 0): 3,
    (0, 1): 2,
    (0, 2): 2,
    (1, 0): 1,
    (0, 0, 0): 3,
    (0, 0, 0, 0): 2,
}

mc_sim_7b_63: list[list[int]] = [[*path, rank] for path, children in _CHILDREN.items() for rank in range(children)]
