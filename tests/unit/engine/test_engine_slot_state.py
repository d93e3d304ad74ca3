"""The host's mirror of what the device knows about each slot."""

from __future__ import annotations

import torch
from octavo_engine.sequence import Request, Row, Sampling, Sequence
from octavo_engine.slot_state import SlotState

PAGE_SIZE = 4
VOCAB = 10


def state() -> SlotState:
    return SlotState(num_slots=3, max_pages=8, page_size=PAGE_SIZE, vocab_size=VOCAB, device=torch.device("cpu"))


def row(slot: int, start: int, table: tuple[int, ...], *, generation: int = 1, seed: int = 0) -> Row:
    request = Request(key=slot, prompt=[1] * (start + 1), sampling=Sampling(temperature=0.5, top_k=3, seed=seed))
    return Row(
        sequence=Sequence(request=request, tokens=list(request.prompt)),
        start=start,
        num_tokens=1,
        samples=True,
        output_position=0,
        block_table=table,
        slot=slot,
        generation=generation,
    )


def send(slots: SlotState, *rows: Row) -> None:
    indices = torch.tensor([each.slot for each in rows])
    slots.write_tables(rows, indices, torch.from_numpy(slots.block_tables(rows)))


def test_a_decode_after_a_sent_prompt_lacks_nothing() -> None:
    slots = state()
    prompt = row(0, 0, (5, 6))
    slots.meet(prompt)
    send(slots, prompt)
    decode = row(0, 8, (5, 6, 7))
    slots.meet(decode)
    assert not slots.lacks_pages(decode)
    assert slots.tables[0, :2].tolist() == [5, 6]


def test_a_first_decode_behind_cached_pages_lacks_them() -> None:
    slots = state()
    decode = row(0, 8, (5, 6, 7))
    slots.meet(decode)
    assert slots.lacks_pages(decode)
    send(slots, decode)
    assert not slots.lacks_pages(decode)


def test_decodes_write_their_own_entries_page_after_page() -> None:
    slots = state()
    for start, table in ((0, (5,)), (3, (5,)), (4, (5, 6)), (8, (5, 6, 7))):
        decode = row(1, start, table)
        slots.meet(decode)
        assert not slots.lacks_pages(decode), f"at {start}"
        slots.note_decode(decode)


def test_another_occupant_of_a_slot_starts_from_nothing() -> None:
    slots = state()
    first = row(2, 0, (5, 6), generation=1, seed=3)
    slots.meet(first)
    send(slots, first)
    second = row(2, 8, (1, 2, 3), generation=2, seed=2**64 - 1)
    slots.meet(second)
    assert slots.lacks_pages(second)
    assert slots.block_tables([second])[0, :3].tolist() == [1, 2, 3]
    assert slots.seeds[2] == -1


def test_after_a_failed_step_everything_is_sent_again() -> None:
    slots = state()
    prompt = row(0, 0, (5, 6))
    slots.meet(prompt)
    send(slots, prompt)
    slots.forget()
    decode = row(0, 8, (5, 6, 7))
    slots.meet(decode)
    assert slots.lacks_pages(decode)


def test_tables_of_several_rows_are_as_wide_as_the_widest_in_steps() -> None:
    slots = state()
    short, long = row(0, 0, (5,)), row(1, 0, (1, 2, 3))
    for each in (short, long):
        slots.meet(each)
    tables = slots.block_tables([short, long])
    assert tables.shape == (2, 8), "all that a sequence can have: fewer than a step"
    assert tables[0, 0] == 5
    assert tables[1, :3].tolist() == [1, 2, 3]
