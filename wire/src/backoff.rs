//! How long to wait before attempt n. Randomness is passed in as a number in `0.0..1.0`.

/// Delay before reconnecting, in milliseconds: full jitter over a window of `base_ms * 2^attempt` that stops growing
/// at `cap_ms`. The drawn value is not clamped afterwards, or a whole fleet would come back at the cap in the same
/// second (trap T10). `attempt` counts from 0.
pub fn reconnect_ms(attempt: u32, base_ms: u64, cap_ms: u64, random: f64) -> u64 {
    let window = base_ms.saturating_mul(1u64 << attempt.min(32)).min(cap_ms);
    (window as f64 * random.clamp(0.0, 1.0)) as u64
}

/// Delay before a failed task is offered again, in milliseconds: `base_ms * 2^(attempt - 1)` up to `cap_ms`, plus or
/// minus 10 %. `attempt` is the number of the attempt that failed, from 1.
pub fn retry_ms(attempt: u32, base_ms: u64, cap_ms: u64, random: f64) -> u64 {
    let nominal = base_ms.saturating_mul(1u64 << attempt.saturating_sub(1).min(32)).min(cap_ms);
    (nominal as f64 * (0.9 + 0.2 * random.clamp(0.0, 1.0))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_spread_over_the_whole_window_also_at_the_cap() {
        assert_eq!(reconnect_ms(0, 200, 30_000, 0.5), 100);
        assert_eq!(reconnect_ms(3, 200, 30_000, 0.5), 800);
        assert_eq!(reconnect_ms(40, 200, 30_000, 0.5), 15_000);
        assert_eq!(reconnect_ms(40, 200, 30_000, 0.0), 0);
    }

    #[test]
    fn retries_double_with_ten_percent_of_jitter() {
        for (attempt, low, high) in [(1, 225, 275), (2, 450, 550), (3, 900, 1100), (60, 9_000, 11_000)] {
            assert_eq!(retry_ms(attempt, 250, 10_000, 0.0), low);
            assert_eq!(retry_ms(attempt, 250, 10_000, 1.0), high);
        }
    }
}
