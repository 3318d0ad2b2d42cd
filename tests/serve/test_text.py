"""Text that comes in pieces is the text that comes at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from puzzle_search.serve.text import TextStream

# A token for every byte: characters beyond ASCII take several.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENIZER = Tokenizer(
    models.BPE(vocab={letter: number for number, letter in enumerate(ALPHABET)}, merges=[])
)
TOKENIZER.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
TOKENIZER.decoder = decoders.ByteLevel()

TEXTS = st.text(alphabet="ab \u00e9\u2603\U0001f600", max_size=24)
STOPS = st.lists(st.text(alphabet="ab\u2603", min_size=1, max_size=4), max_size=4)


@given(prompt=TEXTS, text=TEXTS, stops=STOPS)
def test_pieces_add_up_to_the_text_before_the_first_stop(
    prompt: str, text: str, stops: list[str]
) -> None:
    stream = TextStream(TOKENIZER, TOKENIZER.encode(prompt).ids, tuple(stops))
    made = ""
    for token in TOKENIZER.encode(text).ids:
        made += stream.add(token)
        if stream.stopped:
            break
    else:
        made += stream.rest()
    # The earliest end of a stop string decides, as tokens come; of those, the longest.
    ends = {
        place + len(stop): min(
            found - len(other)
            for other in stops
            for found in [place + len(stop)]
            if text[:found].endswith(other)
        )
        for stop in stops
        if (place := text.find(stop)) >= 0
    }
    assert stream.stopped is bool(ends)
    assert made == (text[: ends[min(ends)]] if ends else text)


@given(ids=st.lists(st.integers(0, 255), max_size=24))
def test_bytes_that_are_no_text_end_nothing(ids: list[int]) -> None:
    stream = TextStream(TOKENIZER, [], ("never",))
    made = "".join(stream.add(token) for token in ids) + stream.rest()
    assert TOKENIZER.decode(ids, skip_special_tokens=True).startswith(made)
