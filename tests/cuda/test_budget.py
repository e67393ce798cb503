"""Buckets of row counts, and which are dropped when memory is short."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepfuse._core import cuda


@given(st.integers(1, 3000))
def test_buckets_waste_less_than_half_and_end_at_the_limit(max_rows):
    buckets = cuda.bucket_rows(max_rows)
    assert buckets[0] == max_rows
    assert buckets[-1] == 1
    assert buckets == sorted(set(buckets), reverse=True)
    for rows in range(1, max_rows + 1):
        chosen = cuda.bucket_for(buckets, rows)
        assert chosen == min(bucket for bucket in buckets if bucket >= rows)
        assert chosen < 1.5 * rows or chosen - rows < 1
    assert len(buckets) <= 2 * max_rows.bit_length() + 1


def test_a_row_count_above_the_largest_has_no_bucket():
    assert cuda.bucket_for([4, 1, 2], 5) == -1
    assert cuda.bucket_for([], 1) == -1


@pytest.mark.parametrize(
    ("available", "kept", "total"),
    [
        pytest.param(1000, [8, 4, 1], 400 + 60, id="all-fit"),
        pytest.param(460, [8, 4, 1], 460, id="just"),
        # The pool is as large as the largest bucket's: without it the next one's is what counts.
        pytest.param(459, [4, 1], 200 + 30, id="the-largest-goes-first"),
        pytest.param(229, [1], 50 + 10, id="only-the-smallest-stays"),
    ],
)
def test_the_largest_buckets_are_given_up_until_the_rest_fits(available, kept, total):
    buckets = [(1, 50, 10), (8, 400, 30), (4, 200, 20)]
    assert cuda.plan_budget(buckets, available) == (kept, total)


def test_a_budget_that_not_even_one_row_fits_is_refused():
    with pytest.raises(ValueError, match="a forward of 1 rows needs 60 bytes, there are 59"):
        cuda.plan_budget([(4, 200, 20), (1, 50, 10)], 59)
    with pytest.raises(ValueError, match="at least one bucket"):
        cuda.plan_budget([], 100)


def test_capture_goes_on_below_a_bucket_that_had_no_memory():
    tried = []

    def capture(rows):
        tried.append(rows)
        return rows < 8

    assert cuda.capture_buckets([1, 4, 16, 8, 2], capture) == [4, 2, 1]
    assert tried == [16, 8, 4, 2, 1]


def test_what_else_goes_wrong_in_a_capture_is_passed_on():
    def capture(rows):
        raise RuntimeError(f"at {rows} rows")

    with pytest.raises(RuntimeError, match="at 4 rows"):
        cuda.capture_buckets([1, 4], capture)


def test_out_of_memory_gives_up_the_bucket_and_not_the_process(fake):
    fake.set(memory=1000)
    context = fake.open()
    kept = []

    def capture(rows):
        try:
            kept.append(cuda.DeviceBuffer(context, 200 * rows))
        except cuda.CudaError as error:
            if not error.out_of_memory:
                raise
            return False
        return True

    assert cuda.capture_buckets([1, 2, 8], capture) == [2, 1]
