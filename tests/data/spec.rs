//! `--data SPEC[@weight]`.

use super::{assert_user_error, shown, write};
use nanochat_gpu::data::spec::{FileKind, Origin, Spec};
use nanochat_gpu::data::synthetic::Task;

#[test]
fn weights_and_built_ins() {
    let spec = Spec::parse("synthetic").unwrap();
    assert_eq!((spec.weight, spec.origin), (1.0, Origin::Synthetic(Task::Mixture)));
    let spec = Spec::parse("synthetic:addition-reversed@2.5").unwrap();
    assert_eq!((spec.weight, spec.origin), (2.5, Origin::Synthetic(Task::AdditionReversed)));
    for weight in ["0", "-1", "inf", "nan"] {
        assert_user_error(Spec::parse(&format!("synthetic@{weight}")), &["positive"]);
    }
    assert_user_error(Spec::parse("synthetic@heavy"), &["heavy"]);
    assert_user_error(Spec::parse("synthetic:aditon"), &["synthetic:addition"]);
    assert_user_error(Spec::parse("synthetic:zzzzzzzzzzzz"), &["counting", "stories"]);
    assert_user_error(Spec::parse(""), &["empty"]);
    assert_user_error(Spec::parse_all(&[]), &["--data"]);
}

#[test]
fn folders_globs_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in ["b.txt", "a.txt", "deep/er/c.jsonl", "notes.md", ".hidden.txt", "d.bin", "e.parquet"] {
        write(root, name, "x");
    }
    let Origin::Files(files) = Spec::parse(&shown(root)).unwrap().origin else { panic!("files") };
    let names: Vec<String> = files.iter().map(|(_, path)| shown(path.strip_prefix(root).unwrap())).collect();
    assert_eq!(names, ["a.txt", "b.txt", "d.bin", "deep/er/c.jsonl", "e.parquet"]);
    assert_eq!(files[3].0, FileKind::JsonLines);

    let spec = Spec::parse(&format!("{}/*.txt@3", root.display())).unwrap();
    assert_eq!((spec.weight, spec.files(FileKind::Text).len()), (3.0, 2));
    let odd = write(root, "mail@2.txt", "x");
    assert_eq!(Spec::parse(&shown(&odd)).unwrap().weight, 1.0);
    assert_eq!(Spec::parse(&format!("{}@2", odd.display())).unwrap().weight, 2.0);

    assert_user_error(Spec::parse(&format!("{}/no.txt", root.display())), &["no.txt", "no such"]);
    assert_user_error(Spec::parse(&format!("{}/notes.md", root.display())), &["notes.md", ".jsonl"]);
    assert_user_error(Spec::parse(&format!("{}/*.md", root.display())), &["matches"]);
    let empty = root.join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert_user_error(Spec::parse(&shown(&empty)), &["empty", "holds no"]);
}
