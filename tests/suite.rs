//! The tests that are fast enough for every run, in modules that mirror `src/`.

mod tokenizer;
