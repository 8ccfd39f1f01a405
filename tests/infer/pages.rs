//! The allocator of pages: sharing, copies, eviction, and thousands of seeded operations against plain sequences.

use nanochat_gpu::data::random::Draw;
use nanochat_gpu::infer::pages::{OutOfPages, PageCopy, PageTable, Pages};
use nanochat_gpu::ops::paged_attention::PAGE_TOKENS;

const P: usize = PAGE_TOKENS;

fn tokens(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(salt) % 97).collect()
}

/// A sequence that holds `tokens`, known.
fn written(pages: &mut Pages, tokens: &[u32]) -> PageTable {
    let mut table = pages.begin(tokens);
    let missing = tokens.len() - table.tokens();
    pages.grow(&mut table, missing).unwrap();
    pages.publish(&mut table, tokens);
    table
}

#[test]
fn sequences_share_what_they_begin_with_and_no_more() {
    let mut pages = Pages::new(20);
    let first = tokens(3 * P + 5, 0);
    let a = written(&mut pages, &first);
    assert_eq!((a.tokens(), a.pages().len(), pages.available()), (3 * P + 5, 4, 16));
    // The same prompt: all full pages but what the last token needs.
    let same = pages.begin(&first);
    assert_eq!((same.tokens(), same.pages()), (3 * P, &a.pages()[..3]));
    // A prompt that ends with a page leaves it out: its last token must be computed.
    let whole = pages.begin(&first[..2 * P]);
    assert_eq!(whole.tokens(), P);
    // Another token in the second page.
    let mut other = first.clone();
    other[P + 3] += 1;
    let other = pages.begin(&other);
    assert_eq!(other.pages(), &a.pages()[..1]);
    // The same page behind another prefix is another page.
    let moved = pages.begin(&first[P..]);
    assert_eq!(moved.tokens(), 0);
    pages.check_invariants([&a, &same, &whole, &other, &moved]).unwrap();
    for table in [a, same, whole, other, moved] {
        pages.release(table);
    }
    assert_eq!((pages.available(), pages.resting()), (20, 3));
    assert_eq!(pages.begin(&first).tokens(), 3 * P, "what rests is found");
}

#[test]
fn the_first_who_writes_to_a_shared_page_gets_a_copy() {
    let mut pages = Pages::new(6);
    let mut a = written(&mut pages, &tokens(P + 4, 1));
    let mut b = pages.fork(&a);
    assert_eq!((a.pages(), pages.available()), (b.pages(), 4));
    let old = b.pages()[1];
    let copy = pages.grow(&mut b, 1).unwrap();
    assert_eq!(copy, Some(PageCopy { from: old, to: b.pages()[1] }));
    assert_eq!((a.pages()[1], a.pages()[0]), (old, b.pages()[0]));
    assert_eq!(pages.grow(&mut a, 1).unwrap(), None, "it is alone now");
    pages.check_invariants([&a, &b]).unwrap();
}

#[test]
fn without_pages_nothing_changes_and_the_longest_left_is_evicted_first() {
    let mut pages = Pages::new(4);
    let (first, second) = (tokens(2 * P, 2), tokens(2 * P, 3));
    let [a, b] = [&first, &second].map(|tokens| written(&mut pages, tokens));
    let mut c = pages.begin(&tokens(5, 4));
    assert_eq!(pages.grow(&mut c, 1), Err(OutOfPages { pages: 4 }));
    assert_eq!((c.tokens(), c.pages().len()), (0, 0));
    pages.check_invariants([&a, &b, &c]).unwrap();
    pages.release(a);
    pages.release(b);
    // The last page of the first sequence goes, then its first one.
    pages.grow(&mut c, P).unwrap();
    let again = pages.begin(&[&first[..], &[0]].concat());
    assert_eq!(again.tokens(), P);
    pages.release(again);
    pages.grow(&mut c, P).unwrap();
    let again = pages.begin(&[&second[..], &[0]].concat());
    assert_eq!(again.tokens(), P, "of the second the last page went: the first one's was used since");
    pages.check_invariants([&c, &again]).unwrap();
}

/// What a sequence is: its tokens, and the table that says where they lie.
struct Sequence {
    tokens: Vec<u32>,
    table: PageTable,
}

/// The pool, each cell holding a digest of all the tokens up to it: what keys and values depend on.
struct Pool(Vec<u64>);

impl Pool {
    fn digests(tokens: &[u32]) -> impl Iterator<Item = u64> {
        tokens.iter().scan(17u64, |digest, &token| {
            *digest = (*digest ^ u64::from(token)).wrapping_mul(0x100_0000_01b3).rotate_left(23);
            Some(*digest)
        })
    }

    fn write(&mut self, sequence: &Sequence, from: usize) {
        for (at, digest) in Pool::digests(&sequence.tokens).enumerate().skip(from) {
            self.0[sequence.table.pages()[at / P].0 as usize * P + at % P] = digest;
        }
    }

    fn check(&self, sequence: &Sequence) {
        for (at, digest) in Pool::digests(&sequence.tokens).enumerate() {
            let found = self.0[sequence.table.pages()[at / P].0 as usize * P + at % P];
            assert_eq!(found, digest, "token {at} of {}", sequence.tokens.len());
        }
    }
}

/// Appends tokens to a sequence, copying what must be copied, and counts the pages that are evicted for them; false where there is no page.
fn append(pages: &mut Pages, pool: &mut Pool, sequence: &mut Sequence, tokens: &[u32], evicted: &mut usize) -> bool {
    let resting = pages.resting();
    let Ok(copy) = pages.grow(&mut sequence.table, tokens.len()) else { return false };
    *evicted += resting - pages.resting();
    if let Some(PageCopy { from, to }) = copy {
        let from = from.0 as usize * P;
        pool.0.copy_within(from..from + P, to.0 as usize * P);
    }
    let start = sequence.tokens.len();
    sequence.tokens.extend_from_slice(tokens);
    pool.write(sequence, start);
    true
}

#[test]
fn thousands_of_operations_keep_every_sequence_whole() {
    for seed in 0..4 {
        let mut draw = Draw::new(&[seed]);
        let mut below = |n: usize| draw.below(n);
        let mut pages = Pages::new(40);
        let mut pool = Pool(vec![0; 40 * P]);
        let mut sequences: Vec<Sequence> = Vec::new();
        let (mut refused, mut shared, mut evicted) = (0, 0, 0);
        for step in 0..4000 {
            match below(10) {
                // A few prompts that often begin alike.
                0..=2 => {
                    let (salt, len) = (below(3) as u32, 1 + below(4 * P));
                    let mut prompt = tokens(len, salt);
                    if below(2) == 0 {
                        prompt[len / 2] = below(5) as u32;
                    }
                    let table = pages.begin(&prompt);
                    let found = table.tokens();
                    shared += found / P;
                    let mut sequence = Sequence { tokens: prompt[..found].to_vec(), table };
                    pool.check(&sequence);
                    match append(&mut pages, &mut pool, &mut sequence, &prompt[found..], &mut evicted) {
                        true => sequences.push(sequence),
                        false => {
                            refused += 1;
                            pages.release(sequence.table);
                        }
                    }
                }
                3..=5 if !sequences.is_empty() => {
                    let at = below(sequences.len());
                    let more = tokens(1 + below(P), below(4) as u32);
                    refused += usize::from(!append(&mut pages, &mut pool, &mut sequences[at], &more, &mut evicted));
                }
                6 if !sequences.is_empty() => {
                    let at = below(sequences.len());
                    let Sequence { tokens, table } = &mut sequences[at];
                    pages.publish(table, tokens);
                }
                7 if !sequences.is_empty() && sequences.len() < 12 => {
                    let at = below(sequences.len());
                    let table = pages.fork(&sequences[at].table);
                    sequences.push(Sequence { tokens: sequences[at].tokens.clone(), table });
                }
                8 if !sequences.is_empty() => {
                    let at = below(sequences.len());
                    let Sequence { tokens, table } = &mut sequences[at];
                    let keep = tokens.len() - below(tokens.len() % P + 1);
                    pages.shrink(table, keep);
                    tokens.truncate(keep);
                }
                _ if !sequences.is_empty() => {
                    let sequence = sequences.swap_remove(below(sequences.len()));
                    pages.release(sequence.table);
                }
                _ => {}
            }
            pages.check_invariants(sequences.iter().map(|sequence| &sequence.table)).unwrap_or_else(|error| {
                panic!("seed {seed}, step {step}: {error}");
            });
            sequences.iter().for_each(|sequence| pool.check(sequence));
        }
        assert!(refused > 50 && shared > 200 && evicted > 50, "{refused} refused, {shared} shared, {evicted} evicted");
    }
}
