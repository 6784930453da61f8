import itertools
import random

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib import masks

LENGTHS = st.integers(1, 24)


@given(LENGTHS)
def test_causal_sees_itself_and_what_came_before(length):
    assert masks.causal(length)[0].tolist() == oracles.causal_visibility(length)


@given(st.data(), LENGTHS)
def test_a_prefix_is_seen_by_all_and_the_rest_is_causal(data, length):
    prefixes = data.draw(st.lists(st.integers(0, length), min_size=1, max_size=4))
    assert masks.prefix(torch.tensor(prefixes), length).tolist() == [
        oracles.prefix_visibility(prefix, length) for prefix in prefixes
    ]


@pytest.mark.parametrize("off", [-1, 1])
def test_the_check_above_refuses_a_prefix_one_too_long_or_too_short(off):
    assert masks.prefix(torch.tensor([3 + off]), 6)[0].tolist() != oracles.prefix_visibility(3, 6)


def test_padding_is_seen_by_nobody_and_documents_see_themselves():
    is_real_BT = torch.tensor([[True, True, False], [True, False, False]])
    assert masks.padding(is_real_BT).tolist() == [[[True, True, False]], [[True, False, False]]]
    ids = [3, 3, 5, 3]
    assert masks.documents(torch.tensor([ids]))[0].tolist() == [[a == b for b in ids] for a in ids]


def test_masks_combine_to_their_intersection():
    is_real_BT = torch.tensor([[True, True, True, False]])
    both = masks.causal(4) & masks.padding(is_real_BT) & masks.documents(torch.tensor([[0, 0, 1, 1]]))
    assert both.dtype == torch.bool
    assert both[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]


def follows_xlnet(permutation) -> bool:
    """Every order of up to 4 positions with every choice of targets, and some long ones."""
    rng = random.Random(0)
    cases = [
        (order, is_target)
        for length in range(1, 5)
        for order in itertools.permutations(range(length))
        for is_target in itertools.product([False, True], repeat=length)
    ]
    cases += [(rng.sample(range(16), 16), [rng.random() < 0.4 for _ in range(16)]) for _ in range(10)]
    for order, is_target in cases:
        content, query = permutation(torch.tensor([order]), torch.tensor([is_target]))
        if (content[0].tolist(), query[0].tolist()) != oracles.permutation_visibility(order, is_target):
            return False
    return True


def without_own_content(order_BT, is_target_BT):
    _, query = masks.permutation(order_BT, is_target_BT)
    return query, query


def query_sees_itself(order_BT, is_target_BT):
    content, _ = masks.permutation(order_BT, is_target_BT)
    return content, content


def order_alone(order_BT, is_target_BT):
    """A non-target hides from targets that come before it in the order, and sees targets."""
    earlier = order_BT[:, None, :] < order_BT[:, :, None]
    return earlier | torch.eye(order_BT.shape[1], dtype=torch.bool), earlier


def other_way_round(order_BT, is_target_BT):
    return masks.permutation(order_BT.shape[1] - 1 - order_BT, is_target_BT)


def test_permutation_follows_the_rule_of_xlnet():
    assert follows_xlnet(masks.permutation)


@pytest.mark.parametrize("mutant", [without_own_content, query_sees_itself, order_alone, other_way_round])
def test_the_check_above_refuses(mutant):
    assert not follows_xlnet(mutant)


def nothing_reaches_its_own_query(permutation) -> bool:
    """Through any number of layers, for every target."""
    rng = random.Random(1)
    for _ in range(30):
        order, is_target = rng.sample(range(12), 12), [rng.random() < 0.5 for _ in range(12)]
        content, query = (m[0].tolist() for m in permutation(torch.tensor([order]), torch.tensor([is_target])))
        if any(oracles.reaches_itself(content, query, t) for t in range(12) if is_target[t]):
            return False
    return True


def non_targets_see_targets(order_BT, is_target_BT):
    """A context that reads in both directions carries a target's content back to its query."""
    content, query = masks.permutation(order_BT, is_target_BT)
    return content | ~is_target_BT[:, :, None], query


def test_no_content_of_a_target_comes_to_its_query_by_a_detour():
    assert nothing_reaches_its_own_query(masks.permutation)
    assert not nothing_reaches_its_own_query(non_targets_see_targets)
    assert not nothing_reaches_its_own_query(query_sees_itself)


def test_rows_of_a_batch_do_not_touch():
    orders = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(n)) for n in range(3)])
    is_target_BT = orders > 5
    together = masks.permutation(orders, is_target_BT)
    for row in range(3):
        alone = masks.permutation(orders[row : row + 1], is_target_BT[row : row + 1])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))
