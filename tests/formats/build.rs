//! GGUF files put together by hand, so that every part of one can be wrong.

use nanochat_gpu::tokenizer::Tokenizer;
use serde_json::Value;

/// A file as its parts.
#[derive(Clone)]
pub struct File {
    pub magic: [u8; 4],
    pub version: u32,
    /// Tensors and entries that the head claims; what there is where none is given.
    pub claimed: [Option<u64>; 2],
    /// Keys with type and value.
    pub entries: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub data: Vec<u8>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Columns first, as in the file.
    pub extents: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

fn plain(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A value of the metadata: its type and its bytes.
pub fn value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), bytes].concat()
}

pub fn count(n: u32) -> Vec<u8> {
    value(4, &n.to_le_bytes())
}

pub fn number(x: f32) -> Vec<u8> {
    value(6, &x.to_le_bytes())
}

pub fn flag(x: bool) -> Vec<u8> {
    value(7, &[u8::from(x)])
}

pub fn text(text: &str) -> Vec<u8> {
    value(8, &plain(text))
}

pub fn texts(list: &[String]) -> Vec<u8> {
    let items = list.iter().flat_map(|text| plain(text));
    value(9, &[&8u32.to_le_bytes()[..], &(list.len() as u64).to_le_bytes(), &items.collect::<Vec<u8>>()].concat())
}

pub fn integers(list: &[i32]) -> Vec<u8> {
    let items = list.iter().flat_map(|n| n.to_le_bytes());
    value(9, &[&5u32.to_le_bytes()[..], &(list.len() as u64).to_le_bytes(), &items.collect::<Vec<u8>>()].concat())
}

impl File {
    /// A `llama` of one block (width 32, two heads of 16, one key/value head, feed-forward 32) in F32, with `tokenizer`.
    pub fn small(tokenizer: &Tokenizer) -> File {
        let mut file = File {
            magic: *b"GGUF",
            version: 3,
            claimed: [None; 2],
            entries: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
        };
        file.set("general.architecture", text("llama"));
        for (key, n) in [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            file.set(&format!("llama.{key}"), count(n));
        }
        file.set("llama.attention.layer_norm_rms_epsilon", number(1e-5));
        let rows = file.set_tokenizer(tokenizer) as u64;
        for (name, extents) in [
            ("token_embd.weight", vec![32, rows]),
            ("output_norm.weight", vec![32]),
            ("blk.0.attn_norm.weight", vec![32]),
            ("blk.0.attn_q.weight", vec![32, 32]),
            ("blk.0.attn_k.weight", vec![32, 16]),
            ("blk.0.attn_v.weight", vec![32, 16]),
            ("blk.0.attn_output.weight", vec![32, 32]),
            ("blk.0.ffn_norm.weight", vec![32]),
            ("blk.0.ffn_gate.weight", vec![32, 32]),
            ("blk.0.ffn_up.weight", vec![32, 32]),
            ("blk.0.ffn_down.weight", vec![32, 32]),
        ] {
            file.add(name, &extents);
        }
        file
    }

    /// Appends a tensor in F32.
    pub fn add(&mut self, name: &str, extents: &[u64]) {
        let elems: u64 = extents.iter().product();
        let offset = self.data.len() as u64;
        self.tensors.push(Tensor { name: name.into(), extents: extents.to_vec(), kind: 0, offset });
        let values = (0..elems).flat_map(|i| (((i * 37 + offset) % 101) as f32 / 101.0 - 0.5).to_le_bytes());
        self.data.extend(values);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    /// Replaces or appends an entry.
    pub fn set(&mut self, key: &str, value: Vec<u8>) {
        self.remove(key);
        self.entries.push((key.to_string(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.entries.retain(|(other, _)| other != key);
    }

    /// A tokenizer as llama.cpp's converter writes it: nothing of it is only ours. Its size.
    pub fn set_tokenizer(&mut self, tokenizer: &Tokenizer) -> usize {
        let file: Value = serde_json::from_str(&tokenizer.to_json()).unwrap();
        let mut tokens: Vec<(String, u64, i32)> = Vec::new();
        for (text, id) in file["model"]["vocab"].as_object().unwrap() {
            tokens.push((text.clone(), id.as_u64().unwrap(), 1));
        }
        for token in file["added_tokens"].as_array().unwrap() {
            let (text, id) = (token["content"].as_str().unwrap(), token["id"].as_u64().unwrap());
            tokens.retain(|(_, other, _)| *other != id);
            tokens.push((text.into(), id, 3));
        }
        tokens.sort_by_key(|(_, id, _)| *id);
        assert!(tokens.iter().enumerate().all(|(i, (_, id, _))| i as u64 == *id), "no holes");
        let (spelled, kinds): (Vec<String>, Vec<i32>) = tokens.into_iter().map(|(text, _, kind)| (text, kind)).unzip();
        let merges = file["model"]["merges"].as_array().unwrap().iter();
        self.set("tokenizer.ggml.model", text("gpt2"));
        self.set("tokenizer.ggml.pre", text("gpt-2"));
        self.set("tokenizer.ggml.tokens", texts(&spelled));
        self.set("tokenizer.ggml.token_type", integers(&kinds));
        self.set(
            "tokenizer.ggml.merges",
            texts(&merges.map(|merge| merge.as_str().unwrap().to_owned()).collect::<Vec<_>>()),
        );
        spelled.len()
    }

    /// Where the list of tensors begins, and where their data do.
    pub fn places(&self) -> [usize; 2] {
        let entries: usize = self.entries.iter().map(|(key, value)| 8 + key.len() + value.len()).sum();
        let infos: usize = self.tensors.iter().map(|t| 8 + t.name.len() + 4 + 8 * t.extents.len() + 12).sum();
        [24 + entries, (24 + entries + infos).next_multiple_of(32)]
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.claimed[0].unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.claimed[1].unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            out.extend(plain(key));
            out.extend(value);
        }
        for tensor in &self.tensors {
            out.extend(plain(&tensor.name));
            out.extend((tensor.extents.len() as u32).to_le_bytes());
            tensor.extents.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}
