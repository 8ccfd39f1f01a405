//! Chats: which ids they become, which of these are trained, and what is refused.

use super::{CL100K, small};
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::tokenizer::{Codec, Message, Pattern, render_chat, render_prompt};

fn messages(list: &[(&str, &str)]) -> Vec<Message> {
    list.iter().map(|(role, text)| Message::new(role, text)).collect()
}

#[test]
fn the_assistants_words_and_end_are_trained() {
    let codec = small(Pattern::Gpt4);
    let list =
        [("system", "Be brief."), ("user", "hi <|bos|>"), ("assistant", "yes"), ("user", "?"), ("assistant", "no")];
    let chat = render_chat(&codec, &messages(&list)).unwrap();
    assert_eq!(chat.ids.len(), chat.mask.len());
    let text = "<|bos|><|user_start|>Be brief.\n\nhi <|bos|><|user_end|><|assistant_start|>yes<|assistant_end|>\
                <|user_start|>?<|user_end|><|assistant_start|>no<|assistant_end|>";
    assert_eq!(String::from_utf8(codec.decode(&chat.ids)).unwrap(), text);
    let trained: Vec<u32> = chat.ids.iter().zip(&chat.mask).filter(|(_, mask)| **mask).map(|(id, _)| *id).collect();
    assert_eq!(codec.decode(&trained), b"yes<|assistant_end|>no<|assistant_end|>");
    // The special token that the user typed is ordinary text.
    assert_eq!(chat.ids.iter().filter(|id| Some(**id) == codec.bos()).count(), 1);
}

#[test]
fn tool_calls_are_trained_and_their_output_is_not() {
    let codec = small(Pattern::Gpt4);
    let json = r#"[{"role":"user","content":"2+2?"},{"role":"assistant","content":[
        {"type":"text","text":"It is "},{"type":"python","text":"2+2"},{"type":"python_output","text":"4"},{"type":"text","text":"4."}]}]"#;
    let list: Vec<Message> = serde_json::from_str(json).unwrap();
    let chat = render_chat(&codec, &list).unwrap();
    let trained: Vec<u32> = chat.ids.iter().zip(&chat.mask).filter(|(_, mask)| **mask).map(|(id, _)| *id).collect();
    assert_eq!(codec.decode(&trained), b"It is <|python_start|>2+2<|python_end|>4.<|assistant_end|>");
    let all = String::from_utf8(codec.decode(&chat.ids)).unwrap();
    assert!(all.contains("<|python_end|><|output_start|>4<|output_end|>4."), "{all}");
    assert_eq!(serde_json::from_str::<Vec<Message>>(&serde_json::to_string(&list).unwrap()).unwrap(), list);
}

#[test]
fn a_prompt_ends_where_the_assistant_begins() {
    let codec = small(Pattern::Gpt4);
    let ids = render_prompt(&codec, &messages(&[("user", "hi")])).unwrap();
    assert_eq!(codec.decode(&ids), b"<|bos|><|user_start|>hi<|user_end|><|assistant_start|>");
    assert!(render_prompt(&codec, &messages(&[("user", "hi"), ("assistant", "yes")])).is_err());
    assert!(render_prompt(&codec, &[]).is_err());
}

#[test]
fn wrong_chats_are_users_errors_of_one_line() {
    let codec = small(Pattern::Gpt4);
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[], "at least one message"),
        (&[("system", "x")], "after the system message"),
        (&[("assistant", "x")], "message 0 of the chat has the role \"assistant\" where \"user\" is due"),
        (&[("user", "x"), ("user", "y")], "message 1 of the chat has the role \"user\" where \"assistant\" is due"),
        (&[("user", "x"), ("system", "y")], "message 1"),
        (&[("system", "s"), ("user", "x"), ("robot", "y")], "message 2 of the chat has the role \"robot\""),
    ];
    for (list, expected) in cases {
        let error = render_chat(&codec, &messages(list)).unwrap_err();
        let line = error.to_string();
        assert!(is_user_error(&error) && line.contains(expected) && !line.contains('\n'), "{line}");
    }
    let error = render_chat(&*CL100K, &messages(&[("user", "x")])).unwrap_err();
    assert!(is_user_error(&error) && error.to_string().contains("<|bos|>"), "{error}");
    let parts = serde_json::from_str(r#"[{"role":"user","content":[{"type":"text","text":"x"}]}]"#);
    assert!(render_chat(&codec, &parts.map(|list: Vec<Message>| list).unwrap()).is_err());
}
