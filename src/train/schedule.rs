//! The learning rate: linear warm-up, constant, linear cooldown to 5 % (warm-up, stable, decay).

/// The shape of a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub steps: u64,
    pub warmup_steps: u64,
    /// Share of `steps` at the end in which the rate falls.
    pub cooldown_fraction: f64,
}

/// Where the cooldown ends, as a share of the full rate.
pub const FLOOR: f64 = 0.05;

impl Schedule {
    /// The factor of every rho in step `step` (from 0): 1, and in the cooldown down to 0 with the steps that are left.
    pub fn rho_factor(&self, step: u64) -> f64 {
        let cooldown = self.cooldown_fraction * self.steps as f64;
        let left = (self.steps - step.min(self.steps)) as f64;
        if left < cooldown { left / cooldown } else { 1.0 }
    }

    /// The factor of the learning rate in step `step` (from 0).
    pub fn factor(&self, step: u64) -> f64 {
        let warm = (step + 1) as f64 / self.warmup_steps.max(1) as f64;
        let cooldown = self.cooldown_fraction * self.steps as f64;
        let left = (self.steps - step.min(self.steps)) as f64;
        let cool = if left < cooldown { FLOOR + (1.0 - FLOOR) * left / cooldown } else { 1.0 };
        warm.min(1.0).min(cool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_stays_and_cools_down() {
        let schedule = Schedule { steps: 100, warmup_steps: 10, cooldown_fraction: 0.5 };
        let at = |step| (schedule.factor(step) * 1000.0).round() / 1000.0;
        assert_eq!([at(0), at(4), at(9), at(10), at(50)], [0.1, 0.5, 1.0, 1.0, 1.0]);
        assert_eq!([at(75), at(99), at(100)], [0.525, 0.069, 0.05]);
        assert_eq!([0, 49, 75, 100].map(|step| schedule.rho_factor(step)), [1.0, 1.0, 0.5, 0.0]);
        let flat = Schedule { steps: 10, warmup_steps: 0, cooldown_fraction: 0.0 };
        assert!((0..10).all(|step| flat.factor(step) == 1.0));
    }
}
