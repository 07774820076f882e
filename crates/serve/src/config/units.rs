//! Durations and sizes as text: a number and its unit.

use std::time::Duration;

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UnitError {
    /// A number alone.
    Missing,
    /// What is wrong, as the end of a sentence that starts with the key.
    Other(String),
}

const DURATIONS: [(&str, u128); 5] =
    [("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];

const SIZES: [(&str, u128); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
];

/// Longer ones are typing errors, and clocks overflow somewhere above.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads `"50ms"`, `"1.5s"`; at most a year, to the nanosecond.
pub(super) fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let nanos = quantity(text, &DURATIONS, "a duration", "50ms")?;
    match u64::try_from(nanos).map(Duration::from_nanos) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        _ => Err(UnitError::Other(format!("is {text:?}, the longest is a year (\"8760h\")"))),
    }
}

/// Reads `"64MB"` (10^6), `"512KiB"` (2^10); in bytes, a whole number of them.
pub(super) fn parse_size(text: &str) -> Result<u64, UnitError> {
    let bytes = quantity(text, &SIZES, "a size", "64MB")?;
    // One past the range of TOML's integers would not survive being printed and read again.
    match u64::try_from(bytes) {
        Ok(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err(UnitError::Other(format!("is {text:?}, which is too large"))),
    }
}

/// The shortest text that [`parse_duration`] reads as `duration`.
pub(super) fn show_duration(duration: Duration) -> String {
    show(duration.as_nanos(), &DURATIONS, "ms")
}

/// The shortest text that [`parse_size`] reads as `bytes`.
pub(super) fn show_size(bytes: u64) -> String {
    show(u128::from(bytes), &SIZES, "B")
}

fn show(amount: u128, units: &[(&str, u128)], zero: &str) -> String {
    if amount == 0 {
        return format!("0{zero}");
    }
    match units.iter().rev().find(|(_, scale)| amount.is_multiple_of(*scale)) {
        Some((unit, scale)) => format!("{}{unit}", amount / scale),
        // Below a microsecond: the only fractions that no whole number of a unit can say.
        None => {
            let (unit, scale) = units[0];
            let fraction = format!("{:03}", amount % scale);
            format!("{}.{}{unit}", amount / scale, fraction.trim_end_matches('0'))
        }
    }
}

/// `text` in the smallest of `units`, exactly: decimal digits, no floating point.
fn quantity(text: &str, units: &[(&str, u128)], what: &str, example: &str) -> Result<u128, UnitError> {
    let names = || units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let malformed =
        || UnitError::Other(format!("is {text:?}, not {what} like \"{example}\" (units: {})", names()));
    let text_trimmed = text.trim();
    let digits = text_trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text_trimmed.len());
    let (number, unit) = text_trimmed.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.contains('.') {
        return Err(malformed());
    }
    if unit.is_empty() {
        return Err(UnitError::Missing);
    }
    let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit.trim_start()) else {
        return Err(malformed());
    };
    let too_many = || UnitError::Other(format!("is {text:?}, which is too large"));
    let all: u128 = format!("{whole}{fraction}").parse().map_err(|_| too_many())?;
    let divisor = u32::try_from(fraction.len()).ok().and_then(|digits| 10_u128.checked_pow(digits));
    let (Some(scaled), Some(divisor)) = (all.checked_mul(*scale), divisor) else {
        return Err(too_many());
    };
    if scaled % divisor != 0 {
        return Err(UnitError::Other(format!("is {text:?}, finer than it can be")));
    }
    Ok(scaled / divisor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("100us", 100_000),
            ("50ms", 50_000_000),
            ("30s", 30_000_000_000),
            ("1.5s", 1_500_000_000),
            ("0.001us", 1),
            ("2m", 120_000_000_000),
            ("1h", 3_600_000_000_000),
            ("0ms", 0),
            (" 5 ms ", 5_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1024B", 1024),
            ("64MB", 64_000_000),
            ("512KiB", 524_288),
            ("4GB", 4_000_000_000),
            ("1.5GiB", 1_610_612_736),
            ("0B", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_number_alone_lacks_its_unit() {
        assert_eq!(parse_duration("50"), Err(UnitError::Missing));
        assert_eq!(parse_size("1.5"), Err(UnitError::Missing));
    }

    #[test]
    fn what_is_not_a_quantity_is_told_the_units() {
        let form = "not a duration like \"50ms\" (units: us, ms, s, m, h)";
        for text in ["50 parsecs", "", "ms", "-5ms", "1.s", ".5s", "1.2.3s", "50MS", "5ms5"] {
            assert_eq!(parse_duration(text), Err(UnitError::Other(format!("is {text:?}, {form}"))), "{text}");
        }
        assert_eq!(
            parse_size("64mb"),
            Err(UnitError::Other(
                "is \"64mb\", not a size like \"64MB\" (units: B, KB, KiB, MB, MiB, GB, GiB, TB, TiB)".into()
            ))
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let too_large = |text: &str| Err(UnitError::Other(format!("is {text:?}, which is too large")));
        assert_eq!(parse_size("99999999TB"), too_large("99999999TB"));
        let many = format!("{}TB", "9".repeat(50));
        assert_eq!(parse_size(&many), too_large(&many));
        assert_eq!(
            parse_duration("8761h"),
            Err(UnitError::Other("is \"8761h\", the longest is a year (\"8760h\")".into()))
        );
        assert_eq!(parse_size("1.5B"), Err(UnitError::Other("is \"1.5B\", finer than it can be".into())));
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_back(nanos in 0..LONGEST.as_nanos() as u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }

        #[test]
        fn a_shown_size_reads_back(bytes in 0..i64::MAX as u64) {
            prop_assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn shown_in_the_largest_unit_that_is_exact() {
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_duration(Duration::from_secs(120)), "2m");
        assert_eq!(show_size(64_000_000), "64MB");
        assert_eq!(show_size(1 << 20), "1MiB");
    }
}
