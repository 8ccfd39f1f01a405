use nanochat_gpu::train::plot::{Series, loss_svg};
use std::path::Path;

fn series(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Series {
    Series { name: name.into(), points: points.into_iter().collect() }
}

/// The picture of `series`, after a check that its elements nest.
fn picture(series: &[Series], title: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("loss.svg");
    loss_svg(&path, series, title).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing temporary is left");
    let svg = std::fs::read_to_string(path).unwrap();
    well_formed(&svg);
    svg
}

fn well_formed(svg: &str) {
    let mut open = Vec::new();
    let mut pieces = svg.split('<');
    assert_eq!(pieces.next().unwrap().trim(), "");
    for piece in pieces {
        let (tag, text) = piece.split_once('>').expect("every tag closes");
        assert!(!text.contains('>') && tag.matches('"').count() % 2 == 0, "{piece}");
        let name = tag.split_whitespace().next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') || tag.starts_with(['?', '!']) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty() && svg.contains("<svg"), "{open:?}");
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "a coordinate that is no number");
}

/// Training loss that falls from 8 and wavers, with what must be left out.
fn training(steps: usize) -> Series {
    let loss = |i: usize| 2.0 + 6.0 * (-(i as f64) / 40.0).exp() + 0.1 * ((i * 7919) % 13) as f64 / 13.0;
    series("training", (0..steps).map(|i| (i as f64, if i % 97 == 50 { f64::NAN } else { loss(i) })))
}

#[test]
fn names_title_and_axes_are_there() {
    let validation = series("validation <8 & \"more\">", (0..9).map(|i| (i as f64 * 500.0, 6.0 / (i + 1) as f64)));
    let svg = picture(&[training(4000), validation], "a run of <depth 4>");
    for text in ["training", "validation &lt;8 &amp;", "a run of &lt;depth 4&gt;", ">\nstep\n<", "loss (nats)"] {
        assert!(svg.contains(text), "{text}");
    }
    assert_eq!(svg.matches("<circle").count(), 9, "one mark for every point of the validation loss");
    assert!(svg.len() < 200_000, "thinned out: {} bytes", svg.len());
}

#[test]
fn any_number_of_points() {
    picture(&[], "nothing");
    picture(&[series("none", [])], "no points");
    picture(&[series("not a number", [(0.0, f64::NAN), (f64::INFINITY, 1.0)])], "no finite points");
    let one = picture(&[series("one", [(10.0, 3.5)]), series("two", [(0.0, 3.0), (10.0, 3.0)])], "few points");
    assert_eq!(one.matches("<circle").count(), 3);
    for steps in [59, 60, 61, 999, 1000, 1001, 1002, 100_000] {
        picture(&[training(steps)], "many points");
    }
}

#[test]
fn the_first_spike_does_not_stretch_the_axis() {
    let spike = series("a", (0..500).map(|i| (i as f64, if i < 5 { 90.0 } else { 2.0 + (i % 7) as f64 / 10.0 })));
    let svg = picture(&[spike], "spike");
    assert!(svg.contains(">\n2.5\n<") && !svg.contains(">\n80.0\n<") && !svg.contains(">\n90.0\n<"));
}

#[test]
fn an_unwritable_path_is_named() {
    let error = loss_svg(Path::new("no such folder/loss.svg"), &[], "").unwrap_err();
    assert!(format!("{error:#}").contains("no such folder/loss.svg"), "{error:#}");
}
