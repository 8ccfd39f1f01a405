//! `concepts`: words as vertices of a hypercube: neighbours, nearest words, an analogy by bits, and a plot.

use super::output::print;
use crate::formats::checkpoint::{LoadedModel, load_model, replace_file};
use crate::model::Carried;
use crate::model::gpt::Rows;
use crate::model::hypercube::geometry::{Vertex, analogy, bisect, distance, geodesic, neighbours, to_bits};
use crate::model::hypercube::vertices;
use crate::ops::hypercube::BITS_MAX;
use crate::tape::Tape;
use crate::tensor::{Arena, DType};
use crate::tokenizer::{Codec, Tokenizer};
use crate::user_bail;
use anyhow::anyhow;
use clap::Args;
use plotters::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Show where words lie on a hypercube laid over a model's embedding
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nanochat-gpu concepts --checkpoint runs/first king queen man --plot concepts.svg\n\n\
                  Tokens are laid onto vertices of 16 bits by balanced bisection of the embedding: near ones share bits. \
                  Three words give the analogy first - second + third. \
                  Of a model with a hypercube of its own, the vertex that its stream passes at each word is shown too."
)]
pub struct ConceptsCommand {
    /// Folder of a checkpoint, or of a run, whose newest checkpoint is taken; or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    checkpoint: PathBuf,
    /// Words; one of several tokens is shown by its first
    #[arg(value_name = "WORD", required = true)]
    words: Vec<String>,
    /// Nearest words shown of each
    #[arg(long, value_name = "N", default_value_t = 6)]
    nearest: usize,
    /// Draw all tokens and these words to an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// All tokens on their vertices.
struct Map {
    bits: usize,
    vertices: Vec<Vertex>,
    tokens: HashMap<Vertex, u32>,
}

/// A word that was asked for.
struct Word {
    text: String,
    id: u32,
    /// Tokens of the whole word.
    count: usize,
}

/// Runs the command. Errors: user errors for a checkpoint without tokenizer and words without tokens, and those of opening the
/// checkpoint.
pub fn run(command: ConceptsCommand) -> anyhow::Result<()> {
    let mut opened = load_model(&command.checkpoint, DType::F32)?;
    let Some(tokenizer) = opened.tokenizer.take() else {
        user_bail!("{} has no tokenizer.json; copy the model's there", opened.path.display());
    };
    let map = map(&opened, &tokenizer);
    let words = command.words.iter().map(|text| word(text, &tokenizer)).collect::<anyhow::Result<Vec<_>>>()?;
    let streams = stream_vertices(&opened, &tokenizer, &words)?;
    let shown: Vec<Value> = words
        .iter()
        .enumerate()
        .map(|(i, word)| describe(&map, &tokenizer, word, streams.as_ref().map(|s| s[i]), command.nearest))
        .collect();
    let mut object = json!({"bits": map.bits, "words": shown});
    if let [a, b, c, ..] = &words[..] {
        let [va, vb, vc] = [a, b, c].map(|word| map.vertices[word.id as usize]);
        let at = analogy(va, vb, vc);
        let near = map.nearest(at, &[a.id, b.id, c.id], command.nearest);
        object["analogy"] = json!({
            "terms": [a.text, b.text, c.text],
            "vertex": binary(at, map.bits),
            "steps": geodesic(vb, va).len() - 1,
            "nearest": listed(&near, &tokenizer),
        });
    }
    if let Some(path) = &command.plot {
        plot(path, &map, &words)?;
    }
    match command.json {
        true => print(format!("{object}\n").as_bytes()),
        false => print(text(&object).as_bytes()),
    }
}

fn map(opened: &LoadedModel, tokenizer: &Tokenizer) -> Map {
    let embedding = opened.params.view(opened.model.embedding());
    let ([_, c], count) = (embedding.dims(), tokenizer.vocab_size());
    let bits = BITS_MAX.max(count.next_power_of_two().trailing_zeros() as usize);
    let vertices = bisect(&embedding.as_slice::<f32>()[..count * c], c, bits);
    let tokens = vertices.iter().enumerate().map(|(id, &vertex)| (vertex, id as u32)).collect();
    Map { bits, vertices, tokens }
}

impl Map {
    /// The tokens nearest to a vertex, `except` left out: distance, then id.
    fn nearest(&self, vertex: Vertex, except: &[u32], count: usize) -> Vec<(u32, u32)> {
        let all = self.vertices.iter().enumerate().map(|(id, &v)| (distance(vertex, v), id as u32));
        let mut all: Vec<(u32, u32)> = all.filter(|(_, id)| !except.contains(id)).collect();
        all.sort_unstable();
        all.truncate(count);
        all
    }
}

/// The token of a word as it stands inside a text, or else at its beginning.
fn word(text: &str, tokenizer: &Tokenizer) -> anyhow::Result<Word> {
    let tokens = |text: String| {
        let mut ids = Vec::new();
        tokenizer.encode_into(text.as_bytes(), &mut ids);
        ids
    };
    let (inside, alone) = (tokens(format!(" {text}")), tokens(text.to_string()));
    let ids = if inside.len() <= alone.len() { inside } else { alone };
    match ids.first() {
        Some(&id) => Ok(Word { text: text.to_string(), id, count: ids.len() }),
        None => user_bail!("{text:?} has no token; give a word"),
    }
}

/// The vertices that the model's own stream passes at each word after the beginning of a document; none without a hypercube.
fn stream_vertices(opened: &LoadedModel, tokenizer: &Tokenizer, words: &[Word]) -> anyhow::Result<Option<Vec<Vertex>>> {
    if !opened.model.config().parts.hypercube.enabled {
        return Ok(None);
    }
    let arena = Arena::new(1 << 32)?;
    let first = tokenizer.bos().unwrap_or(0);
    let tokens: Vec<u32> = words.iter().flat_map(|word| [first, word.id]).collect();
    let rows = Rows::new(&arena, &tokens, 2, None);
    let code = opened.model.output(&mut Tape::inference(&arena, &opened.params), &rows, &mut Carried::default()).code;
    let all = code.as_ref().map(vertices);
    Ok(all.map(|all| all.into_iter().skip(1).step_by(2).collect()))
}

/// Highest bit first, so that near ones begin alike.
fn binary(vertex: Vertex, bits: usize) -> String {
    to_bits(vertex, bits).iter().rev().map(|&bit| if bit > 0 { '1' } else { '0' }).collect()
}

fn shown(id: u32, tokenizer: &Tokenizer) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}

fn listed(near: &[(u32, u32)], tokenizer: &Tokenizer) -> Value {
    near.iter().map(|&(steps, id)| json!({"token": shown(id, tokenizer), "id": id, "distance": steps})).collect()
}

fn describe(map: &Map, tokenizer: &Tokenizer, word: &Word, stream: Option<Vertex>, nearest: usize) -> Value {
    let vertex = map.vertices[word.id as usize];
    let occupied = neighbours(vertex, map.bits).filter_map(|v| map.tokens.get(&v)).map(|&id| shown(id, tokenizer));
    let mut value = json!({
        "word": word.text,
        "token": shown(word.id, tokenizer),
        "id": word.id,
        "tokens": word.count,
        "vertex": binary(vertex, map.bits),
        "neighbours": occupied.collect::<Vec<_>>(),
        "nearest": listed(&map.nearest(vertex, &[word.id], nearest), tokenizer),
    });
    if let Some(stream) = stream {
        value["stream_vertex"] = stream.0.into();
    }
    value
}

fn text(object: &Value) -> String {
    let string = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let list = |near: &Value| {
        let one = |near: &Value| format!("{:?} ({})", string(&near["token"]), near["distance"]);
        near.as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(", ")
    };
    let mut out = String::new();
    for word in object["words"].as_array().into_iter().flatten() {
        out += &format!("{}  vertex {}", string(&word["word"]), string(&word["vertex"]));
        if word["tokens"].as_u64() > Some(1) {
            out += &format!("  (the first of {} tokens, {:?})", word["tokens"], string(&word["token"]));
        }
        let near: Vec<String> =
            word["neighbours"].as_array().into_iter().flatten().map(|n| format!("{:?}", string(n))).collect();
        out += &format!("\n  neighbours  {}\n  nearest     {}\n", near.join(", "), list(&word["nearest"]));
        if let Some(vertex) = word.get("stream_vertex") {
            out += &format!("  its stream passes vertex {vertex}\n");
        }
    }
    if let Some(analogy) = object.get("analogy") {
        let [a, b, c] = [0, 1, 2].map(|i: usize| string(&analogy["terms"][i]));
        out += &format!("{a} - {b} + {c}  vertex {}\n", string(&analogy["vertex"]));
        out += &format!("  nearest     {}\n", list(&analogy["nearest"]));
    }
    out
}

/// A vertex in the plane: its bits in turn to either side, each half in reflected order, so that one step along an axis is one bit.
fn place(vertex: Vertex, bits: usize) -> (i32, i32) {
    let axis = |first: usize| {
        let picked = (first..bits).step_by(2).enumerate();
        let code = picked.fold(0u32, |code, (i, bit)| code | (vertex.0 >> bit & 1) << i);
        let mut plain = code;
        let mut shift = code >> 1;
        while shift != 0 {
            plain ^= shift;
            shift >>= 1;
        }
        plain as i32
    };
    (axis(1), axis(0))
}

fn plot(path: &Path, map: &Map, words: &[Word]) -> anyhow::Result<()> {
    let mut svg = String::new();
    draw(&mut svg, map, words).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))?;
    replace_file(path, svg.as_bytes())
}

fn draw(svg: &mut String, map: &Map, words: &[Word]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (900, 900)).into_drawing_area();
    root.fill(&WHITE)?;
    let side = |bits: usize| 1i32 << bits;
    let mut chart = ChartBuilder::on(&root)
        .caption("tokens on the hypercube, one bit a step", ("sans-serif", 22))
        .margin(20)
        .build_cartesian_2d(-2..side(map.bits / 2) + 2, -2..side(map.bits.div_ceil(2)) + 2)?;
    let dots =
        map.vertices.iter().map(|&vertex| Circle::new(place(vertex, map.bits), 1, RGBColor(190, 190, 190).filled()));
    chart.draw_series(dots)?;
    for word in words {
        let at = place(map.vertices[word.id as usize], map.bits);
        chart.draw_series([Circle::new(at, 4, RGBColor(214, 39, 40).filled())])?;
        chart.draw_series([Text::new(word.text.clone(), (at.0 + 2, at.1 + 2), ("sans-serif", 18))])?;
    }
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}
