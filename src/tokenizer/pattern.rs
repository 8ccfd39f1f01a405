//! The split patterns that cut text into pieces before merging: their names, their regular expressions, and the
//! spellings under which other programs write them.

/// A split pattern. The named ones have a hand-written splitter (`split.rs`); any other runs as a regular expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// GPT-2: contractions in lower case, a space sticks to the word, number or punctuation after it.
    Gpt2,
    /// SmolLM: every digit a piece of its own, what lies between them as GPT-2 would cut it alone.
    SmolLm,
    /// GPT-4 (tiktoken's `cl100k_base`): contractions in any case, digits in groups of up to three, one leading
    /// non-letter sticks to a word, line ends close a piece, white space that ends the text is one piece.
    Gpt4,
    /// GPT-4 with every digit a piece of its own.
    Gpt4SingleDigit,
    /// GPT-4 without the rule about white space at the end of the text, as Llama 3's `tokenizer.json` has it.
    Llama3,
    /// As Llama 3, digits in groups of up to two: what nanochat in Python trains with.
    Llama3TwoDigits,
    /// As Llama 3, every digit a piece of its own: Qwen 2 and 3.
    Qwen2,
    /// Any other regular expression, in the syntax of the `fancy-regex` crate.
    Custom(String),
}

/// The rules of the GPT-4 family, which its members choose differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gpt4Rules {
    /// Most digits in one piece.
    pub digits_max: usize,
    /// Whether white space that reaches the end of the text is one piece even when it holds line ends.
    pub join_trailing_space: bool,
}

/// A named pattern: its name, the expression we write, and other spellings of the same language that we read.
struct Named {
    pattern: Pattern,
    name: &'static str,
    regex: &'static str,
    other_spellings: &'static [&'static str],
}

// The expressions we write avoid `{1,3}+`: Oniguruma, which Hugging Face uses, reads that as a repeat of a repeat.
static NAMED: [Named; 7] = [
    Named {
        pattern: Pattern::Gpt2,
        name: "gpt2",
        regex: r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        other_spellings: &[
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        ],
    },
    Named {
        pattern: Pattern::SmolLm,
        name: "smollm",
        regex: r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
        other_spellings: &[],
    },
    Named {
        pattern: Pattern::Gpt4,
        name: "gpt4",
        regex: r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++$|\s*[\r\n]+|\s+(?!\S)|\s+",
        other_spellings: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        ],
    },
    Named {
        pattern: Pattern::Gpt4SingleDigit,
        name: "gpt4-single-digit",
        regex: r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++$|\s*[\r\n]+|\s+(?!\S)|\s+",
        other_spellings: &[],
    },
    Named {
        pattern: Pattern::Llama3,
        name: "llama3",
        regex: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        other_spellings: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    },
    Named {
        pattern: Pattern::Llama3TwoDigits,
        name: "llama3-two-digits",
        regex: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        other_spellings: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    },
    Named {
        pattern: Pattern::Qwen2,
        name: "qwen2",
        regex: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        other_spellings: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    },
];

impl Pattern {
    /// The patterns that have a name, in a fixed order.
    pub fn named() -> impl Iterator<Item = &'static Pattern> {
        NAMED.iter().map(|named| &named.pattern)
    }

    /// The pattern that `regex` spells: a named one when the spelling is known, else [`Pattern::Custom`].
    pub fn from_regex(regex: &str) -> Self {
        NAMED
            .iter()
            .find(|named| named.regex == regex || named.other_spellings.contains(&regex))
            .map_or_else(|| Pattern::Custom(regex.to_owned()), |named| named.pattern.clone())
    }

    /// The regular expression, spelled so that `fancy-regex` and Oniguruma (Hugging Face) both read it.
    pub fn regex(&self) -> &str {
        match self {
            Pattern::Custom(regex) => regex,
            named => named.row().regex,
        }
    }

    /// A short name: `gpt4`, or `custom`.
    pub fn name(&self) -> &'static str {
        match self {
            Pattern::Custom(_) => "custom",
            named => named.row().name,
        }
    }

    fn row(&self) -> &'static Named {
        NAMED.iter().find(|named| named.pattern == *self).expect("every named pattern has a row")
    }

    /// The choices of a member of the GPT-4 family; `None` for the other patterns.
    pub(super) fn gpt4_rules(&self) -> Option<Gpt4Rules> {
        let (digits_max, join_trailing_space) = match self {
            Pattern::Gpt4 => (3, true),
            Pattern::Gpt4SingleDigit => (1, true),
            Pattern::Llama3 => (3, false),
            Pattern::Llama3TwoDigits => (2, false),
            Pattern::Qwen2 => (1, false),
            Pattern::Gpt2 | Pattern::SmolLm | Pattern::Custom(_) => return None,
        };
        Some(Gpt4Rules { digits_max, join_trailing_space })
    }
}
