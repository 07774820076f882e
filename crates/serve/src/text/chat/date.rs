//! A moment written as `strftime` writes it, in UTC and in English.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

struct Moment {
    year: i64,
    /// From 1.
    month: i64,
    day: i64,
    /// From 1.
    day_of_year: i64,
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
}

/// Writes `now` by `format`. What is not known stays as it is; `-` leaves out zeros in front.
pub(super) fn strftime(format: &str, now: SystemTime) -> String {
    let moment = moment(now);
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut ahead = rest.clone();
        let (bare, code) = match ahead.next() {
            Some('-') => (true, ahead.next()),
            code => (false, code),
        };
        match code {
            Some(code) if moment.write(code, bare, &mut text) => rest = ahead,
            _ => text.push('%'),
        }
    }
    text
}

impl Moment {
    /// Whether the code is known.
    fn write(&self, code: char, bare: bool, text: &mut String) -> bool {
        let short = |name: &'static str| &name[..3];
        let name = match code {
            'a' => short(DAYS[self.weekday]),
            'A' => DAYS[self.weekday],
            'b' | 'h' => short(MONTHS[self.month as usize - 1]),
            'B' => MONTHS[self.month as usize - 1],
            'p' => ["AM", "PM"][usize::from(self.hour >= 12)],
            '%' => "%",
            'n' => "\n",
            't' => "\t",
            _ => "",
        };
        text.push_str(name);
        if !name.is_empty() {
            return true;
        }
        let (number, width) = match code {
            'd' => (self.day, 2),
            'e' => {
                let _ = write!(text, "{:2}", self.day);
                return true;
            }
            'H' => (self.hour, 2),
            'I' => ((self.hour + 11) % 12 + 1, 2),
            'j' => (self.day_of_year, 3),
            'm' => (self.month, 2),
            'M' => (self.minute, 2),
            'S' => (self.second, 2),
            'w' => (self.weekday as i64, 1),
            'y' => (self.year.rem_euclid(100), 2),
            'Y' => (self.year, 4),
            'F' | 'T' | 'R' | 'D' => return self.several(code, text),
            _ => return false,
        };
        let _ = if bare { write!(text, "{number}") } else { write!(text, "{number:0width$}") };
        true
    }

    fn several(&self, code: char, text: &mut String) -> bool {
        let codes = match code {
            'F' => "Y-m-d",
            'T' => "H:M:S",
            'R' => "H:M",
            _ => "m/d/y",
        };
        for code in codes.chars() {
            if !code.is_ascii_alphabetic() {
                text.push(code);
            } else if !self.write(code, false, text) {
                return false;
            }
        }
        true
    }
}

fn moment(now: SystemTime) -> Moment {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let mut year = 1970 + days / 366;
    while first_day(year + 1) <= days {
        year += 1;
    }
    let day_of_year = days - first_day(year);
    let (mut month, mut day) = (1, day_of_year);
    while day >= length(year, month) {
        day -= length(year, month);
        month += 1;
    }
    Moment {
        year,
        month,
        day: day + 1,
        day_of_year: day_of_year + 1,
        // The first of January 1970 was a Thursday.
        weekday: (days + 4).rem_euclid(7) as usize,
        hour: second / 3600,
        minute: second / 60 % 60,
        second: second % 60,
    }
}

/// Days from 1970 to the first day of a year.
fn first_day(year: i64) -> i64 {
    let leap_days = |before: i64| before / 4 - before / 100 + before / 400;
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

/// Days of a month.
fn length(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_is_written_as_python_writes_it() {
        // python3 -c 'import datetime as d; print(d.datetime.fromtimestamp(SECONDS, d.UTC).strftime(FORMAT))'
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %a %A %j", "1970-01-01 00:00:00 Thu Thursday 001"),
            (951_782_400, "%d %b %Y, %B, %w", "29 Feb 2000, February, 2"),
            (1_709_210_096, "%I:%M %p %y %-d/%-m", "12:34 PM 24 29/2"),
            (4_102_444_799, "%F %T %e", "2099-12-31 23:59:59 31"),
            (1_735_689_600, "%D %R 100%% %Q %", "01/01/25 00:00 100% %Q %"),
        ];
        for (seconds, format, text) in cases {
            assert_eq!(strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)), text, "{format}");
        }
    }
}
