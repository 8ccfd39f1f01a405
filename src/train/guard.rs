//! The guard: tells a step whose loss or gradient must not be applied, and names what is wrong with it.

use serde::{Deserialize, Serialize};

/// Steps that are only watched, never called spikes.
const WATCHED_STEPS: u64 = 40;
/// How much of the running mean a new step is.
const FRESH: f64 = 0.02;
/// Smallest deviation assumed, in nats of loss and in natural logarithms of the gradient's norm.
const DEVIATION_MIN: [f64; 2] = [0.1, 0.25];

/// Running means of the loss and of the logarithm of the gradient's norm. Part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    steps: u64,
    mean: [f64; 2],
    variance: [f64; 2],
    /// Steps skipped in a row.
    pub bad_in_row: u32,
}

/// What the guard looks at.
pub struct Observation<'a> {
    pub loss: f64,
    pub grad_norm: f64,
    /// Sum of squares of each parameter's gradient.
    pub squares: &'a [f64],
    /// Name of a parameter by index.
    pub name: &'a dyn Fn(usize) -> String,
}

impl Guard {
    /// Takes a good step into the means; of a bad one says what is wrong, naming the tensor where there is one.
    /// `sigma` is how many deviations make a spike, 0 for never.
    pub fn judge(&mut self, seen: &Observation, sigma: f64) -> Result<(), String> {
        let verdict = self.verdict(seen, sigma);
        match &verdict {
            Ok(()) => self.accept([seen.loss, seen.grad_norm.max(1e-30).ln()]),
            Err(_) => self.bad_in_row += 1,
        }
        verdict
    }

    /// The loss and the norm of the gradient above which a step is a spike; infinite as long as there is none.
    pub fn limits(&self, sigma: f64) -> [f64; 2] {
        if sigma == 0.0 || self.steps < WATCHED_STEPS {
            return [f64::INFINITY; 2];
        }
        let limit = |k: usize| self.mean[k] + sigma * self.variance[k].sqrt().max(DEVIATION_MIN[k]);
        [limit(0), limit(1).exp()]
    }

    fn verdict(&self, seen: &Observation, sigma: f64) -> Result<(), String> {
        let not_finite = |squares: &f64| !squares.is_finite();
        if !seen.loss.is_finite() {
            let tensor =
                seen.squares.iter().position(not_finite).map(|i| format!("; first gradient {}", (seen.name)(i)));
            return Err(format!("the loss is {}{}", seen.loss, tensor.unwrap_or_default()));
        }
        if let Some(i) = seen.squares.iter().position(not_finite) {
            return Err(format!("the gradient of {} is not finite", (seen.name)(i)));
        }
        let [loss, grad_norm] = self.limits(sigma);
        if seen.loss > loss {
            return Err(format!("the loss spikes to {:.4}, its mean is {:.4}", seen.loss, self.mean[0]));
        }
        if seen.grad_norm > grad_norm {
            let largest = (0..seen.squares.len()).max_by(|&a, &b| seen.squares[a].total_cmp(&seen.squares[b]));
            let name = largest.map_or_else(String::new, seen.name);
            let usual = self.mean[1].exp();
            return Err(format!(
                "the gradient spikes to {:.3e}, usually {usual:.3e}, most of it in {name}",
                seen.grad_norm
            ));
        }
        Ok(())
    }

    fn accept(&mut self, values: [f64; 2]) {
        let fresh = FRESH.max(1.0 / (self.steps + 1) as f64);
        for (k, value) in values.into_iter().enumerate() {
            let delta = value - self.mean[k];
            self.mean[k] += fresh * delta;
            self.variance[k] = (1.0 - fresh) * (self.variance[k] + fresh * delta * delta);
        }
        self.steps += 1;
        self.bad_in_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(guard: &mut Guard, loss: f64, squares: &[f64]) -> Result<(), String> {
        let norm = squares.iter().sum::<f64>().sqrt();
        guard.judge(&Observation { loss, grad_norm: norm, squares, name: &|i| format!("tensor {i}") }, 8.0)
    }

    #[test]
    fn names_what_is_not_finite_and_what_spikes() {
        let mut guard = Guard::default();
        for i in 0..100 {
            judge(&mut guard, 5.0 - 0.01 * i as f64, &[1.0, 2.0]).unwrap();
        }
        assert!(judge(&mut guard, f64::NAN, &[1.0, f64::NAN]).unwrap_err().contains("tensor 1"));
        assert!(judge(&mut guard, 4.0, &[f64::INFINITY, 1.0]).unwrap_err().contains("tensor 0 is not finite"));
        assert!(judge(&mut guard, 9.0, &[1.0, 2.0]).unwrap_err().contains("the loss spikes"));
        assert!(judge(&mut guard, 4.0, &[1.0, 1e9]).unwrap_err().contains("most of it in tensor 1"));
        assert_eq!(guard.bad_in_row, 4);
        judge(&mut guard, 4.0, &[1.0, 2.0]).unwrap();
        assert_eq!(guard.bad_in_row, 0);
    }

    #[test]
    fn a_falling_loss_is_no_spike_and_the_first_steps_only_inform() {
        let mut guard = Guard::default();
        assert!(judge(&mut guard, 3.0, &[1.0]).is_ok() && judge(&mut guard, 30.0, &[1e6]).is_ok());
        let mut guard = Guard::default();
        assert!((0..500).all(|i| judge(&mut guard, 9.0 * (-(i as f64) / 90.0).exp(), &[1.0 / (1 + i) as f64]).is_ok()));
    }
}
