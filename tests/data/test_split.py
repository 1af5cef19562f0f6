"""Documents: sizes, breaks, and nothing lost but white space."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fedgpt2.data.document_splitting import document_spans


def documents(text: str, target: int) -> list[str]:
    raw = text.encode()
    return [raw[start:end].decode() for start, end in document_spans(raw, target)]


def test_blank_text_has_no_documents():
    assert documents("", 100) == documents(" \r\n\t ", 100) == []


def test_a_short_text_is_one_document():
    assert documents("  One.\n\nTwo. \n", 100) == ["One.\n\nTwo."]


def test_a_blank_line_is_the_first_choice():
    text = "A sentence that ends. " * 3 + "\r\n \r\n" + "Another one that ends. " * 6
    assert documents(text, 80)[0] == ("A sentence that ends. " * 3).strip()


def test_a_sentence_end_is_the_second():
    text = "We saw Mr. Smith of the U. S. Army, No. 5, yesterday. He was well. " * 8
    assert all(part.endswith("yesterday.") or part.endswith("well.") for part in documents(text, 100))


def test_full_width_stops_end_sentences():
    assert all(part.endswith("。") for part in documents("吾輩は猫である。" * 40, 100))


def test_white_space_is_the_third():
    assert set(" ".join(documents("word " * 200, 100)).split()) == {"word"}


def test_then_any_character():
    parts = documents("é" * 400, 101)
    assert "".join(parts) == "é" * 400
    assert all(len(part.encode()) <= 151 for part in parts)


def test_bytes_without_any_break_are_cut_all_the_same():
    assert document_spans(b"\x80" * 400, 100) == [(0, 150), (150, 300), (300, 400)]


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("abcdE é。.!?\"') \n\r\t猫👩"), max_size=400), target=st.integers(8, 60))
def test_only_white_space_is_lost_and_sizes_hold(text: str, target: int):
    parts = documents(text, target)
    blanks = " \n\r\t\x0b\x0c"
    drop = {ord(c): None for c in blanks}
    assert "".join(parts).translate(drop) == text.translate(drop)
    assert all(part == part.strip(blanks) and part for part in parts)
    assert all(len(part.encode()) <= target * 3 // 2 for part in parts)
