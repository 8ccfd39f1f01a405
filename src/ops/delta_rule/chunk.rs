//! One chunk of one head on the CPU. The equations are in the parent file.
//!
//! Pairs of tokens: inside blocks of [`SUB`] the decayed key is carried from token to token, as the recurrence does; beyond, blocks
//! pair by halves (16 with 16, 32 with 32), and the decay between two tokens is that from the later half's start times that to the
//! earlier half's end. Every decay is `exp` of a sum of its own.

use super::{Dims, Host};
use crate::device::cpu::{Mat, Threads, WriteMode, dot, matmul, simd};
use crate::tensor::Float;
use std::ops::Range;

/// Tokens of a block whose pairs are made one by one.
const SUB: usize = 16;

/// Rows of one head, gathered, with what follows from keys and decays alone.
pub(super) struct Chunk<F> {
    n: usize,
    dk: usize,
    dv: usize,
    q: Vec<F>,
    k: Vec<F>,
    v: Vec<F>,
    log_alpha: Vec<F>,
    beta: Vec<F>,
    /// Documents started in the chunk up to each token.
    document: Vec<u32>,
    /// Decay from the chunk's start to each token, and from each token to the chunk's end; of rows of the first, of the last document.
    before: Vec<F>,
    after: Vec<F>,
    /// `Kd`, 0 on and above the diagonal, and `Qd`, 0 above: `[n, n]`.
    kd: Vec<F>,
    qd: Vec<F>,
}

/// What forward computes of a chunk.
#[derive(Default)]
pub(super) struct Scratch<F> {
    pub o: Vec<F>,
    pub e: Vec<F>,
}

/// Gradients of a chunk's rows.
#[derive(Default)]
pub(super) struct Gradient<F> {
    pub q: Vec<F>,
    pub k: Vec<F>,
    pub v: Vec<F>,
    pub log_alpha: Vec<F>,
    pub beta: Vec<F>,
}

/// `a b` of contiguous `[m, k]` and `[k, n]`.
fn product<F: Float>(a: Mat<F>, b: Mat<F>, m: usize, n: usize) -> Vec<F> {
    let mut c = vec![F::ZERO; m * n];
    matmul(&mut c, a, b, WriteMode::Overwrite, Threads::One);
    c
}

/// `exp` of the sums of `a` over the first rows up to and with each.
fn decay_before<F: Float>(a: &[F], dk: usize) -> Vec<F> {
    let mut sums = a.to_vec();
    for i in 1..a.len() / dk {
        let (done, rest) = sums.split_at_mut(i * dk);
        rest[..dk].iter_mut().zip(&done[(i - 1) * dk..]).for_each(|(x, &before)| *x += before);
    }
    exponentials(&mut sums);
    sums
}

/// `exp` of the sums of `a` over the rows after each.
fn decay_after<F: Float>(a: &[F], dk: usize) -> Vec<F> {
    let n = a.len() / dk;
    let mut sums = vec![F::ZERO; a.len()];
    for i in (0..n - 1).rev() {
        let (row, rest) = sums[i * dk..].split_at_mut(dk);
        for c in 0..dk {
            row[c] = rest[c] + a[(i + 1) * dk + c];
        }
    }
    exponentials(&mut sums);
    sums
}

fn exponentials<F: Float>(x: &mut [F]) {
    simd(
        #[inline(always)]
        || x.iter_mut().for_each(|x| *x = x.exp()),
    );
}

fn times<F: Float>(a: &[F], b: &[F]) -> Vec<F> {
    a.iter().zip(b).map(|(&a, &b)| a * b).collect()
}

/// `to_i += sum of d from i on`, row by row: what the sums of [`decay_before`] hand to what they sum.
fn hand_back_before<F: Float>(to: &mut [F], d: &[F], dk: usize) {
    let mut sum = vec![F::ZERO; dk];
    for (to, d) in to.chunks_exact_mut(dk).zip(d.chunks_exact(dk)).rev() {
        for c in 0..dk {
            sum[c] += d[c];
            to[c] += sum[c];
        }
    }
}

/// `to_i += sum of d before i`: likewise for [`decay_after`].
fn hand_back_after<F: Float>(to: &mut [F], d: &[F], dk: usize) {
    let mut sum = vec![F::ZERO; dk];
    for (to, d) in to.chunks_exact_mut(dk).zip(d.chunks_exact(dk)) {
        for c in 0..dk {
            to[c] += sum[c];
            sum[c] += d[c];
        }
    }
}

/// The halves of every pair of blocks of `n` rows beyond [`SUB`]: the earlier and the later one.
fn halves(n: usize) -> impl Iterator<Item = [Range<usize>; 2]> {
    let sizes = std::iter::successors(Some(SUB), |m| Some(2 * m)).take_while(move |&m| m < n);
    sizes.flat_map(move |m| (0..n - m).step_by(2 * m).map(move |s| [s..s + m, s + m..n.min(s + 2 * m)]))
}

fn subs(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(SUB).map(move |start| start..n.min(start + SUB))
}

impl<F: Float> Chunk<F> {
    pub fn new(host: &Host<F>, rows: Range<usize>, head: usize) -> Chunk<F> {
        let (Dims { h, dk, dv }, n) = (host.dims, rows.len());
        let gather = |x: &[F], cols: usize| -> Vec<F> {
            rows.clone().flat_map(|row| &x[row * h * cols + head * cols..][..cols]).copied().collect()
        };
        let [q, k, log_alpha] = [host.q, host.k, host.log_alpha].map(|x| gather(x, dk));
        let (v, beta) = (gather(host.v, dv), gather(host.beta, 1));
        let mut documents = 0;
        let document: Vec<u32> = rows
            .map(|row| {
                documents += u32::from(host.starts(row));
                documents
            })
            .collect();
        let (mut before, mut after) = (decay_before(&log_alpha, dk), decay_after(&log_alpha, dk));
        for (i, &d) in document.iter().enumerate() {
            before[i * dk..][..dk].iter_mut().filter(|_| d != 0).for_each(|x| *x = F::ZERO);
            after[i * dk..][..dk].iter_mut().filter(|_| d != documents).for_each(|x| *x = F::ZERO);
        }
        let (kd, qd) = (vec![F::ZERO; n * n], vec![F::ZERO; n * n]);
        let mut chunk = Chunk { n, dk, dv, q, k, v, log_alpha, beta, document, before, after, kd, qd };
        chunk.pair();
        chunk
    }

    fn rows<'a>(&self, x: &'a [F], rows: &Range<usize>) -> &'a [F] {
        &x[rows.start * self.dk..rows.end * self.dk]
    }

    fn same_document(&self, i: usize, j: usize) -> bool {
        self.document[i] == self.document[j]
    }

    /// Fills `kd` and `qd`.
    fn pair(&mut self) {
        let (n, dk) = (self.n, self.dk);
        let (mut kd, mut qd) = (std::mem::take(&mut self.kd), std::mem::take(&mut self.qd));
        for [early, late] in halves(n) {
            let before = decay_before(self.rows(&self.log_alpha, &late), dk);
            let after = decay_after(self.rows(&self.log_alpha, &early), dk);
            let keys = times(self.rows(&self.k, &early), &after);
            for (to, x) in [(&mut kd, &self.k), (&mut qd, &self.q)] {
                let x = times(self.rows(x, &late), &before);
                let (m, cols) = (late.len(), early.len());
                let pairs = product(Mat::new(&x, m, dk), Mat::new(&keys, cols, dk).t(), m, cols);
                for (i, j) in late.clone().flat_map(|i| early.clone().map(move |j| (i, j))) {
                    if self.same_document(i, j) {
                        to[i * n + j] = pairs[(i - late.start) * cols + j - early.start];
                    }
                }
            }
        }
        let alpha = {
            let mut alpha = self.log_alpha.clone();
            exponentials(&mut alpha);
            alpha
        };
        let mut key = vec![F::ZERO; dk];
        for sub in subs(n) {
            for j in sub.clone() {
                simd(
                    #[inline(always)]
                    || {
                        key.copy_from_slice(&self.k[j * dk..][..dk]);
                        qd[j * n + j] = dot(&self.q[j * dk..][..dk], &key);
                        for i in (j + 1..sub.end).take_while(|&i| self.same_document(i, j)) {
                            key.iter_mut().zip(&alpha[i * dk..]).for_each(|(x, &a)| *x *= a);
                            kd[i * n + j] = dot(&self.k[i * dk..][..dk], &key);
                            qd[i * n + j] = dot(&self.q[i * dk..][..dk], &key);
                        }
                    },
                );
            }
        }
        (self.kd, self.qd) = (kd, qd);
    }

    /// Decay of the state from the chunk's start to its end.
    fn whole(&self) -> &[F] {
        &self.before[(self.n - 1) * self.dk..]
    }

    /// `U = Diag(beta) E`.
    fn updates(&self, e: &[F]) -> Vec<F> {
        e.chunks_exact(self.dv).zip(&self.beta).flat_map(|(e, &beta)| e.iter().map(move |&e| beta * e)).collect()
    }

    /// Output and errors to `scratch`; `state` moves on to the chunk's end.
    pub fn forward(&self, state: &mut [F], scratch: &mut Scratch<F>) {
        let (n, dk, dv) = (self.n, self.dk, self.dv);
        let [queries, keys] = [&self.q, &self.k].map(|x| times(x, &self.before));
        let held = product(Mat::new(&keys, n, dk), Mat::new(state, dk, dv), n, dv);
        let (e, mut u) = (&mut scratch.e, vec![F::ZERO; n * dv]);
        e.clear();
        e.extend(self.v.iter().zip(&held).map(|(&v, &held)| v - held));
        simd(
            #[inline(always)]
            || {
                for i in 0..n {
                    let (done, rest) = u.split_at_mut(i * dv);
                    let e = &mut e[i * dv..][..dv];
                    for (u, &kd) in done.chunks_exact(dv).zip(&self.kd[i * n..][..i]) {
                        e.iter_mut().zip(u).for_each(|(e, &u)| *e = (-kd).mul_add(u, *e));
                    }
                    rest.iter_mut().zip(e.iter()).for_each(|(u, &e)| *u = self.beta[i] * e);
                }
            },
        );
        scratch.o = product(Mat::new(&queries, n, dk), Mat::new(state, dk, dv), n, dv);
        let (qd, updates) = (Mat::new(&self.qd, n, n), Mat::new(&u, n, dv));
        matmul(&mut scratch.o, qd, updates, WriteMode::Accumulate, Threads::One);
        for (s, &decay) in state.chunks_exact_mut(dv).zip(self.whole()) {
            s.iter_mut().for_each(|s| *s *= decay);
        }
        let ends = times(&self.k, &self.after);
        matmul(state, Mat::new(&ends, n, dk).t(), updates, WriteMode::Accumulate, Threads::One);
    }

    /// Gradients of the chunk's rows from those of its output and of the state after it; `dstate` moves back to the chunk's start,
    /// where the state was `state`. `e` are the errors of forward.
    pub fn backward(&self, dout: &[F], e: &[F], state: &[F], dstate: &mut [F], gradient: &mut Gradient<F>) {
        let (n, dk, dv) = (self.n, self.dk, self.dv);
        let u = self.updates(e);
        let (keys, ends) = (times(&self.k, &self.before), times(&self.k, &self.after));
        let mut db = product(Mat::new(&self.qd, n, n).t(), Mat::new(dout, n, dv), n, dv);
        matmul(&mut db, Mat::new(&ends, n, dk), Mat::new(dstate, dk, dv), WriteMode::Accumulate, Threads::One);
        let mut dw = vec![F::ZERO; n * dv];
        simd(
            #[inline(always)]
            || {
                for j in (0..n).rev() {
                    let (db, (of_j, later)) = (&mut db[j * dv..][..dv], dw[j * dv..].split_at_mut(dv));
                    for (dw, i) in later.chunks_exact(dv).zip(j + 1..) {
                        let kd = self.kd[i * n + j];
                        db.iter_mut().zip(dw).for_each(|(db, &dw)| *db = (-kd).mul_add(dw, *db));
                    }
                    of_j.iter_mut().zip(db.iter()).for_each(|(dw, &db)| *dw = self.beta[j] * db);
                }
            },
        );
        gradient.beta = db.chunks_exact(dv).zip(e.chunks_exact(dv)).map(|(db, e)| dot(db, e)).collect();
        // Gradients of the pairs, and of what meets the state.
        let (dout_mat, dw_mat, u_mat) = (Mat::new(dout, n, dv), Mat::new(&dw, n, dv), Mat::new(&u, n, dv));
        let mut dqd = product(dout_mat, u_mat.t(), n, n);
        let mut dkd = product(dw_mat, u_mat.t(), n, n);
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let seen = j <= i && self.same_document(i, j);
            dqd[i * n + j] = if seen { dqd[i * n + j] } else { F::ZERO };
            dkd[i * n + j] = if seen && j < i { -dkd[i * n + j] } else { F::ZERO };
        }
        let before = Mat::new(state, dk, dv);
        gradient.q = times(&product(dout_mat, before.t(), n, dk), &self.before);
        let mut late_keys = times(&product(dw_mat, before.t(), n, dk), &self.before);
        late_keys.iter_mut().for_each(|x| *x = -*x);
        let early_keys = times(&product(u_mat, Mat::new(dstate, dk, dv).t(), n, dk), &self.after);
        let mut dsum: Vec<F> = (0..n * dk).map(|i| self.q[i] * gradient.q[i] + self.k[i] * late_keys[i]).collect();
        let last = &mut dsum[(n - 1) * dk..];
        for (c, d) in last.iter_mut().enumerate() {
            *d += self.whole()[c] * dot(&state[c * dv..][..dv], &dstate[c * dv..][..dv]);
        }
        gradient.log_alpha = vec![F::ZERO; n * dk];
        hand_back_before(&mut gradient.log_alpha, &dsum, dk);
        hand_back_after(&mut gradient.log_alpha, &times(&self.k, &early_keys), dk);
        gradient.k = late_keys.iter().zip(&early_keys).map(|(&a, &b)| a + b).collect();
        self.pair_backward(&dkd, &dqd, gradient);
        // The state before the chunk.
        for (s, &decay) in dstate.chunks_exact_mut(dv).zip(self.whole()) {
            s.iter_mut().for_each(|s| *s *= decay);
        }
        let queries = times(&self.q, &self.before);
        matmul(dstate, Mat::new(&queries, n, dk).t(), dout_mat, WriteMode::Accumulate, Threads::One);
        let lost = product(Mat::new(&keys, n, dk).t(), dw_mat, dk, dv);
        dstate.iter_mut().zip(&lost).for_each(|(s, &x)| *s -= x);
        gradient.v = dw;
    }

    /// Adds what the pairs hand to q, k and log_alpha.
    fn pair_backward(&self, dkd: &[F], dqd: &[F], gradient: &mut Gradient<F>) {
        let (n, dk) = (self.n, self.dk);
        let add = |to: &mut [F], rows: &Range<usize>, from: &[F]| {
            to[rows.start * dk..rows.end * dk].iter_mut().zip(from).for_each(|(to, &x)| *to += x);
        };
        for [early, late] in halves(n) {
            let before = decay_before(self.rows(&self.log_alpha, &late), dk);
            let after = decay_after(self.rows(&self.log_alpha, &early), dk);
            let keys = times(self.rows(&self.k, &early), &after);
            let (m, cols) = (late.len(), early.len());
            let mut dkeys = vec![F::ZERO; cols * dk];
            let mut dbefore = vec![F::ZERO; m * dk];
            let parts = [(dkd, &self.k, &mut gradient.k), (dqd, &self.q, &mut gradient.q)];
            for (dpairs, x, to) in parts {
                let dpairs = Mat::strided(&dpairs[late.start * n + early.start..], m, cols, n);
                let x = times(self.rows(x, &late), &before);
                let dx = product(dpairs, Mat::new(&keys, cols, dk), m, dk);
                matmul(&mut dkeys, dpairs.t(), Mat::new(&x, m, dk), WriteMode::Accumulate, Threads::One);
                dbefore.iter_mut().zip(x.iter().zip(&dx)).for_each(|(d, (&x, &dx))| *d = x.mul_add(dx, *d));
                add(to, &late, &times(&dx, &before));
            }
            let of_log_alpha = &mut gradient.log_alpha;
            hand_back_before(&mut of_log_alpha[late.start * dk..late.end * dk], &dbefore, dk);
            hand_back_after(&mut of_log_alpha[early.start * dk..early.end * dk], &times(&keys, &dkeys), dk);
            add(&mut gradient.k, &early, &times(&dkeys, &after));
        }
        let mut alpha = self.log_alpha.clone();
        exponentials(&mut alpha);
        let (mut key, mut dkey) = (vec![F::ZERO; SUB * dk], vec![F::ZERO; dk]);
        for sub in subs(n) {
            for j in sub.clone() {
                simd(
                    #[inline(always)]
                    || self.column_backward(j, sub.end, &alpha, [dkd, dqd], [&mut key, &mut dkey], gradient),
                );
            }
        }
    }

    /// The pairs of token `j` with itself and those after it in its block: forth with the decayed key, back with its gradient.
    #[inline(always)]
    fn column_backward(
        &self,
        j: usize,
        end: usize,
        alpha: &[F],
        [dkd, dqd]: [&[F]; 2],
        [key, dkey]: [&mut [F]; 2],
        gradient: &mut Gradient<F>,
    ) {
        let (n, dk) = (self.n, self.dk);
        let end = (j + 1..end).find(|&i| !self.same_document(i, j)).unwrap_or(end);
        key[..dk].copy_from_slice(&self.k[j * dk..][..dk]);
        for i in j + 1..end {
            let (done, rest) = key.split_at_mut((i - j) * dk);
            for ((x, &before), &a) in rest.iter_mut().zip(&done[(i - j - 1) * dk..]).zip(&alpha[i * dk..][..dk]) {
                *x = before * a;
            }
        }
        dkey.fill(F::ZERO);
        for i in (j..end).rev() {
            let (rows, key) = (i * dk..(i + 1) * dk, &key[(i - j) * dk..][..dk]);
            let (dkd, dqd) = (dkd[i * n + j], dqd[i * n + j]);
            let (q, k, a) = (&self.q[rows.clone()], &self.k[rows.clone()], &alpha[rows.clone()]);
            let (to_q, to_k) = (&mut gradient.q[rows.clone()], &mut gradient.k[rows.clone()]);
            for c in 0..dk {
                to_q[c] = dqd.mul_add(key[c], to_q[c]);
                to_k[c] = dkd.mul_add(key[c], to_k[c]);
                dkey[c] += dqd.mul_add(q[c], dkd * k[c]);
            }
            if i > j {
                for ((to, d), (&key, &a)) in
                    gradient.log_alpha[rows].iter_mut().zip(dkey.iter_mut()).zip(key.iter().zip(a))
                {
                    *to = key.mul_add(*d, *to);
                    *d *= a;
                }
            }
        }
        gradient.k[j * dk..][..dk].iter_mut().zip(dkey.iter()).for_each(|(to, &d)| *to += d);
    }
}
