//! Mutation: takes one synchronising instruction at a time out of a kernel and sees whether the checkers notice.
//!
//! What is taken out: barriers, waits, fences, commits, arrivals and `expect_tx`. A mutant that gives a finding or an error
//! in some run is *reported*; one whose results differ without either is a *miss* of the checkers; one that changes
//! nothing at all *survives*, and whoever wrote the kernel says why it is harmless.

use serde::Serialize;

use crate::checker::Finding;
use crate::error::{Error, Result};
use crate::options::{AsyncPolicy, Options, Schedule};

/// Openings of the instructions that are taken out.
const TARGETS: &[&str] = &[
    "bar.sync",
    "bar.arrive",
    "bar.warp.sync",
    "barrier.sync",
    "barrier.arrive",
    "barrier.cluster.arrive",
    "barrier.cluster.wait",
    "cp.async.bulk.commit_group",
    "cp.async.bulk.wait_group",
    "cp.async.commit_group",
    "cp.async.mbarrier.arrive",
    "cp.async.wait_all",
    "cp.async.wait_group",
    "fence",
    "griddepcontrol.wait",
    "mbarrier.arrive",
    "mbarrier.expect_tx",
    "mbarrier.test_wait",
    "mbarrier.try_wait",
    "membar",
    "wgmma.commit_group",
    "wgmma.fence",
    "wgmma.wait_group",
];

/// How a mutant differs from its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The instruction is gone.
    Deleted,
    /// `mbarrier.arrive.expect_tx` arrives and expects nothing.
    ExpectsNothing,
    /// A wait that is always over.
    WaitsForNothing,
}

/// A kernel with one instruction changed.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// Line of the PTX, from 1.
    pub line: u32,
    /// The instruction that was there.
    pub was: String,
    /// The change.
    pub how: How,
    /// The whole module.
    pub ptx: String,
}

/// What became of a mutant.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Line of the PTX, from 1.
    pub line: u32,
    /// The instruction that was there.
    pub was: String,
    /// The change.
    pub how: How,
    /// Whether and by what it was noticed.
    pub fate: Fate,
}

/// Whether a mutant was noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// By these checkers and rules, or by the error that ended the launch.
    Reported(Vec<String>),
    /// Results differ and nobody said so.
    Missed,
    /// No finding, and the same results in every run.
    Survived,
}

/// All mutants of an entry.
///
/// # Errors
/// When the module has no such entry.
pub fn mutants(ptx: &str, entry: &str) -> Result<Vec<Mutant>> {
    let lines: Vec<&str> = ptx.split('\n').collect();
    let is_entry = |line: &&str| {
        let name = line.split(".entry").nth(1).map(str::trim_start);
        name.and_then(|rest| rest.strip_prefix(entry))
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    let Some(first) = lines.iter().position(is_entry) else {
        return Err(Error::Host(format!("the module has no entry {entry}")));
    };
    let last = first + body_lines(&lines[first..]);
    let mut all = Vec::new();
    for (index, line) in lines.iter().enumerate().take(last).skip(first) {
        let code = line.split("//").next().unwrap_or_default();
        let mut start = 0;
        for statement in code.split_inclusive(';') {
            for (how, instead) in replacements(statement) {
                let mut changed = lines.clone();
                let line_now = format!("{}{instead}{}", &line[..start], &line[start + statement.len()..]);
                changed[index] = &line_now;
                let was = instruction(statement).1.to_owned();
                all.push(Mutant { line: index as u32 + 1, was, how, ptx: changed.join("\n") });
            }
            start += statement.len();
        }
    }
    Ok(all)
}

/// Lines up to the brace that closes the first one opened.
fn body_lines(lines: &[&str]) -> usize {
    let mut depth = 0;
    for (index, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let opened = code.matches('{').count();
        depth += opened;
        let closed = code.matches('}').count();
        if closed > 0 && depth <= closed {
            return index + 1;
        }
        depth -= closed;
    }
    lines.len()
}

/// Splits a statement into what stands before the instruction (braces, labels), and the instruction with its guard.
fn instruction(statement: &str) -> (&str, &str) {
    let mut start = 0;
    loop {
        let rest = statement[start..].trim_start();
        start = statement.len() - rest.len();
        let word = rest.find(|c: char| !(c.is_alphanumeric() || "_$%".contains(c))).unwrap_or(rest.len());
        if rest.starts_with(['{', '}']) {
            start += 1;
        } else if word > 0 && rest[word..].trim_start().starts_with(':') && !rest[word..].starts_with("::") {
            start += word + rest[word..].find(':').unwrap_or(0) + 1;
        } else {
            return (&statement[..start], &statement[start..]);
        }
    }
}

/// What may stand in the place of a statement.
fn replacements(statement: &str) -> Vec<(How, String)> {
    let (before, code) = instruction(statement);
    let (guard, bare) = match code.strip_prefix('@') {
        Some(rest) => code.split_at(1 + rest.find(char::is_whitespace).unwrap_or(0)),
        None => ("", code),
    };
    let bare = bare.trim_start();
    let opcode = bare.split_whitespace().next().unwrap_or_default();
    let is_target = |target: &&str| {
        opcode.strip_prefix(*target).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ';']))
    };
    let Some(&target) = TARGETS.iter().find(|target| is_target(target)) else { return Vec::new() };
    match target {
        "mbarrier.try_wait" | "mbarrier.test_wait" => {
            let operands = bare[opcode.len()..].trim_start();
            let to = operands.split(',').next().unwrap_or_default();
            vec![(How::WaitsForNothing, format!("{before}{guard} setp.eq.u32 {to}, 0, 0;"))]
        }
        "mbarrier.arrive" if opcode.contains(".expect_tx") => {
            let plain = bare.rsplit_once(',').map_or(bare, |(kept, _)| kept).replacen(".expect_tx", "", 1);
            vec![(How::Deleted, before.to_owned()), (How::ExpectsNothing, format!("{before}{guard} {plain};"))]
        }
        _ => vec![(How::Deleted, before.to_owned())],
    }
}

/// The runs that a mutant gets: every order of warps with every moment of asynchronous work.
pub fn runs(base: &Options) -> Vec<Options> {
    let mut runs = Vec::new();
    for asynchrony in [AsyncPolicy::Late, AsyncPolicy::Early, AsyncPolicy::Random] {
        for schedule in [Schedule::RoundRobin, Schedule::Reverse, Schedule::Random] {
            runs.push(Options { schedule, asynchrony, ..base.clone() });
        }
    }
    runs
}

/// What a run of a module gives: its findings, and the bytes of its results.
pub type Trial = (Vec<Finding>, Vec<u8>);

/// Runs the kernel and all its mutants.
///
/// # Errors
/// When the kernel itself cannot run, or has findings.
pub fn examine(
    ptx: &str,
    entry: &str,
    runs: &[Options],
    run: impl Fn(&str, &Options) -> Result<Trial>,
) -> Result<Vec<Verdict>> {
    let mut expected = None;
    for options in runs {
        let (findings, results) = run(ptx, options)?;
        if let Some(finding) = findings.first() {
            let Finding { checker, rule, message, line, .. } = finding;
            return Err(Error::Host(format!(
                "{entry} has findings of its own: {checker}/{rule} at line {}: {message}",
                line.ptx
            )));
        }
        if expected.get_or_insert_with(|| results.clone()) != &results {
            return Err(Error::Host(format!("{entry} gives different results under {options:?}")));
        }
    }
    let expected = expected.unwrap_or_default();
    let judge = |mutant: Mutant| {
        let mut fate = Fate::Survived;
        for options in runs {
            match run(&mutant.ptx, options) {
                Ok((findings, _)) if !findings.is_empty() => {
                    let mut rules: Vec<String> = findings.iter().map(|f| format!("{}/{}", f.checker, f.rule)).collect();
                    rules.sort();
                    rules.dedup();
                    fate = Fate::Reported(rules);
                    break;
                }
                Ok((_, results)) if results != expected => fate = Fate::Missed,
                Ok(_) => {}
                Err(error) => {
                    fate = Fate::Reported(vec![error.to_string()]);
                    break;
                }
            }
        }
        let Mutant { line, was, how, .. } = mutant;
        Verdict { line, was, how, fate }
    };
    Ok(mutants(ptx, entry)?.into_iter().map(judge).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = ".visible .entry other()\n{\n bar.sync 0;\n}\n.visible .entry k(\n)\n{\n\tbar.sync \t0;\n@%p1 bra $L;\n{\n.reg .pred p; WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%r1], %r2; @p bra DONE; bra WAIT; DONE:\n}\n\t@%p2 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 64;\n\tfence.proxy.async; // bar.sync\n\tret;\n}\n";

    fn text(line: u32, how: How) -> String {
        let mutant = mutants(MODULE, "k").unwrap().into_iter().find(|m| m.line == line && m.how == how).unwrap();
        mutant.ptx.split('\n').nth(line as usize - 1).unwrap().to_owned()
    }

    #[test]
    fn every_target_of_the_entry_is_taken_out_once() {
        let all = mutants(MODULE, "k").unwrap();
        let places: Vec<(u32, How)> = all.iter().map(|mutant| (mutant.line, mutant.how)).collect();
        let want = [
            (8, How::Deleted),
            (11, How::WaitsForNothing),
            (13, How::Deleted),
            (13, How::ExpectsNothing),
            (14, How::Deleted),
        ];
        assert_eq!(places, want);
        assert!(all.iter().all(|mutant| mutant.ptx.matches('\n').count() == MODULE.matches('\n').count()));
        assert_eq!(
            text(11, How::WaitsForNothing),
            ".reg .pred p; WAIT:  setp.eq.u32 p, 0, 0; @p bra DONE; bra WAIT; DONE:"
        );
        assert_eq!(text(13, How::ExpectsNothing).trim(), "@%p2 mbarrier.arrive.shared::cta.b64 _, [%r1];");
        assert_eq!(text(14, How::Deleted).trim(), "// bar.sync");
        assert!(mutants(MODULE, "absent").is_err());
    }
}
