//! Generations of memes: those that nobody reads, or that the loss would fall without, make room for offspring of others.
//!
//! Gradient descent is what a meme learns in its life; this is what the population learns. Each period, in each island: candidates are memes
//! with less than a tenth of the mean usage, or of negative fitness for three periods; the worst of them, up to a share of the island,
//! are replaced. A child's parents are the fittest of four drawn and, of eight drawn, the one whose key is nearest to the first's;
//! `child = l a + (1 - l) b` with `l ~ U(0, 1)`, and Gaussian noise of a twentieth of the first parent's root mean square. Of several
//! islands each sends a copy of its fittest to the next, in the place of that one's worst. What is replaced begins with zero moments and no past.
//! Draws depend on seed and step alone and fitness is summed over all ranks, so all ranks breed the same memes.

use super::optim::Moments;
use crate::model::memetic::{Memetic, MemeticConfig, Selection};
use crate::tensor::random::Philox;
use crate::tensor::{ParamId, Params, TensorMut};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Of the mean usage: below it nobody reads a meme.
const USAGE_MIN: f64 = 0.1;
/// Periods of negative fitness in a row that make a candidate.
const PERIODS_MAX: u32 = 3;
/// Memes drawn for each parent.
const FITTEST_OF: usize = 4;
const NEAREST_OF: usize = 8;
/// Noise of a child over its first parent's root mean square.
const MUTATION: f64 = 0.05;

/// What is remembered from one generation to the next. Part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Periods in a row in which each meme's fitness was negative.
    pub negative_periods: Vec<u32>,
}

/// What a generation came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Generation {
    pub replaced: usize,
    /// Mean fitness of those that stay, and of those that were replaced: nats of the total loss that a step would lose without one.
    pub fitness_kept: f64,
    pub fitness_replaced: f64,
}

impl Generation {
    /// As in the metrics of a run.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let Generation { replaced, fitness_kept, fitness_replaced } = *self;
        let of =
            [("replaced", replaced as f64), ("fitness_kept", fitness_kept), ("fitness_replaced", fitness_replaced)];
        of.into_iter().map(|(name, value)| (format!("memetic.{name}"), value)).collect()
    }
}

/// The memes, on the host.
pub struct Population {
    /// `[M, d]`.
    pub keys: Vec<f64>,
    /// `[C, M]`.
    pub values: Vec<f64>,
    /// `[M]`.
    pub fitness: Vec<f64>,
    /// `[M]`: sums of weights.
    pub usage: Vec<f64>,
}

/// Who follows whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Successor {
    /// A child of two, `share` of the first.
    Child { parents: [usize; 2], share: f64 },
    /// A copy of another island's fittest.
    Migrant { of: usize },
}

/// Numbers drawn one after the other.
struct Draws {
    stream: Philox,
    next: u64,
}

impl Draws {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn below(&mut self, bound: usize) -> usize {
        let index = self.next();
        self.stream.below(index, bound as u64) as usize
    }

    fn uniform(&mut self) -> f64 {
        let index = self.next();
        self.stream.uniform(index)
    }

    fn normal(&mut self) -> f64 {
        let index = self.next();
        self.stream.normal(index)
    }

    fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.below(i + 1));
        }
    }
}

impl Population {
    fn key(&self, meme: usize) -> &[f64] {
        let d = self.keys.len() / self.fitness.len();
        &self.keys[meme * d..][..d]
    }

    fn distance(&self, a: usize, b: usize) -> f64 {
        self.key(a).iter().zip(self.key(b)).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    /// Of `count` of `memes` drawn, the one with the least `cost`.
    fn best_of(memes: &[usize], count: usize, draws: &mut Draws, cost: impl Fn(usize) -> f64) -> usize {
        let drawn = (0..count).map(|_| memes[draws.below(memes.len())]);
        drawn.min_by(|&a, &b| cost(a).total_cmp(&cost(b))).expect("at least one is drawn")
    }

    /// The memes of an island that are replaced, the worst first.
    fn doomed(&self, island: Range<usize>, negative_periods: &[u32], most: usize) -> Vec<usize> {
        let mean_usage = self.usage.iter().sum::<f64>() / self.usage.len() as f64;
        let is_candidate = |&i: &usize| self.usage[i] < USAGE_MIN * mean_usage || negative_periods[i] >= PERIODS_MAX;
        let mut doomed: Vec<usize> = island.filter(is_candidate).collect();
        doomed.sort_by(|&a, &b| self.fitness[a].total_cmp(&self.fitness[b]));
        doomed.truncate(most);
        doomed
    }

    /// The successors of an island's memes, by meme.
    fn successors(
        &self,
        island: Range<usize>,
        doomed: &[usize],
        migrant: Option<usize>,
        is_blind: bool,
        draws: &mut Draws,
    ) -> Vec<(usize, Successor)> {
        let mut doomed = doomed.to_vec();
        let least_fit = |memes: &mut dyn Iterator<Item = usize>| {
            memes.min_by(|&a, &b| self.fitness[a].total_cmp(&self.fitness[b])).expect("islands have memes")
        };
        if migrant.is_some() && doomed.is_empty() {
            doomed.push(least_fit(&mut island.clone()));
        }
        let stay: Vec<usize> = island.filter(|i| !doomed.contains(i)).collect();
        let mut successors = Vec::new();
        for (i, &meme) in doomed.iter().enumerate() {
            let successor = match migrant.filter(|_| i == 0) {
                Some(of) => Successor::Migrant { of },
                None => {
                    let [first, second] = if is_blind { [1, 1] } else { [FITTEST_OF, NEAREST_OF] };
                    let a = Population::best_of(&stay, first, draws, |i| -self.fitness[i]);
                    let others: Vec<usize> = stay.iter().copied().filter(|&i| i != a).collect();
                    let b = Population::best_of(&others, second, draws, |i| self.distance(a, i));
                    Successor::Child { parents: [a, b], share: draws.uniform() }
                }
            };
            successors.push((meme, successor));
        }
        successors
    }

    /// The next generation: who is replaced by what, decided by the memes as they are.
    pub fn select(&self, config: &MemeticConfig, record: &Record, seed: u64, step: u64) -> Vec<(usize, Successor)> {
        let mut draws = Draws { stream: Philox::new(seed, &format!("memes of step {step}")), next: 0 };
        let (memes, size) = (self.fitness.len(), self.fitness.len() / config.islands);
        let islands = (0..config.islands).map(|i| i * size..(i + 1) * size);
        let fittest = |island: Range<usize>| {
            island.max_by(|&a, &b| self.fitness[a].total_cmp(&self.fitness[b])).expect("islands have memes")
        };
        let most = (config.share * size as f64) as usize;
        let shuffled = (config.selection == Selection::Shuffled).then(|| {
            let mut of: Vec<usize> = (0..memes).collect();
            islands.clone().for_each(|island| draws.shuffle(&mut of[island]));
            let take = |values: &[f64]| of.iter().map(|&i| values[i]).collect();
            let (fitness, usage) = (take(&self.fitness), take(&self.usage));
            let population = Population { keys: self.keys.clone(), values: Vec::new(), fitness, usage };
            (population, of.iter().map(|&i| record.negative_periods[i]).collect::<Vec<u32>>())
        });
        let (judged, negative_periods) = match &shuffled {
            Some((population, negative_periods)) => (population, &negative_periods[..]),
            None => (self, &record.negative_periods[..]),
        };
        let mut all = Vec::new();
        for (i, island) in islands.enumerate() {
            let mut doomed = judged.doomed(island.clone(), negative_periods, most);
            let is_blind = config.selection == Selection::Random;
            if is_blind {
                let mut any: Vec<usize> = island.clone().collect();
                draws.shuffle(&mut any);
                any.truncate(doomed.len());
                doomed = any;
            }
            let from = (i + config.islands - 1) % config.islands;
            let migrant = (config.islands > 1).then(|| fittest(from * size..(from + 1) * size));
            all.extend(judged.successors(island, &doomed, migrant, is_blind, &mut draws));
        }
        all
    }
}

/// Columns or rows of a matrix `[rows, cols]` that belong to a meme.
struct Genes {
    range_of: fn(meme: usize, extent: [usize; 2]) -> Vec<usize>,
    extent: [usize; 2],
}

impl Genes {
    /// A key is a row.
    fn row(meme: usize, [_, cols]: [usize; 2]) -> Vec<usize> {
        (meme * cols..(meme + 1) * cols).collect()
    }

    /// A value is a column.
    fn column(meme: usize, [rows, cols]: [usize; 2]) -> Vec<usize> {
        (0..rows).map(|row| row * cols + meme).collect()
    }

    fn of(&self, meme: usize) -> Vec<usize> {
        (self.range_of)(meme, self.extent)
    }

    /// Puts successors into the place of memes; all read what was there before.
    fn replace(&self, values: &mut [f64], successors: &[(usize, Successor)], draws: &mut Draws) {
        let before = values.to_vec();
        let read = |meme: usize| -> Vec<f64> { self.of(meme).into_iter().map(|i| before[i]).collect() };
        for &(meme, successor) in successors {
            let genes = match successor {
                Successor::Migrant { of } => read(of),
                Successor::Child { parents: [a, b], share } => {
                    let (a, b) = (read(a), read(b));
                    let rms = (a.iter().map(|x| x * x).sum::<f64>() / a.len() as f64).sqrt();
                    let mix = |(a, b): (&f64, &f64)| share * a + (1.0 - share) * b + MUTATION * rms * draws.normal();
                    a.iter().zip(&b).map(mix).collect()
                }
            };
            self.of(meme).into_iter().zip(genes).for_each(|(i, x)| values[i] = x);
        }
    }

    /// Sets what belongs to the memes to zero.
    fn clear(&self, values: &mut [f64], successors: &[(usize, Successor)]) {
        successors.iter().flat_map(|&(meme, _)| self.of(meme)).for_each(|i| values[i] = 0.0);
    }
}

/// Replaces memes of a model, wherever its parameters lie; none before anything was read.
pub fn next_generation(
    memetic: &Memetic,
    config: &MemeticConfig,
    params: &mut Params,
    moments: &mut Moments,
    record: &mut Record,
    [seed, step]: [u64; 2],
) -> Generation {
    let read = |params: &Params, id: ParamId| params.master_view(id).to_f64();
    let (mut keys, mut values) = (read(params, memetic.keys), read(params, memetic.values));
    let mut statistics = read(params, memetic.statistics);
    let (fitness, usage) = statistics.split_at(config.memes);
    record.negative_periods.resize(config.memes, 0);
    for (periods, &f) in record.negative_periods.iter_mut().zip(fitness) {
        *periods = if f < 0.0 { *periods + 1 } else { 0 };
    }
    let population =
        Population { keys: keys.clone(), values: Vec::new(), fitness: fitness.to_vec(), usage: usage.to_vec() };
    let mean_usage = usage.iter().sum::<f64>() / config.memes as f64;
    let successors = population.select(config, record, seed, step);
    let is_replaced = |meme: usize| successors.iter().any(|&(doomed, _)| doomed == meme);
    let mean_fitness = |of_replaced: bool| {
        let of: Vec<f64> = (0..config.memes).filter(|&i| is_replaced(i) == of_replaced).map(|i| fitness[i]).collect();
        of.iter().sum::<f64>() / of.len().max(1) as f64
    };
    let generation = Generation {
        replaced: successors.len(),
        fitness_kept: mean_fitness(false),
        fitness_replaced: mean_fitness(true),
    };
    let mut draws = Draws { stream: Philox::new(seed, &format!("mutations of step {step}")), next: 0 };
    let extent = |id: ParamId| params.layout().entry(id).shape.dims();
    let bank: [(ParamId, Genes, &mut Vec<f64>); 2] = [
        (memetic.keys, Genes { range_of: Genes::row, extent: extent(memetic.keys) }, &mut keys),
        (memetic.values, Genes { range_of: Genes::column, extent: extent(memetic.values) }, &mut values),
    ];
    for (id, genes, values) in bank {
        genes.replace(values, &successors, &mut draws);
        params.set_master(id, values);
        let entry = params.layout().entry(id).clone();
        for moment in [&mut moments.first, &mut moments.second] {
            let mut part = moment.view(entry.offset_elems, entry.shape).to_f64();
            genes.clear(&mut part, &successors);
            let mut to: TensorMut = moment.view_mut(entry.offset_elems, entry.shape);
            to.copy_from_f64(&part);
        }
    }
    for &(meme, _) in &successors {
        (statistics[meme], statistics[config.memes + meme]) = (0.0, mean_usage);
        record.negative_periods[meme] = 0;
    }
    params.set_master(memetic.statistics, &statistics);
    params.round();
    generation
}
