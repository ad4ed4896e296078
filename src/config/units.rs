//! Durations and sizes as an operator writes them: `"30s"`, `"1h 30m"`, `"256MiB"`.

use std::time::Duration;

use bytesize::ByteSize;

pub const DURATION: &str = "a duration such as \"30s\", \"5m\" or \"1h 30m\"";
pub const SIZE: &str = "a size such as \"64KiB\" or \"256MiB\"";

/// The longest duration that means something here: 68 years, as delta-seconds are capped
/// (RFC 9111 §1.2.2).
const LONGEST: Duration = Duration::from_secs(1 << 31);

/// No machine has more: 1 PiB.
const LARGEST: u64 = 1 << 50;

pub fn duration(text: &str) -> Option<Duration> {
    let parsed = humantime::parse_duration(text.trim()).ok()?;
    (parsed <= LONGEST).then_some(parsed)
}

pub fn size(text: &str) -> Option<u64> {
    let ByteSize(bytes) = text.trim().parse().ok()?;
    (bytes <= LARGEST).then_some(bytes)
}

/// A duration in the spelling that [`duration`] reads.
pub fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A size in the spelling that [`size`] reads, rounded to what a person wants to see.
pub fn show_size(bytes: u64) -> String {
    let shown = ByteSize(bytes).display().iec().to_string();
    shown.replace(".0 ", "").replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operators_write_is_read() {
        assert_eq!(duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(duration("1h 30m"), Some(Duration::from_secs(5400)));
        assert_eq!(size("256MiB"), Some(256 << 20));
        assert_eq!(size("1kB"), Some(1000));
        assert_eq!(show_size(256 << 20), "256MiB");
        assert_eq!(size(&show_size(100)), Some(100));
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        for text in ["", "30", "s", "-1s", "1 fortnight", "999999999999999y"] {
            assert_eq!(duration(text), None, "{text}");
        }
        for text in ["", "MiB", "-1MiB", "1 potato", "9999999TiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
