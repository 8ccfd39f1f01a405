//! The tokenizer against tiktoken, Hugging Face's `tokenizers` and a naive trainer.

mod chat;
mod command;
mod encode;
mod hf;
mod template;
mod train;

use nanochat_gpu::tokenizer::{Codec, Pattern, Tokenizer};
use proptest::prelude::*;
use std::sync::LazyLock;
use tiktoken_rs::CoreBPE;

/// The ordinary tokens of a tiktoken vocabulary, read back from its decoder.
fn ranks(bpe: &CoreBPE, size: u32) -> Vec<(Vec<u8>, u32)> {
    (0..size).map(|id| (bpe.decode_bytes(&[id]).expect("ids up to size are tokens"), id)).collect()
}

pub static CL100K: LazyLock<Tokenizer> = LazyLock::new(|| {
    let specials = [("<|endoftext|>", 100257), ("<|fim_prefix|>", 100258), ("<|endofprompt|>", 100276)];
    let specials = specials.map(|(text, id)| (text.to_string(), id));
    Tokenizer::from_ranks(ranks(tiktoken_rs::cl100k_base_singleton(), 100_256), specials, Pattern::Gpt4).unwrap()
});

pub static GPT2: LazyLock<Tokenizer> = LazyLock::new(|| {
    let specials = [("<|endoftext|>".to_string(), 50256)];
    Tokenizer::from_ranks(ranks(tiktoken_rs::r50k_base_singleton(), 50_256), specials, Pattern::Gpt2).unwrap()
});

/// Strings on which splitters and mergers have been known to differ.
pub const AWKWARD: &[&str] = &[
    "",
    " ",
    "  ",
    "\n",
    "\r\n",
    "a",
    "'",
    "''s",
    "I'll say it's what we've DON'T 'RE 'Re 'rE 'LL 'lL 'D'M",
    "'small 'section 'tis 'llama 've're",
    "don\u{2019}t it\u{17f}s '\u{17f} '\u{17f}x \u{17f}'s '\u{212a} 'ß '\u{fb05}",
    "trailing spaces   ",
    "trailing newline\n",
    "trailing mix  \n  ",
    "trailing mix \n\n\t ",
    "  \n  x",
    "\n\n\nx",
    "\n \n \n x",
    "a\r\nb\r\n\r\nc\n\rd\r\r\n",
    "tabs\tand\t\tmore\t\t\tx \t y",
    "nbsp\u{a0}word\u{a0}\u{a0}word \u{a0} x\u{a0}",
    "ls\u{2028}ps\u{2029}nel\u{85}vt\u{b}ff\u{c}x\u{2028}\u{2028}y\u{3000}z\u{3000}\u{3000}",
    "zero\u{200b}width\u{200d}joiner\u{feff}bom",
    "\u{feff}start",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000",
    "٠١٢٣٤٥ ४५६७ ①②③ Ⅷ ½ ²³ 12٣٤5 𝟘𝟙𝟚𝟛",
    "a1b2c3 1a2b3c 1st 2nd",
    "!!! ?!?! ... --- a.b,c;d:e  !  !x !\n\n?\r\n x",
    "foo(bar)[baz]{qux} <html> &amp; #hash @at $5 50% a_b __init__ -1 +2",
    "fn main() {\n    println!(\"{}\", 1 + 2);\n}\n",
    "\t\tif (x) {\n\t\t\treturn;\n\t\t}\n\n\n\n",
    "https://example.org/a/b?c=d&e=f#g user@example.org",
    "Größe façade naïve Ελληνικά Русский עברית العربية हिन्दी ไทย 한국어 日本語 中文字符",
    "日本語のテキスト。中文，标点！「引号」",
    "é e\u{301} a\u{308}\u{304} हि\u{200d}न् \u{301}start",
    "😀 👍🏽 👨\u{200d}👩\u{200d}👧 🇩🇪 ❤\u{fe0f} x😀y 1😀2",
    "\0\u{1}\u{7f}\u{80}\u{9f} control\u{1b}[0m",
    "\u{10ffff}\u{e000}\u{fffd}\u{10000}",
    "<|endoftext|> <|bos|> <|fim_prefix|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                                                                                                       x",
    "supercalifragilisticexpialidocious antidisestablishmentarianism Donaudampfschifffahrtselektrizitätenhauptbetriebswerk",
    "================================================================================================================\n",
    "ǅ ʰ ª º ⁿ ₙ ℵ ⅷ ↉ 〇 〡 ৴ ௰ Ꮳ ꙮ 𐐀 𓀀 ᚠ",
];

/// Text that mixes scripts, white space of all kinds, digits of several scripts, contractions and punctuation.
pub fn mixed_text() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        4 => "[a-zA-Z]{1,8}",
        3 => "[ \t\r\n\u{b}\u{85}\u{a0}\u{2003}\u{2028}\u{3000}]{1,4}",
        4 => " {1,3}",
        2 => "[0-9]{1,7}",
        1 => "[٠-٩०-९Ⅰ-Ⅻ½²①𝟘-𝟡]{1,4}",
        2 => "[.,;:!?'\"()\\-_/<>|#@]{1,4}",
        2 => "'(s|S|t|re|RE|Ve|ll|LL|d|M|\u{17f}|x)",
        1 => "[α-ωа-яא-ת一-龥あ-んก-ฮ가-힣]{1,6}",
        1 => "[\u{300}-\u{36f}\u{200b}-\u{200f}]{1,2}",
        1 => "[😀-🙏🇦-🇿]{1,3}",
        1 => "\\PC{1,4}",
        1 => any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(fragment, 0..24).prop_map(|fragments| fragments.concat())
}

/// Bytes that are partly text and partly not.
pub fn broken_text() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        mixed_text().prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..8),
        mixed_text().prop_map(|text| text.into_bytes().split_last().map_or(vec![], |(_, rest)| rest.to_vec())),
    ];
    proptest::collection::vec(fragment, 0..6).prop_map(|fragments| fragments.concat())
}

/// A small vocabulary of our own, trained on the awkward strings.
pub fn small(pattern: Pattern) -> Tokenizer {
    use nanochat_gpu::tokenizer::{TrainSpec, train};
    let spec = TrainSpec { pattern, ..TrainSpec::new(500) };
    train(AWKWARD.iter(), &spec).unwrap().0
}

/// Encodes with special tokens recognised.
pub fn encode_with_special(tokenizer: &Tokenizer, text: &[u8]) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode_with_special(text, &mut ids);
    ids
}

/// Asserts that `bytes` come back.
pub fn assert_round_trip(tokenizer: &Tokenizer, bytes: &[u8]) {
    assert_eq!(tokenizer.decode(&tokenizer.encode(bytes)), bytes);
}
