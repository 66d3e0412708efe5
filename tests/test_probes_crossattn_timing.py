import itertools

import numpy as np

from interp.probes.crossattn.timing import (
    ranked_heads,
    token_times,
    warping_path,
    words_of,
)


def cheapest(cost):
    """The least cost of any monotonic path, by trying them all."""
    n_tokens, n = cost.shape
    best = np.inf
    moves = {"both": (1, 1), "down": (1, 0), "right": (0, 1)}
    for length in range(max(n_tokens, n) - 1, n_tokens + n - 1):
        for path in itertools.product(moves.values(), repeat=length):
            cells = [(0, 0)]
            for i, j in path:
                cells.append((cells[-1][0] + i, cells[-1][1] + j))
            if cells[-1] == (n_tokens - 1, n - 1):
                best = min(best, sum(cost[cell] for cell in cells))
    return best


def test_the_path_is_the_cheapest_of_all():
    for seed in range(5):
        cost = np.random.default_rng(seed).standard_normal((3, 4))
        tokens, positions = warping_path(cost)
        steps = np.diff(np.stack([tokens, positions]), axis=1)

        assert ((steps >= 0) & (steps <= 1)).all()
        assert (tokens[0], positions[0], tokens[-1], positions[-1]) == (0, 0, 2, 3)
        assert np.isclose(cost[tokens, positions].sum(), cheapest(cost))


def test_tokens_that_are_looked_at_in_turn_get_their_own_times():
    attention = np.full((2, 3, 60), 0.01)
    for token, (begin, end) in enumerate([(0, 20), (20, 45), (45, 60)]):
        attention[:, token, begin:end] = 1
    times = token_times(attention, 0.02)
    np.testing.assert_allclose(times, [[0, 0.4], [0.4, 0.9], [0.9, 1.2]])


def test_tokens_join_to_words_at_their_spaces():
    times = np.array([[0, 1], [1, 2], [2, 3], [3, 5.0]])
    words = words_of([" Fail", "ed", ".", " Again"], times)
    assert words["text"].values.tolist() == ["Failed.", "Again"]
    assert words["begin"].values.tolist() == [0, 3]
    assert words["end"].values.tolist() == [3, 5]
    assert words["last_token"].values.tolist() == [2, 3]
    alone = words_of(["a", "b", "c", "d"], times)
    assert alone.sizes["word"] == 4


def test_the_best_heads_are_those_with_the_nearest_peaks():
    found = ranked_heads(np.array([[30.0, 10.0], [20.0, 40.0]]), chosen=2)
    assert found["rank"].values.tolist() == [[3, 1], [2, 4]]
    assert found["chosen"].values.tolist() == [[0, 1], [1, 0]]
