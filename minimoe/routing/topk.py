"""Who is chosen, and in what order the chosen queue. Integers throughout: no gradient passes here.

    T tokens, E experts, K experts chosen per token, G groups
"""
from minimoe.autodiff.tensor import stop_gradient
from minimoe.backend import namespace


def top_k(scores, k):
    """The k experts of highest score for each token, best first; of equals, the lower index first.

    [T, E] -> [T, K] int. ValueError for a k that is not between 1 and E.
    """
    scores = stop_gradient(scores)
    xp = namespace(scores)
    T, E = scores.shape
    if not 1 <= k <= E:
        raise ValueError(f"top_k: k must be between 1 and {E} experts; got {k}")
    lowest = xp.finfo(scores.dtype).min
    left = xp.maximum(scores, lowest)          # a copy, in which -inf means taken
    choices = []
    for _ in range(k):
        best = left.argmax(axis=-1)            # [T]   the first of equals
        choices.append(best)
        left[xp.arange(T), best] = -xp.inf
    return xp.stack(choices, axis=-1)          # [T, K]


def choice_margin(scores, expert):
    """By how much a choice's score exceeds the best of those left after it: 0 at a tie, else >= 0.

    Rounding may change a choice whose margin is small. Infinite where no expert is left.
    [T, E], [T, K] int -> [T, K]
    """
    scores = stop_gradient(scores)
    xp = namespace(scores)
    token, left, ahead = xp.arange(len(scores)), scores.copy(), []
    for k in range(expert.shape[1]):
        chosen = token, expert[:, k]
        left[chosen] = -xp.inf                 # which means taken
        ahead.append(scores[chosen] - left.max(axis=-1))
    return xp.stack(ahead, axis=-1)            # [T, K]


def slots(expert, n_experts, order=None):
    """Each choice's place in the queue of its expert, from 0. [T, K] int -> [T, K] int

    All first choices queue before any second one. Among them tokens queue in their own order, or
    in that of ``order``: [T] int, a permutation, the token to be seated first in front.
    """
    xp = namespace(expert)
    T, K = expert.shape
    line = (expert if order is None else expert[order]).T.reshape(-1)    # [K*T]
    by_expert, counts = group(line, n_experts)
    start = xp.cumsum(counts) - counts                                   # [E]
    place = xp.empty_like(by_expert)
    place[by_expert] = xp.arange(K * T) - start[line[by_expert]]
    place = place.reshape(K, T).T                                        # [T, K]
    if order is None:
        return place
    seated = xp.empty_like(place)
    seated[order] = place
    return seated


def group(expert, n_experts):
    """Choices sorted by expert, and how many each expert has. [N] int -> [N] int, [E] int

    A stable sort of small integers: the cost does not grow with the number of experts, as that of
    a running sum over a one-hot [N, E] would.
    """
    xp = namespace(expert)
    small = expert.astype("uint16") if n_experts <= 2 ** 16 else expert
    return xp.argsort(small, kind="stable"), xp.bincount(expert, minlength=n_experts)


# -- In groups -----------------------------------------------------------------------------------
# G groups of T / G tokens in a row, each with queues of its own. ValueError where G does not divide
# T. A choice that is False in ``used``, [T, 1] or [T, K] bool, stands in no queue.

def queues(expert, n_experts, n_groups):
    """The queue of each choice, one for each expert in each group. [T, K] int -> [T, K] int"""
    xp = namespace(expert)
    T, K = expert.shape
    if n_groups < 1 or T % n_groups:
        raise ValueError(f"queues: needs a number of groups that divides {T} tokens; "
                         f"got {n_groups}")
    apart = expert.reshape(n_groups, T // n_groups, K)
    return (apart + n_experts * xp.arange(n_groups)[:, None, None]).reshape(T, K)


def slots_in_groups(expert, n_experts, n_groups, used=None, order=None):
    """Each choice's place in its queue, as ``slots``; 0 if it is not used. [T, K] int"""
    queue, n_queues = queues(expert, n_experts, n_groups), n_experts * n_groups
    if used is None:
        return slots(queue, n_queues, order)
    return slots(namespace(queue).where(used, queue, n_queues), n_queues + 1, order) * used


def counts_in_groups(expert, n_experts, n_groups, used=None):
    """How many stand in each queue. [T, K] int -> [G, E] int"""
    queue, n_queues = queues(expert, n_experts, n_groups), n_experts * n_groups
    if used is not None:
        queue = namespace(queue).where(used, queue, n_queues)
    _, counts = group(queue.reshape(-1), n_queues + 1)
    return counts[:-1].reshape(n_groups, n_experts)
