//! The `sample`, `logits` and `completions` commands: what they write, and that mistakes are users' errors.

use super::{random_params, save_checkpoint, small_model};
use crate::data::{assert_user_error, shown};
use crate::tokenizer::small;
use clap::Args;
use nanochat_gpu::cli::{completions, logits, sample};
use nanochat_gpu::formats::safetensors::Reader;
use nanochat_gpu::model::gpt::{Recompute, Rows, sum_losses};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Grads, ParamId, Tensor};
use nanochat_gpu::tokenizer::{Codec, Pattern};
use nanochat_gpu::verify::{close, integers};

fn parse<T: Args>(words: &[&str]) -> T {
    let parser = T::augment_args(clap::Command::new("test").no_binary_name(true));
    T::from_arg_matches(&parser.try_get_matches_from(words).unwrap()).unwrap()
}

fn run_sample(words: &[&str]) -> anyhow::Result<()> {
    sample::run(parse(words))
}

fn run_logits(words: &[&str]) -> anyhow::Result<()> {
    logits::run(parse(words))
}

#[test]
fn samples_are_drawn_from_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = small(Pattern::Gpt4);
    let model = small_model(tokenizer.vocab_size(), 32);
    let params = random_params(&model, DType::F32);
    save_checkpoint(folder.path(), &model, &params, Some(&tokenizer));
    let dir = shown(folder.path());
    let of = |more: &[&str]| run_sample(&[&["--checkpoint", &dir, "--max-tokens", "6"], more].concat());
    of(&["-p", "a cat", "-n", "2", "--temperature", "1.2", "--top-k", "9", "--top-p", "0.9", "--seed", "3"]).unwrap();
    of(&["--json"]).unwrap();
    assert_user_error(of(&["--temperature", "-1"]), &["temperature is -1"]);
    assert_user_error(of(&["--top-k", "0"]), &["top-k"]);
    assert_user_error(of(&["--top-p", "1.5"]), &["top-p"]);
    assert_user_error(of(&["-p", &"x y ".repeat(40)]), &["the prompt has", "context 32"]);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert_user_error(of(&[]), &["tokenizer.json"]);
    let larger = small_model(tokenizer.vocab_size() - 1, 32);
    save_checkpoint(folder.path(), &larger, &random_params(&larger, DType::F32), Some(&tokenizer));
    assert_user_error(of(&[]), &["500 tokens and the model 499"]);
}

#[test]
fn logits_losses_and_gradients_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(97, 32);
    let params = random_params(&model, DType::F32);
    save_checkpoint(folder.path(), &model, &params, None);
    let (dir, out) = (shown(folder.path()), shown(&folder.path().join("out.safetensors")));
    let (tokens, targets) = (integers("tokens", 11, 97), integers("targets", 11, 97));
    let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let (token_list, target_list) = (list(&tokens), list(&targets));
    let base = ["--checkpoint", &dir, "--out", &out, "--tokens", &token_list];
    run_logits(&[&base[..], &["--targets", &target_list, "--grads"]].concat()).unwrap();

    let arena = Arena::new(256 << 20).unwrap();
    let rows = Rows::new(&arena, &tokens, 11, None);
    let target_ids = Tensor::from_slice(&arena, [11], &targets);
    let expected = model.logits(&mut Tape::inference(&arena, &params), &rows).to_f64();
    let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
    let scale = 1.0 / 11.0;
    let mut tape = Tape::recording(&arena, &params, &mut grads);
    let sum = sum_losses(&model.loss(&mut tape, &rows, &target_ids, scale, Recompute::Nothing));
    tape.backward();
    drop(tape);
    let reader = Reader::open(out.as_ref()).unwrap();
    let floats = |name: &str| {
        let (shape, values) = reader.floats(name).unwrap();
        (shape.as_slice().to_vec(), values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())
    };
    let (shape, logits) = floats("logits");
    assert_eq!((shape, logits), (vec![1, 11, 97], expected.clone()));
    for name in ["loss", "loss.lm"] {
        let (shape, loss) = floats(name);
        assert_eq!(shape, [1]);
        close(name, &loss, &[sum * scale], 1e-6).unwrap();
    }
    for (i, entry) in model.layout().entries().iter().enumerate() {
        let (shape, gradient) = floats(&format!("grad.{}", entry.name));
        assert_eq!((shape.as_slice(), gradient), (entry.shape.as_slice(), grads.view(ParamId(i as u32)).to_f64()));
    }
    assert_eq!(reader.names().len(), 3 + model.layout().entries().len());

    if !nanochat_gpu::device::modules::MODULES.is_empty() {
        let device = shown(&folder.path().join("device.safetensors"));
        let base = ["--checkpoint", &dir, "--out", &device, "--tokens", &token_list, "--targets", &target_list];
        run_logits(&[&base[..], &["--grads", "--device", "sim"]].concat()).unwrap();
        let device = Reader::open(device.as_ref()).unwrap();
        assert_eq!(device.names(), reader.names());
        for name in device.names() {
            let values =
                |reader: &Reader| reader.floats(&name).unwrap().1.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            close(&name, &values(&device), &values(&reader), 2e-5).unwrap();
        }
    }

    run_logits(&[&base[..], &["--dtype", "bf16"]].concat()).unwrap();
    let reader = Reader::open(out.as_ref()).unwrap();
    assert_eq!(reader.names(), ["logits"]);
    let narrow: Vec<f64> = reader.floats("logits").unwrap().1.iter().map(|&x| f64::from(x)).collect();
    assert_ne!(narrow, expected);
    // bf16 keeps 8 bits; the three layers add up some of its roundings, of logits capped at 9.
    assert!(narrow.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 0.5), "bf16 is far from f32");
}

#[test]
fn mistakes_in_logits_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = small_model(97, 4);
    save_checkpoint(folder.path(), &model, &random_params(&model, DType::F32), None);
    let (dir, out) = (shown(folder.path()), shown(&folder.path().join("out.safetensors")));
    let of = |more: &[&str]| run_logits(&[&["--checkpoint", &dir, "--out", &out], more].concat());
    assert_user_error(of(&["--tokens", "1,97"]), &["--tokens has 97", "0 to 96"]);
    assert_user_error(of(&["--tokens", "1,2", "--targets", "2,4294967295"]), &["--targets has 4294967295"]);
    assert_user_error(of(&["--tokens", "1,2", "--targets", "2"]), &["1 ids", "--tokens 2"]);
    assert_user_error(of(&["--tokens", "1,2", "--grads"]), &["--grads needs --targets"]);
    assert_user_error(of(&["--tokens", "1,2,3,4,5"]), &["5 ids", "context 4"]);
    let elsewhere = ["--checkpoint", &dir, "--out", "/absent/x.safetensors", "--tokens", "1"];
    assert_user_error(run_logits(&elsewhere), &["no folder /absent"]);
    assert!(!std::path::Path::new(&out).exists());
}

/// A root with one command, built like the program's.
fn root() -> clap::Command {
    clap::Command::new("nanochat-gpu").subcommand(sample::SampleCommand::augment_args(clap::Command::new("sample")))
}

#[test]
fn completions_are_made_for_every_shell_and_helps_have_examples() {
    use clap::ValueEnum;
    for shell in clap_complete::Shell::value_variants() {
        completions::run(*shell, root()).unwrap();
    }
    let example = |command: clap::Command| command.get_after_help().unwrap().to_string().contains("Example");
    assert!(example(sample::SampleCommand::augment_args(clap::Command::new("sample"))));
    assert!(example(logits::LogitsCommand::augment_args(clap::Command::new("logits"))));
    root().debug_assert();
}
