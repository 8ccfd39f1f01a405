//! Answers as they come: characters in pieces, strings that end a text, the calculator; and conversations as prompts.

use crate::data::assert_user_error;
use nanochat_gpu::infer::{Answer, ChatFormat, Said, StopStream};
use nanochat_gpu::tokenizer::{Codec, Content, Message, Part, PartKind, Tokenizer, TrainSpec, train};
use proptest::prelude::*;

fn tokenizer() -> Tokenizer {
    train(["one two three, user and assistant 12 34".repeat(20)].into_iter(), &TrainSpec::new(300)).unwrap().0
}

#[test]
fn a_text_ends_before_the_first_stop_string() {
    let mut stream = StopStream::new(&["END".into(), "\n\n".into()]);
    let pushed: Vec<String> = ["a E", "N", "x EN", "D b"].iter().map(|text| stream.push(text)).collect();
    assert_eq!(pushed, ["a ", "", "ENx ", ""]);
    assert!(stream.is_over());
    assert_eq!((stream.push("more"), stream.finish()), (String::new(), String::new()));
    let mut stream = StopStream::new(&["END".into(), String::new()]);
    assert_eq!((stream.push("the EN"), stream.finish()), ("the ".into(), "EN".into()));
    let mut none = StopStream::new(&[]);
    assert_eq!(none.push("abc"), "abc");
}

proptest! {
    /// However a text is cut, what comes out is the text up to the stop string that is whole first.
    #[test]
    fn cuts_change_nothing(text in "[abé]{0,40}", stops in prop::collection::vec("[abé]{1,4}", 0..3), cuts in prop::collection::vec(1usize..5, 0..40)) {
        let mut stream = StopStream::new(&stops);
        let (mut out, mut rest) = (String::new(), text.as_str());
        for cut in cuts {
            let at = rest.char_indices().nth(cut).map_or(rest.len(), |(at, _)| at);
            out += &stream.push(&rest[..at]);
            rest = &rest[at..];
        }
        out += &stream.push(rest);
        out += &stream.finish();
        let first = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at))).min();
        prop_assert_eq!(out, &text[..first.map_or(text.len(), |(_, at)| at)]);
        prop_assert_eq!(stream.is_over(), first.is_some());
    }
}

#[test]
fn what_the_model_asks_is_answered_and_put_behind_it() {
    let tokenizer = tokenizer();
    let special = |name: &str| tokenizer.special(name).unwrap();
    let mut answer = Answer::new(&tokenizer, &[]);
    let mut said = Vec::new();
    let mut say = |answer: &mut Answer, ids: &[u32]| said.extend(ids.iter().map(|&id| answer.token(&tokenizer, id)));
    say(&mut answer, &tokenizer.encode("é is ".as_bytes()));
    say(&mut answer, &[special("<|python_start|>")]);
    say(&mut answer, &tokenizer.encode(b"12 * 3"));
    say(&mut answer, &[special("<|python_end|>")]);
    let Said { calculated, forced, text, .. } = said.last().unwrap().clone();
    assert_eq!((calculated, text.as_str()), (Some(["12 * 3".into(), "36".into()]), ""));
    let want = [vec![special("<|output_start|>")], tokenizer.encode(b"36"), vec![special("<|output_end|>")]].concat();
    assert_eq!(forced, want);
    let before: String = said.iter().map(|said| said.text.as_str()).collect();
    assert_eq!(before, "é is ", "an expression is no text");
    assert!(answer.token(&tokenizer, tokenizer.encode(b"!")[0]).text == "!");
    let part = |kind, text: &str| Part { kind, text: text.into() };
    let parts = [
        part(PartKind::Text, "é is "),
        part(PartKind::Python, "12 * 3"),
        part(PartKind::PythonOutput, "36"),
        part(PartKind::Text, "!"),
    ];
    assert_eq!(answer.content(), Content::Parts(parts.into()));
    assert_eq!(answer.text(), "é is !");
    // What has no value is not answered.
    let mut answer = Answer::new(&tokenizer, &[]);
    for id in
        [vec![special("<|python_start|>")], tokenizer.encode(b"import os"), vec![special("<|python_end|>")]].concat()
    {
        assert_eq!(answer.token(&tokenizer, id), Said::default());
    }
}

#[test]
fn characters_and_stop_strings_come_whole() {
    let tokenizer = tokenizer();
    let mut answer = Answer::new(&tokenizer, &["STOP".into()]);
    // Bytes one by one: ids below 256 are bytes.
    let pieces: Vec<Said> =
        "aé€S STOPx".bytes().map(|byte| answer.token(&tokenizer, tokenizer.encode(&[byte])[0])).collect();
    let texts: Vec<&str> = pieces.iter().map(|said| said.text.as_str()).filter(|text| !text.is_empty()).collect();
    assert_eq!(texts, ["a", "é", "€", "S "]);
    assert_eq!(pieces.iter().position(|said| said.is_over), Some("aé€S STOP".len() - 1));
    assert_eq!((answer.finish(), answer.content()), (String::new(), Content::Text("aé€S ".into())));
}

#[test]
fn conversations_become_prompts_that_fit() {
    let tokenizer = tokenizer();
    let format = ChatFormat::new(&tokenizer, None, [None; 2]).unwrap();
    let turn = |i: usize| [Message::new("user", &format!("one {i}")), Message::new("assistant", "two")];
    let mut messages = vec![Message::new("system", "three")];
    messages.extend((0..4).flat_map(turn));
    messages.push(Message::new("user", "and?"));
    let whole = format.prompt(&tokenizer, &messages).unwrap();
    assert_eq!(format.prompt_within(&tokenizer, &messages, whole.len()).unwrap(), (whole.clone(), 0));
    let (fits, left_out) = format.prompt_within(&tokenizer, &messages, whole.len() - 1).unwrap();
    let kept: Vec<Message> = messages[..1].iter().chain(&messages[3..]).cloned().collect();
    assert_eq!((fits, left_out), (format.prompt(&tokenizer, &kept).unwrap(), 2));
    let (shortest, left_out) = format.prompt_within(&tokenizer, &messages, 20).unwrap();
    assert!(shortest.len() <= 20 && left_out == 8, "{} {left_out}", shortest.len());
    assert_user_error(format.prompt_within(&tokenizer, &messages, 5), &["context has 5 left", "shorten it"]);
    let plain = train(["abc"].into_iter(), &TrainSpec { specials: vec![], ..TrainSpec::new(256) }).unwrap().0;
    assert_user_error(ChatFormat::new(&plain, None, [None; 2]).map(drop), &["no chat template", "`sample`"]);
    let template = ChatFormat::new(&plain, Some("{{ messages[-1].content }}"), [None; 2]).unwrap();
    assert_eq!(template.prompt(&plain, &messages).unwrap(), plain.encode(b"and?"));
}
