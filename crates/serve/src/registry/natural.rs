//! The order of version names as people read them: v10 after v9.

use std::cmp::Ordering;

/// Compares runs of digits by value and everything else by character; names that are equal so (`1`, `01`)
/// by character.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    while let (Some(x), Some(y)) = (left.first(), right.first()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (m, n) = (take_number(&mut left), take_number(&mut right));
            m.len().cmp(&n.len()).then_with(|| m.cmp(n))
        } else {
            (left, right) = (&left[1..], &right[1..]);
            x.cmp(y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// Cuts the leading digits off and returns them without leading zeros: of two, the longer is the larger.
fn take_number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
    &digits[zeros..]
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn numbers_inside_names_count_by_value() {
        let mut names = vec!["v10", "v9", "2", "10", "1.10", "1.9", "beta", "v9a"];
        names.sort_by(|a, b| compare(a, b));
        assert_eq!(names, ["1.9", "1.10", "2", "10", "beta", "v9", "v9a", "v10"]);
    }

    #[test]
    fn numbers_beyond_any_integer_type_compare() {
        assert!(compare("99999999999999999999999999", "100000000000000000000000000").is_lt());
        assert!(compare("1", "01").is_gt());
    }
}
