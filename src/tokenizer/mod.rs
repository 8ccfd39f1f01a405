//! Stand-in for the tokenizer's interface: what `data` needs of it, with a plain byte codec behind `Tokenizer::load`.

use std::path::Path;

/// Maps bytes to token ids and back.
pub trait Codec: Send + Sync {
    /// Appends the ids of `bytes` to `out`; no special token is added.
    fn encode_into(&self, bytes: &[u8], out: &mut Vec<u32>);
    /// Appends the bytes of `ids` to `out`.
    fn decode_into(&self, ids: &[u32], out: &mut Vec<u8>);
    /// The bytes of one token; `None` for special tokens and unknown ids.
    fn token_bytes(&self, id: u32) -> Option<&[u8]>;
    /// Number of ids, specials included.
    fn vocab_size(&self) -> usize;
    /// The id of a special token by name.
    fn special(&self, name: &str) -> Option<u32>;
    /// The id that begins every document.
    fn bos(&self) -> Option<u32> {
        self.special("<|bos|>")
    }
    /// The ids of `bytes`.
    fn encode(&self, bytes: &[u8]) -> Vec<u32> {
        let mut out = Vec::new();
        self.encode_into(bytes, &mut out);
        out
    }
    /// The bytes of `ids`.
    fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut out = Vec::new();
        self.decode_into(ids, &mut out);
        out
    }
}

/// A tokenizer read from a folder.
pub struct Tokenizer {
    bytes: Vec<u8>,
}

impl Tokenizer {
    /// Reads `DIR/tokenizer.json`, or the file itself.
    pub fn load(path: &Path) -> anyhow::Result<Tokenizer> {
        if !path.exists() {
            crate::user_bail!("no tokenizer at {}; make one with 'tokenizer train'", path.display());
        }
        Ok(Tokenizer { bytes: (0..=255).collect() })
    }

    /// Hexadecimal digest of the vocabulary.
    pub fn digest(&self) -> String {
        blake3::hash(&self.bytes).to_hex().to_string()
    }
}

impl Codec for Tokenizer {
    fn encode_into(&self, bytes: &[u8], out: &mut Vec<u32>) {
        out.extend(bytes.iter().map(|&byte| u32::from(byte)));
    }

    fn decode_into(&self, ids: &[u32], out: &mut Vec<u8>) {
        out.extend(ids.iter().filter_map(|&id| u8::try_from(id).ok()));
    }

    fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id as usize..id as usize + 1)
    }

    fn vocab_size(&self) -> usize {
        260
    }

    fn special(&self, name: &str) -> Option<u32> {
        (name == "<|bos|>").then_some(256)
    }
}

/// Special tokens and the chat template.
pub mod special {
    use super::Codec;

    /// One message of a chat.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Message {
        /// `system`, `user` or `assistant`.
        pub role: String,
        /// What was said.
        pub content: String,
    }

    /// The ids of a chat, BOS first, and for each whether the assistant said it.
    pub fn render_chat(codec: &dyn Codec, messages: &[Message]) -> anyhow::Result<(Vec<u32>, Vec<bool>)> {
        let (Some(bos), Some(start), Some(end)) = (codec.bos(), codec.special("<|start|>"), codec.special("<|end|>"))
        else {
            crate::user_bail!("this tokenizer has no special tokens for chats");
        };
        let (mut ids, mut mask) = (vec![bos], vec![false]);
        for message in messages {
            let said = message.role == "assistant";
            ids.push(start);
            mask.push(false);
            codec.encode_into(message.content.as_bytes(), &mut ids);
            ids.push(end);
            mask.resize(ids.len(), said);
        }
        Ok((ids, mask))
    }
}
