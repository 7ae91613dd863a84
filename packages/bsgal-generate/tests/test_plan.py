from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsgal_generate import Category, GenerationPlan, PromptTemplate, derive_seed
from bsgal_generate.errors import CategoryFileError, PromptError

MakePlan = Callable[..., GenerationPlan]
TWO = (PromptTemplate("a", "one {name}"), PromptTemplate("b", "a {name}"))


def test_seed_is_the_same_on_every_machine() -> None:
    assert derive_seed(0, 907, "single", 3) == 8257094517786768


@given(st.lists(st.integers() | st.text(max_size=5), max_size=4), st.data())
def test_seeds_of_different_parts_differ(parts: list[int | str], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.integers() | st.text(max_size=5), max_size=4))
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**53
    assert (seed == derive_seed(*other)) == (list(map(str, parts)) == list(map(str, other)))


def test_plan_lists_every_sample_once_and_always_in_the_same_order(make_plan: MakePlan) -> None:
    plan = make_plan(n_categories=2, images_per_category=3, templates=TWO)
    assert [sample.sample_id for sample in plan] == [
        "1-a-00000", "1-b-00000", "1-a-00001", "2-a-00000", "2-b-00000", "2-a-00001",
    ]  # fmt: skip
    assert list(plan) == list(plan)
    assert len(plan) == 6


def test_sample_does_not_depend_on_the_rest_of_the_plan(make_plan: MakePlan) -> None:
    small = {s.sample_id: s for s in make_plan(n_categories=2, images_per_category=3)}
    large = {s.sample_id: s for s in make_plan(n_categories=5, images_per_category=9)}
    assert all(large[sample_id] == sample for sample_id, sample in small.items())


def test_run_seed_changes_every_seed(make_plan: MakePlan) -> None:
    first, second = make_plan(seed=0), make_plan(seed=1)
    assert {s.seed for s in first}.isdisjoint(s.seed for s in second)


def test_redraw_has_another_seed_and_the_same_id(make_plan: MakePlan) -> None:
    sample = next(iter(make_plan()))
    assert sample.redrawn(0) is sample
    seeds = {sample.redrawn(attempt).seed for attempt in range(4)}
    assert len(seeds) == 4
    assert sample.redrawn(2).sample_id == sample.sample_id
    assert sample.redrawn(2).attempt == 2


def test_categories_are_sorted_by_id() -> None:
    plan = GenerationPlan(categories=(Category(5, "b"), Category(2, "a")), images_per_category=1)
    assert [sample.category_id for sample in plan] == [2, 5]


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_bad_number_of_images_is_refused(count: object, make_plan: MakePlan) -> None:
    with pytest.raises(ValueError, match="`images_per_category` must be an int of at least 1"):
        make_plan(images_per_category=count)


@pytest.mark.parametrize("counts", [{1: 1}, {1: 1, 2: -1}, {1: 1, 2: 1.0}, {1: 1, 2: 1, 3: 1}])
def test_bad_numbers_of_single_categories_are_refused(counts: object, make_plan: MakePlan) -> None:
    with pytest.raises(ValueError, match="must give every category id of the plan"):
        make_plan(n_categories=2, images_per_category=counts)


def test_samples_beyond_a_smaller_plan_are_those_it_lacks(make_plan: MakePlan) -> None:
    small = make_plan(n_categories=3, images_per_category={1: 2, 2: 0, 3: 1}, templates=TWO)
    large = make_plan(n_categories=3, images_per_category={1: 5, 2: 3, 3: 1}, templates=TWO)
    assert (len(small), len(large)) == (3, 9)
    beyond = list(large.beyond(small.images_per_category))
    assert len(beyond) == 6
    assert {s.sample_id for s in beyond} == {s.sample_id for s in large} - {
        s.sample_id for s in small
    }


def test_bad_plans_are_refused(make_plan: MakePlan) -> None:
    with pytest.raises(CategoryFileError, match="no categories"):
        make_plan(n_categories=0)
    with pytest.raises(CategoryFileError, match="id 1 is used by both"):
        GenerationPlan(categories=(Category(1, "a"), Category(1, "b")), images_per_category=1)
    with pytest.raises(PromptError, match="at least one template"):
        make_plan(templates=())
    with pytest.raises(PromptError, match="different prompt ids"):
        make_plan(templates=(TWO[0], TWO[0]))
    with pytest.raises(TypeError, match="`seed` must be an int"):
        make_plan(seed=0.5)
