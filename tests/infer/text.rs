//! UTF-8 in pieces: no character is split, and the whole is what a lossy conversion of all bytes gives.

use crate::data::codec;
use nanochat_gpu::infer::Utf8Stream;
use nanochat_gpu::tokenizer::end_ids;
use proptest::prelude::*;

fn streamed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut stream = Utf8Stream::default();
    let mut text: String = pieces.into_iter().map(|piece| stream.push(piece)).collect();
    text += &stream.finish();
    text
}

#[test]
fn every_split_of_text_in_many_scripts() {
    let text = "aé€😀ß\u{10ffff}日本\u{0}語z👩\u{200d}👧";
    let bytes = text.as_bytes();
    for i in 0..=bytes.len() {
        for j in i..=bytes.len() {
            let mut stream = Utf8Stream::default();
            for (piece, end) in [(&bytes[..i], i), (&bytes[i..j], j), (&bytes[j..], bytes.len())] {
                let before: usize = (0..=end).rev().find(|&at| text.is_char_boundary(at)).unwrap();
                let (start, out) = (end - piece.len(), stream.push(piece));
                let after_start = (0..=start).rev().find(|&at| text.is_char_boundary(at)).unwrap();
                assert_eq!(out, text[after_start..before], "{i} {j}: out too early or too late");
            }
            assert_eq!(stream.finish(), "");
        }
    }
    assert_eq!(streamed(bytes.chunks(1)), text);
}

#[test]
fn invalid_bytes_become_replacement_characters() {
    for bytes in [
        &b"a\xFFb"[..],
        b"\x80\x80",
        b"\xE2\x82",
        b"\xE2\x82x",
        b"\xF0\x9F\x98",
        b"\xF0\x9F\xE2\x82\xAC",
        b"\xC0\xAF",
        b"\xED\xA0\x80",
        b"\xF5\x80\x80\x80",
        b"ok\xC3",
    ] {
        for at in 0..=bytes.len() {
            assert_eq!(streamed([&bytes[..at], &bytes[at..]]), String::from_utf8_lossy(bytes), "{bytes:x?} at {at}");
        }
        assert_eq!(streamed(bytes.chunks(1)), String::from_utf8_lossy(bytes));
    }
    let mut stream = Utf8Stream::default();
    assert_eq!(
        (stream.push(b"\xE2\x82"), stream.finish(), stream.push(b"a")),
        ("".into(), "\u{FFFD}".into(), "a".into())
    );
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..12)) {
        let whole = pieces.concat();
        prop_assert_eq!(streamed(pieces.iter().map(Vec::as_slice)), String::from_utf8_lossy(&whole));
    }
}

#[test]
fn texts_end_at_bos_and_at_end_tokens() {
    let ids = end_ids(&*codec());
    assert!(ids.contains(&crate::data::BOS) && ids.contains(&260));
}
