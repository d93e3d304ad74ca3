from __future__ import annotations

from octavo.page_hash import prefix_hashes, root_hash, short_hash
from octavo_engine.compat.page_ledger import PageLedger, PageTrail
from octavo_engine.compat.step_feed import MAX_BATCHES, Batch, PageChange, Subscription
from octavo_engine.compat.throughput import WINDOW_S, Throughput

ROOT = root_hash(model_revision="model", tokenizer_revision="tokenizer", page_size=4)
TOKENS = list(range(50, 62))


def three_pages():
    return PageTrail(ROOT, 4).extend(TOKENS)


def hashes(pages):
    return [page.short_hash for page in pages]


def test_a_trail_names_pages_as_the_contract_does():
    trail = PageTrail(ROOT, 4)
    pages = [page for token in TOKENS for page in trail.extend([token])]
    assert hashes(pages) == [short_hash(full) for full in prefix_hashes(ROOT, TOKENS, 4)]
    assert [page.parent for page in pages] == [None, *hashes(pages)[:2]]
    assert pages == three_pages()


def test_forks_of_a_trail_share_its_beginning_and_no_more():
    trail = PageTrail(ROOT, 4)
    trail.extend(TOKENS[:6])
    left, right = trail.fork(), trail.fork()
    (of_left,), (of_right,) = left.extend([1, 2]), right.extend([3, 4])
    assert of_left.parent == of_right.parent
    assert of_left.short_hash != of_right.short_hash


def test_a_page_is_told_when_it_is_resident_and_its_tokens_are_known():
    pages, ledger = three_pages(), PageLedger()
    assert not ledger.note(pages)
    assert ledger.apply(hashes(pages)[:2], []).stored == tuple(pages[:2])
    assert ledger.told() == pages[:2]


def test_a_resident_page_is_told_when_its_tokens_become_known():
    pages, ledger = three_pages(), PageLedger()
    assert not ledger.apply(hashes(pages), [])
    assert ledger.note(pages).stored == tuple(pages)
    assert not ledger.note(pages), "once is enough"


def test_a_page_waits_for_the_one_before_it():
    pages, ledger = three_pages(), PageLedger()
    ledger.note(pages)
    assert not ledger.apply(hashes(pages)[1:], [])
    ledger.apply(hashes(pages)[:1], [])
    assert ledger.note(pages).stored == tuple(pages[1:])


def test_only_told_pages_are_removed():
    pages, ledger = three_pages(), PageLedger()
    ledger.note(pages)
    ledger.apply(hashes(pages)[:1], [])
    assert ledger.apply([], [hashes(pages)[0], 99]).removed == (hashes(pages)[0],)
    assert ledger.told() == []


def test_a_page_without_the_one_before_it_is_in_no_snapshot():
    pages, ledger = three_pages(), PageLedger()
    ledger.note(pages)
    ledger.apply(hashes(pages), [])
    ledger.apply([], hashes(pages)[1:2])
    assert ledger.told() == pages[:1]


def test_an_evicted_page_is_told_again_after_it_was_noted_again():
    pages, ledger = three_pages(), PageLedger()
    ledger.note(pages)
    ledger.apply(hashes(pages), [])
    ledger.apply([], hashes(pages)[2:])
    ledger.note(pages)
    assert ledger.apply(hashes(pages)[2:], []).stored == (pages[2],)


def test_the_oldest_unused_tokens_are_forgotten():
    pages, ledger = three_pages(), PageLedger(max_known=2)
    ledger.note(pages)
    assert not ledger.apply(hashes(pages), []), "the first page is forgotten, so none after it can be told"
    assert ledger.note(pages).stored == tuple(pages)


def test_a_subscriber_that_does_not_read_lags_and_holds_nothing():
    subscription = Subscription(0, [])
    for sequence in range(MAX_BATCHES + 1):
        subscription.put(Batch(sequence, PageChange(())))
    assert subscription.lags
    assert subscription.take() == []


def test_throughput_is_that_of_the_last_seconds_and_then_nothing():
    throughput, step_ns = Throughput(), 50_000_000
    for step in range(1, 101):
        throughput.add(10, step * step_ns)
    assert throughput.tokens_per_s(100 * step_ns) == 200
    assert throughput.tokens_per_s(120 * step_ns) == 100
    assert throughput.tokens_per_s(100 * step_ns + int(WINDOW_S * 1e9)) == 0
