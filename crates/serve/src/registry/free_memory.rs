//! How much memory is left on a device.

use std::fs;

use tch::Device;

use crate::torch::gauge;

/// Bytes that are free on a device; `None` where nobody says. On a CPU what the system would give, within the
/// limit of the control group that the process runs in.
pub(super) fn free_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => {
            let system = available(&fs::read_to_string("/proc/meminfo").ok()?)?;
            Some(control_group().map_or(system, |group| group.min(system)))
        }
        device => gauge::free_memory(device),
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kilobytes * 1024)
}

/// What a container may still take; `None` without a limit.
fn control_group() -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    // Files that were read are given back when memory is short, as MemAvailable has it.
    let stat = fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    let files = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok()).unwrap_or(0);
    Some(number("memory.max")?.saturating_sub(number("memory.current")?.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        assert_eq!(available("MemTotal:  9 kB\nMemAvailable:   1234 kB\n"), Some(1_263_616));
        assert_eq!(available("MemTotal:  9 kB\n"), None);
    }
}
