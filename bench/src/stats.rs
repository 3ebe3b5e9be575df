//! Percentiles of a sample.

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

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let mut sample = Sample::default();
        (1..=200).rev().for_each(|n| sample.push(n));
        assert_eq!([1, 50, 90, 99, 100].map(|p| sample.percentile(p)), [2, 100, 180, 198, 200]);
        assert_eq!(Sample::default().percentile(50), 0);
    }
}
