//! What a pass leaves beside its values: stop-gradients to be given again, and numbers for a report.

use crate::tensor::Tensor;

/// What stop-gradients gave in one pass, to be given again in another: differences of a loss that has some need them held.
#[derive(Debug, Default)]
pub struct Frozen {
    values: Vec<Tensor>,
    /// The next to be given; none while they are gathered.
    next: Option<usize>,
}

impl Frozen {
    /// From here on gives what was gathered, from the first on.
    pub fn rewind(&mut self) {
        self.next = Some(0);
    }

    pub(super) fn pass(&mut self, value: Tensor) -> Tensor {
        match &mut self.next {
            None => {
                self.values.push(value.clone());
                value
            }
            Some(next) => {
                *next += 1;
                self.values[*next - 1].clone()
            }
        }
    }
}

/// Something that an evaluation reports beside the losses.
#[derive(Clone, Debug)]
pub struct Note {
    /// As in `val_NAME` of the metrics.
    pub name: &'static str,
    /// To be added up and divided by the number of values of a loss.
    pub values: Tensor,
    /// The index of that loss.
    pub of: usize,
    pub measure: Measure,
}

/// What is made of the mean of noted values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// Nats in bits.
    Bits,
    /// Shares of errors as the share of what is right.
    Accuracy,
}

impl Measure {
    /// What is reported for this mean.
    pub fn of_mean(self, mean: f64) -> f64 {
        match self {
            Measure::Bits => mean / std::f64::consts::LN_2,
            Measure::Accuracy => 1.0 - mean,
        }
    }
}
