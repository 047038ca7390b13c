//! Whether a series of samples grows.
//!
//! The load is the same from its beginning to its end, so once the daemon is warm its memory goes
//! up and down about one level. The first quarter of the samples is the warm-up, and is left out.
//! The median of the last quarter is then compared with that of the second: medians, since a moment
//! in which much is held says nothing. They may differ by as much as the load's own ups and downs
//! make them: by the spread of the second quarter (the distance of its quartiles), and by a floor
//! for what is so even that it has hardly any spread.
//!
//! What grows evenly is found, however slowly it does, once it is more than the floor: between the
//! middles of the two quarters it gains half of what it gains in the whole run, and within one
//! quarter its spread is an eighth of that.

use serde::Serialize;

/// With fewer samples there is no telling.
pub const LEAST: usize = 60;

/// The comparison of two quarters of a series.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Growth {
    /// The median of the second quarter.
    pub earlier: f64,
    /// The median of the last quarter.
    pub later: f64,
    /// The most by which it may be greater.
    pub allowed: f64,
}

impl Growth {
    /// `None` for fewer than [`LEAST`] samples.
    pub fn of(series: &[f64], floor: f64) -> Option<Growth> {
        if series.len() < LEAST {
            return None;
        }
        let quarter = series.len() / 4;
        let second = sorted(&series[quarter..2 * quarter]);
        let last = sorted(&series[series.len() - quarter..]);
        let spread = quantile(&second, 0.75) - quantile(&second, 0.25);
        let (earlier, later) = (quantile(&second, 0.5), quantile(&last, 0.5));
        Some(Growth { earlier, later, allowed: spread + floor })
    }

    pub fn has_grown(&self) -> bool {
        self.later - self.earlier > self.allowed
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// The value that a `share` of sorted values does not exceed; 0 for none.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(0.0)
}

/// The median of values in any order.
pub fn median(values: &[f64]) -> f64 {
    quantile(&sorted(values), 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    /// A level with noise of so many, and so many more with each sample.
    fn series(noise: u64, step: f64) -> Vec<f64> {
        let mut chance = Chance::new(7);
        let sample = |index| 1000.0 + chance.below(noise + 1) as f64 + step * f64::from(index);
        (0..600).map(sample).collect()
    }

    fn grows(series: &[f64]) -> bool {
        Growth::of(series, 10.0).expect("enough samples").has_grown()
    }

    #[test]
    fn what_stays_on_one_level_does_not_grow() {
        for noise in [0, 5, 100, 900] {
            assert!(!grows(&series(noise, 0.0)), "noise {noise}");
        }
        assert!(!grows(&series(100, -0.5)), "it shrinks");
    }

    #[test]
    fn what_grows_evenly_is_found() {
        for noise in [0, 5, 100] {
            assert!(grows(&series(noise, 0.5)), "noise {noise}");
        }
        // A twentieth of a unit a sample: 30 in all, of which 15 lie between the middles.
        assert!(grows(&series(0, 0.05)));
        assert!(!grows(&series(0, 0.03)), "less than the floor");
    }

    #[test]
    fn a_step_after_the_warm_up_is_found_and_a_moment_is_not() {
        let mut step = series(20, 0.0);
        step[400..].iter_mut().for_each(|value| *value += 100.0);
        assert!(grows(&step));
        let mut warm_up = series(20, 0.0);
        warm_up[..140].iter_mut().for_each(|value| *value -= 500.0);
        assert!(!grows(&warm_up));
        let mut moments = series(20, 0.0);
        moments[460..600].iter_mut().step_by(3).for_each(|value| *value += 5000.0);
        assert!(!grows(&moments));
    }

    #[test]
    fn few_samples_tell_nothing() {
        assert_eq!(Growth::of(&[1.0; LEAST - 1], 0.0), None);
        assert!(Growth::of(&[1.0; LEAST], 0.0).is_some());
    }

    #[test]
    fn a_median_is_the_middle_one() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[]), 0.0);
    }
}
