//! Wrong input to `train`: one line that names the thing and the remedy, exit code 2, and nothing written.

use super::{TINY, finished, read, refused, succeed, tiny, training_refused, write};

#[test]
fn broken_data_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "empty.txt", "");
    write(folder, "blank.jsonl", "");
    write(folder, "short.txt", "a few words");
    write(folder, "broken.parquet", [b"PAR1".as_slice(), &[7; 200], b"PAR1"].concat());
    let good = "{\"text\": \"a line of text that is whole\"}\n".repeat(40);
    write(folder, "broken.jsonl", format!("{good}{{\"text\": \"cut\n{good}"));
    write(folder, "other.xyz", "text");
    std::fs::create_dir(folder.join("bare")).unwrap();
    for (data, parts) in [
        ("absent.txt", &["absent.txt"][..]),
        ("absent/*.jsonl", &["absent/*.jsonl"]),
        ("empty.txt", &["empty.txt"]),
        ("blank.jsonl", &["blank.jsonl"]),
        ("bare", &["bare"]),
        ("other.xyz", &["other.xyz"]),
        ("broken.parquet", &["broken.parquet", "fetch or write it again"]),
        ("broken.jsonl", &["broken.jsonl", "line 41", "mend or remove that line"]),
        ("synthetic:sonnets", &["synthetic:sonnets"]),
        ("synthetic@zero", &["synthetic@zero"]),
        ("synthetic@-1", &["synthetic@-1"]),
    ] {
        training_refused(folder, &format!("--data {data}"), parts);
    }
    let tokenizer = format!("--tokenizer {}/run/checkpoints/step_000004", finished().display());
    for data in ["empty.txt", "short.txt"] {
        training_refused(folder, &format!("--data {data} {tokenizer}"), &[data]);
    }
    let lines: String = (0..60).map(|i| format!("{{\"text\": \"number {i}\"}}\n")).collect();
    write(folder, "small.jsonl", lines);
    let parts = ["small.jsonl", "fewer than the", "lower rows or seq_len"];
    training_refused(folder, &format!("--data small.jsonl {tokenizer} --rows 64 --seq-len 64"), &parts);
}

#[test]
fn broken_token_shards_are_named() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let tokenizer = format!("--tokenizer {}/run/checkpoints/step_000004", finished().display());
    let prepare = format!("data prepare --data synthetic:addition {tokenizer} --out shards --synthetic-tokens 4000");
    succeed(folder, &prepare);
    let mut shards: Vec<_> = super::names(&folder.join("shards"));
    shards.retain(|name| name.ends_with(".bin"));
    let training = shards.iter().find(|name| name.contains("train")).unwrap().clone();
    let whole = std::fs::read(folder.join("shards").join(&training)).unwrap();
    let with = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        super::copy_folder(&folder.join("shards"), &folder.join(name));
        let mut bytes = whole.clone();
        change(&mut bytes);
        write(folder, &format!("{name}/{training}"), bytes);
        format!("--data {name} {tokenizer}")
    };
    succeed(folder, &format!("{tiny} --out good {}", with("whole", &|_| ())));
    let magic = with("magic", &|bytes| bytes[0] ^= 1);
    training_refused(folder, &magic, &[&training, "is no token shard", "name another file"]);
    let cut = with("cut", &|bytes| bytes.truncate(bytes.len() - 10));
    training_refused(folder, &cut, &[&training, "promises", "again"]);
    let ids = with("ids", &|bytes| bytes[1030..1032].copy_from_slice(&60_000u16.to_le_bytes()));
    training_refused(folder, &ids, &[&training, "60000", "vocabulary of 300"]);
    succeed(folder, "tokenizer train --data synthetic --vocab-size 300 --out other");
    let other = with("other-tokenizer", &|_| ()).replace(&tokenizer, "--tokenizer other");
    training_refused(folder, &other, &["another tokenizer", "prepare the data again"]);
}

#[test]
fn wrong_configurations_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "typo.toml", "[train]\nlr_scal = 2.0\n");
    write(folder, "broken.toml", "[train\nlr_scale = 2.0\n");
    write(folder, "type.toml", "[train]\nlr_scale = 'high'\n");
    for (more, parts) in [
        ("--set train.lr_scal=2", &["unknown key train.lr_scal", "train.lr_scale"][..]),
        ("--set model.kvheads=2", &["unknown key model.kvheads", "model.kv_heads"]),
        ("--set train=5", &["train"]),
        ("--set train.steps", &["'='", "--set table.key=value"]),
        ("--set =5", &["--set"]),
        ("--config typo.toml", &["typo.toml", "train.lr_scal", "train.lr_scale"]),
        ("--config broken.toml", &["broken.toml", "TOML"]),
        ("--config type.toml", &["[train]", "lr_scale", "f64"]),
        ("--config absent.toml", &["absent.toml"]),
        ("--set train.steps=many", &["train.steps", "whole number"]),
        ("--set train.steps=0", &["train.steps", "above 0"]),
        ("--set train.seq_len=0", &["train.seq_len", "above 0"]),
        ("--set train.rows=-3", &["train.rows", "above 0"]),
        ("--set train.lr_scale=nan", &["train.lr_scale", "between"]),
        ("--set train.clip=0", &["train.clip", "between"]),
        ("--set data.val_fraction=1", &["data.val_fraction", "between"]),
        ("--set train.warmup_steps=9", &["train.warmup_steps", "train.steps"]),
        ("--set train.keep=0", &["train.keep", "at least 1"]),
        ("--depth 0", &["model.depth = 0", "from 1 to"]),
        ("--depth 100000", &["model.depth = 100000", "from 1 to"]),
        ("--set model.heads=5", &["model.heads = 5", "model.width = 32", "choose"]),
        ("--set model.heads=4 --set model.kv_heads=3", &["model.kv_heads = 3", "model.heads = 4", "choose"]),
        ("--set model.head_dim=12", &["model.width = 32", "model.head_dim = 12", "choose"]),
        ("--set model.heads=2 --set model.head_dim=7", &["model.head_dim = 7", "even"]),
        ("--set model.window_pattern=SXL", &["model.window_pattern", "SSSL"]),
        ("--batch-tokens 40", &["train.batch_tokens = 40", "2 x 16 = 32", "choose a multiple"]),
        ("--set model.vocab_size=299", &["model.vocab_size = 299", "300", "raise it"]),
        ("--set model.max_seq_len=8", &["train.seq_len = 16", "model.max_seq_len = 8", "lower --seq-len"]),
        ("--seq-len 20000", &["20000", "16384"]),
        ("--preset huge", &["unknown preset \"huge\"", "demo", "shakespeare"]),
        ("--optimizer sgd", &["sgd", "adamw", "muon"]),
        ("--device tpu", &["tpu", "auto, cpu, sim and cuda[:i]"]),
        ("--device cuda:99", &["--device cuda:99", "--device cpu"]),
        ("--dtype int8", &["int8", "f32", "bf16"]),
        ("--dtype f64", &["f64", "f32", "bf16"]),
        ("--set device.dtype=3", &["[device]", "dtype"]),
        ("--set data.packing=loose", &["loose", "bos", "stream"]),
        ("--tokenizer absent", &["absent"]),
        ("--rows 4611686018427387904", &["train.rows"]),
        ("--set train.rows=1000000 --seq-len 16384", &["GiB", "lower train.rows"]),
        ("--set model.width=4611686018427387904 --set model.heads=1", &["model.width"]),
        ("--set model.layers=4611686018427387904", &["model.layers"]),
        ("--set model.vocab_size=4000000000000", &["model.vocab_size"]),
        ("--depth 3 --preset demo", &["--depth", "--preset"]),
        ("--steps many", &["many", "--steps"]),
        ("--no-such-flag", &["--no-such-flag"]),
        ("--resume --depth 3", &["--resume"]),
    ] {
        training_refused(folder, more, parts);
    }
    refused(folder, &format!("{TINY} --out out --vocab-size 10"), &["10 tokens is too small", "--vocab-size 265"]);
    assert!(!folder.join("out").exists());
    refused(folder, "trian", &["trian", "train"]);
}

#[test]
fn resuming_wrongly_is_refused_and_changes_nothing() {
    let run = finished();
    let before = (read(&run.join("run/config.toml")), super::names(&run.join("run/checkpoints")));
    let line = |more: &str| format!("train {more}");
    for (more, parts) in [
        ("--resume", &["--resume needs --out"][..]),
        ("--resume --out absent", &["absent", "--resume needs --out with an existing run"]),
        ("--resume --out run --steps 9", &["--steps", "config.toml"]),
        ("--resume --out run --set train.clip=2", &["--set", "config.toml"]),
        ("--resume --out run --preset demo", &["--preset", "config.toml"]),
        ("--resume --out run --dry-run", &["--dry-run", "config.toml"]),
        ("--resume=-2 --out run", &["run holds 2 checkpoints", "--resume=-2"]),
        ("--resume=1 --out run", &["--resume=1", "--resume=-1"]),
        ("--resume=x --out run", &["--resume", "x"]),
        ("--out run", &["run already holds a run", "--resume", "another --out"]),
        ("--out run/config.toml", &["run/config.toml"]),
    ] {
        refused(run, &line(more), parts);
    }
    assert!(!run.join("absent").exists());
    assert_eq!(before, (read(&run.join("run/config.toml")), super::names(&run.join("run/checkpoints"))));
}
