//! Percentiles of a sample, and how sure a ratio of two is.

/// Times of one thing, in microseconds.
#[derive(Debug, Default, Clone)]
pub struct Sample {
    us: Vec<u64>,
}

impl Sample {
    /// An empty sample.
    pub const fn new() -> Self {
        Self { us: Vec::new() }
    }

    /// Adds a time.
    pub fn push(&mut self, us: u64) {
        self.us.push(us);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.us.len()
    }

    /// As they came.
    pub fn values(&self) -> &[u64] {
        &self.us
    }

    /// The time that `percent` of the sample are not over (nearest rank); 0 of an empty sample.
    pub fn percentile(&self, percent: usize) -> u64 {
        let mut sorted = self.us.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(0)
    }

    /// One line of a report.
    pub fn line(&self, name: &str) -> String {
        let [p50, p90, p99] = [50, 90, 99].map(|p| self.percentile(p));
        format!("{name:<34} {p50:>8} {p90:>8} {p99:>8}   n {}", self.us.len())
    }
}

/// Resamples of a bootstrap.
const RESAMPLES: usize = 1000;

/// The value that `percent` of them are not over (nearest rank); 0 of none.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    let rank = rank(sorted.len(), percent);
    if sorted.is_empty() { 0.0 } else { *sorted.select_nth_unstable_by(rank, f64::total_cmp).1 }
}

fn rank(count: usize, percent: usize) -> usize {
    (count * percent).div_ceil(100).max(1) - 1
}

/// One sample's percentile over another's, and the ends of its 95 % percentile-bootstrap interval (Efron and Tibshirani,
/// An Introduction to the Bootstrap, chapter 13). Resampled with a fixed seed: the same samples give the same interval.
/// The ratio of nothing is 0.
pub fn ratio(above: &[f64], below: &[f64], percent: usize) -> [f64; 3] {
    bootstrap([above, below], percent, |above, below| if below == 0.0 { 0.0 } else { above / below })
}

/// How much one sample's percentile is over another's, and the ends of the interval, as above.
pub fn difference(of: &[f64], less: &[f64], percent: usize) -> [f64; 3] {
    bootstrap([of, less], percent, |of, less| of - less)
}

fn bootstrap(samples: [&[f64]; 2], percent: usize, of: impl Fn(f64, f64) -> f64) -> [f64; 3] {
    let [a, b] = samples;
    let value = of(percentile(a, percent), percentile(b, percent));
    if a.is_empty() || b.is_empty() {
        return [value; 3];
    }
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut again = |values: &[f64]| {
        let mut drawn: Vec<f64> = values.iter().map(|_| values[draw(&mut state) % values.len()]).collect();
        let rank = rank(drawn.len(), percent);
        *drawn.select_nth_unstable_by(rank, f64::total_cmp).1
    };
    let mut found: Vec<f64> = (0..RESAMPLES).map(|_| of(again(a), again(b))).collect();
    found.sort_unstable_by(f64::total_cmp);
    [value, found[RESAMPLES / 40], found[RESAMPLES - RESAMPLES / 40 - 1]]
}

/// A cheap random number (xorshift64*).
fn draw(state: &mut u64) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
}

#[cfg(test)]
mod tests {
    use super::{Sample, percentile, ratio};

    #[test]
    fn a_ratio_has_an_interval_that_narrows_with_the_sample() {
        let spread = |n: usize| {
            let values: Vec<f64> = (0..n).map(|i| 100.0 + (i * 37 % 100) as f64).collect();
            let [value, low, high] = ratio(&values, &values, 50);
            assert_eq!(value, 1.0);
            assert!(low <= 1.0 && 1.0 <= high);
            high - low
        };
        assert!(spread(2000) < spread(50) / 2.0);
        assert_eq!(ratio(&[], &[1.0], 50), [0.0; 3]);
        assert_eq!(ratio(&[1.0], &[0.0], 99), [0.0; 3]);
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 100), 3.0);
    }

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let mut sample = Sample::default();
        (1..=200).rev().for_each(|n| sample.push(n));
        assert_eq!([1, 50, 90, 99, 100].map(|p| sample.percentile(p)), [2, 100, 180, 198, 200]);
        assert_eq!(Sample::default().percentile(50), 0);
    }
}
