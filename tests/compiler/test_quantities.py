import pytest
from hypothesis import given
from hypothesis import strategies as st

from stic.compiler.quantities import (
    format_bytes,
    format_time,
    parse_bytes,
    parse_storage,
    parse_time_us,
    quote_bytes,
    quote_time,
)
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import InputError


@pytest.mark.parametrize(
    ("text", "us"),
    [("200ms", 200_000), ("1.5s", 1_500_000), ("800us", 800), ("800µs", 800), (" 3 S ", 3_000_000)],
)
def test_times(text, us):
    assert parse_time_us(text) == us


@pytest.mark.parametrize(
    ("text", "size"),
    [("20MiB", 20 << 20), ("100MB", 10**8), ("4kib", 4096), ("1.5GiB", 3 << 29), ("17B", 17), ("2 kB", 2000), ("0", 0)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "ms", "-5ms", "5", "1e3ms", "5 parsecs", "5ms5", "nan", "inf s", "1,5s", "٣ms"])
def test_wrong_times_are_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"unit|200ms"):
        parse_time_us(text)


def test_wrong_sizes_are_refused():
    with pytest.raises(InputError, match="20MiB"):
        parse_bytes("big")
    with pytest.raises(InputError, match="unknown unit 'MBps'"):
        parse_bytes("5MBps")
    with pytest.raises(InputError, match="larger"):
        parse_bytes("9" * 30 + "GiB")


def test_storage():
    assert parse_storage("100MB") == EmulatedStorage(100_000_000)
    assert parse_storage("300MB, 25000") == EmulatedStorage(300_000_000, 25_000)
    assert str(parse_storage("300MB,25000")) == "300 MB/s, 25000 requests a second"


@pytest.mark.parametrize("text", ["100", "MB", "300MB,", "300MB,25k", "300MB,-1", "300MB,0", "0MB", ",25000"])
def test_wrong_storage_is_refused(text):
    with pytest.raises(InputError):
        parse_storage(text)


@pytest.mark.parametrize(
    ("us", "text"), [(0, "0us"), (850, "850us"), (999.9, "1ms"), (12_340, "12.3ms"), (-2000, "-2ms")]
)
def test_formatted_times(us, text):
    assert format_time(us) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0B"), (4096, "4KiB"), (20 << 20, "20MiB"), (3 << 29, "1.5GiB")])
def test_formatted_sizes(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize("text", "3.3MiB 3.7MiB 20MiB 100MB 1.5GiB 4KiB 1000KiB 17B 0B 512MiB 5.15MiB 0.3KiB".split())
def test_sizes_are_quoted_as_they_were_given(text):
    quoted = quote_bytes(parse_bytes(text))
    assert parse_bytes(quoted) == parse_bytes(text) and len(quoted) <= len(text)
    assert quoted == text or text == "0.3KiB"


@pytest.mark.parametrize("text", "60ms 1.5s 20.25ms 850us 33.333ms 1s 100s 0us 1us 1.000001s".split())
def test_times_are_quoted_as_they_were_given(text):
    assert quote_time(parse_time_us(text)) == text


@given(st.integers(0, 2**50))
def test_what_is_quoted_reads_back_exactly(value):
    assert parse_bytes(quote_bytes(value)) == value
    assert parse_time_us(quote_time(value)) == value


@given(st.integers(1, 999), st.integers(0, 999), st.sampled_from(["GiB", "MiB", "KiB", "MB", "kB"]))
def test_a_quote_has_no_more_digits_than_what_was_given(whole, thousandths, unit):
    text = f"{whole}.{thousandths:03}{unit}"
    quoted = quote_bytes(parse_bytes(text))
    assert sum(map(str.isdigit, quoted)) <= sum(map(str.isdigit, text))


@given(st.integers(0, 2**50))
def test_what_is_printed_reads_back_to_three_digits(value):
    assert parse_bytes(format_bytes(value)) == pytest.approx(value, rel=6e-3)
    assert parse_time_us(format_time(value)) == pytest.approx(value, rel=6e-3)
