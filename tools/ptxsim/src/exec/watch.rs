//! The checkers of one cluster, and what they want to hear.

use crate::checker::{Checker, Context, Findings};
use crate::event::{Event, Interest, Reads};
use crate::launch::Launch;

/// Checkers with their findings.
pub struct Watch<'a> {
    launch: &'a Launch<'a>,
    cluster: u32,
    checkers: Vec<(Interest, Box<dyn Checker>)>,
    /// Kinds that some checker wants.
    wanted: Interest,
    /// What they found.
    pub findings: Findings,
}

impl<'a> Watch<'a> {
    /// The checkers that the launch's options ask for.
    pub fn new(launch: &'a Launch<'a>, cluster: u32) -> Watch<'a> {
        let context = Context { launch: &launch.info, cluster, memory: launch.memory };
        let checkers: Vec<_> = launch.kinds.iter().map(|kind| kind.start(&context)).collect();
        let checkers: Vec<_> = checkers.into_iter().map(|checker| (checker.interests(), checker)).collect();
        let wanted = checkers.iter().fold(Interest::NONE, |all, (interest, _)| all.and(*interest));
        Watch { launch, cluster, checkers, wanted, findings: Findings::default() }
    }

    /// Whether an event of this kind would reach anybody.
    #[inline(always)]
    pub fn wants(&self, interest: Interest) -> bool {
        self.wanted.has(interest)
    }

    /// Tells the checkers.
    pub fn emit(&mut self, event: &Event) {
        self.emit_as(event.interest(), event);
    }

    /// The same where the caller knows the event's kind.
    #[inline]
    pub fn emit_as(&mut self, interest: Interest, event: &Event) {
        let context = Context { launch: &self.launch.info, cluster: self.cluster, memory: self.launch.memory };
        for (wanted, checker) in &mut self.checkers {
            if wanted.has(interest) {
                checker.event(&context, event, &mut self.findings);
            }
        }
    }

    /// Tells the checkers of several reads.
    pub fn emit_reads(&mut self, reads: &Reads) {
        let context = Context { launch: &self.launch.info, cluster: self.cluster, memory: self.launch.memory };
        for (wanted, checker) in &mut self.checkers {
            if wanted.has(Interest::SHARED_READ) {
                checker.reads(&context, reads, &mut self.findings);
            }
        }
    }

    /// Ends the cluster: last findings, and what each kind keeps for the comparison of clusters.
    pub fn finish(mut self) -> (Findings, Vec<Option<Box<dyn std::any::Any + Send>>>) {
        let context = Context { launch: &self.launch.info, cluster: self.cluster, memory: self.launch.memory };
        let mut residues = Vec::new();
        for (_, mut checker) in self.checkers {
            checker.finish(&context, &mut self.findings);
            residues.push(checker.into_residue());
        }
        (self.findings, residues)
    }
}
