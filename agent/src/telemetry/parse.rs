//! Forms that many files share. Pure: text in, value or the reason out.

use super::sysroot::Absent;

/// Longest name that is believed: labels and types are a few letters.
const NAME_MAX: usize = 64;

/// One whole number in decimal and nothing else (Documentation/filesystems/sysfs.rst: one value a file).
///
/// # Errors
/// Anything else.
pub fn int(text: &str) -> Result<i64, Absent> {
    let text = text.trim();
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Absent::Malformed);
    }
    text.parse().map_err(|_| Absent::OutOfRange)
}

/// A number that cannot be negative.
///
/// # Errors
/// Anything else.
pub fn count(text: &str) -> Result<u64, Absent> {
    u64::try_from(int(text)?).map_err(|_| Absent::OutOfRange)
}

/// A number from `low` to `high`, both included.
///
/// # Errors
/// Anything else.
pub fn within(text: &str, low: i64, high: i64) -> Result<i64, Absent> {
    int(text).and_then(|n| if (low..=high).contains(&n) { Ok(n) } else { Err(Absent::OutOfRange) })
}

/// A clock in Hz, as devfreq and nvpmodel write it, in kHz. A clock of 0 is off: no figure; below 1 kHz there is none.
///
/// # Errors
/// Anything else.
pub fn hz_as_khz(text: &str) -> Result<u64, Absent> {
    match khz(text)? / 1000 {
        0 => Err(Absent::OutOfRange),
        khz => Ok(khz),
    }
}

/// A clock in kHz, as cpufreq writes it.
///
/// # Errors
/// Anything else, and 0.
pub fn khz(text: &str) -> Result<u64, Absent> {
    match count(text)? {
        0 => Err(Absent::Says("the clock is off")),
        n => Ok(n),
    }
}

/// 0 or 1.
///
/// # Errors
/// Anything else.
pub fn flag(text: &str) -> Result<bool, Absent> {
    within(text, 0, 1).map(|n| n == 1)
}

/// A number in hex, with `0x` before it or not.
///
/// # Errors
/// Anything else.
pub fn hex(text: &str) -> Result<u64, Absent> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Absent::Malformed);
    }
    u64::from_str_radix(digits, 16).map_err(|_| Absent::OutOfRange)
}

/// A short name that is safe to print; a device tree ends it with NUL.
///
/// # Errors
/// Empty, long, or with control characters.
pub fn name(text: &str) -> Result<String, Absent> {
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    if text.is_empty() || text.len() > NAME_MAX || text.chars().any(char::is_control) {
        return Err(Absent::Malformed);
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_or_absent() {
        for (text, want) in [
            ("53968\n", Ok(53968)),
            ("-392", Ok(-392)),
            ("0\n", Ok(0)),
            ("", Err(Absent::Malformed)),
            ("-", Err(Absent::Malformed)),
            ("\n", Err(Absent::Malformed)),
            ("12 13", Err(Absent::Malformed)),
            ("12a", Err(Absent::Malformed)),
            ("0.5", Err(Absent::Malformed)),
            ("+1", Err(Absent::Malformed)),
            ("\0", Err(Absent::Malformed)),
            ("9223372036854775807", Ok(i64::MAX)),
            ("9223372036854775808", Err(Absent::OutOfRange)),
            ("99999999999999999999999999", Err(Absent::OutOfRange)),
        ] {
            assert_eq!(int(text), want, "{text:?}");
        }
        assert_eq!(count("-1"), Err(Absent::OutOfRange));
        assert_eq!(flag("2"), Err(Absent::OutOfRange));
        assert_eq!(hz_as_khz("624750000\n"), Ok(624_750));
        assert_eq!(hz_as_khz("76"), Err(Absent::OutOfRange));
        assert_eq!(hz_as_khz("0\n"), Err(Absent::Says("the clock is off")));
    }

    #[test]
    fn hex_is_taken_with_and_without_its_prefix() {
        for (text, want) in [
            ("50005\n", Ok(0x50005)),
            ("0x50005", Ok(0x50005)),
            ("0", Ok(0)),
            ("0x", Err(Absent::Malformed)),
            ("", Err(Absent::Malformed)),
            ("-1", Err(Absent::Malformed)),
            ("fffffffffffffffff", Err(Absent::OutOfRange)),
        ] {
            assert_eq!(hex(text), want, "{text:?}");
        }
    }

    #[test]
    fn names_can_be_printed() {
        assert_eq!(name("gpu\0").as_deref(), Ok("gpu"));
        assert_eq!(name("sum of shunt voltages\n").as_deref(), Ok("sum of shunt voltages"));
        for text in ["", "\0", "a\x1b[2J", "a\nb", &"x".repeat(65)] {
            assert_eq!(name(text), Err(Absent::Malformed), "{text:?}");
        }
    }
}
