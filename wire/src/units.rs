//! How people write durations and sizes, the same in every file and on every command line: `250ms`, `10s`, `2m`, `1h`, `90d`; `512B`, `64KiB`, `8MiB`, `2GiB`.

/// A duration in milliseconds.
pub fn duration_ms(text: &str) -> Option<u64> {
    scaled(text, &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)])
}

/// A size in bytes.
pub fn bytes(text: &str) -> Option<u64> {
    scaled(text, &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)])
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_exact() {
        for (text, want) in [
            ("250ms", Some(250)),
            ("2m", Some(120_000)),
            ("2d", Some(172_800_000)),
            ("10", None),
            ("s", None),
            ("-1s", None),
        ] {
            assert_eq!(duration_ms(text), want, "{text}");
        }
        for (text, want) in
            [("8MiB", Some(8 << 20)), ("1GB", None), ("512B", Some(512)), ("99999999999GiB", None)]
        {
            assert_eq!(bytes(text), want, "{text}");
        }
    }
}
