//! The machine that figures were taken on.

use std::fs;

use serde_json::{Value, json};

/// What a reader of figures must know of the machine.
#[derive(Debug, Clone)]
pub struct Machine {
    cpu: String,
    cpus: usize,
    memory_mib: u64,
    kernel: String,
    virtualised: bool,
    /// Runnable threads on average over the last minute, when the measurement began: figures of a busy machine are
    /// figures of its other users.
    load: f64,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let system = rustix::system::sysinfo();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|text| text.parse().ok());
        let memory_bytes = (system.totalram as u64).saturating_mul(system.mem_unit.into());
        Self {
            cpu: field("model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_bytes >> 20,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            virtualised: field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            load: load.unwrap_or_default(),
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let place = if self.virtualised {
            "virtual machine"
        } else {
            "physical machine"
        };
        format!(
            "{} x {}, {} MiB, Linux {}, {place}, load {} at the start",
            self.cpus, self.cpu, self.memory_mib, self.kernel, self.load
        )
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cpus": self.cpus,
            "memory_mib": self.memory_mib,
            "kernel": self.kernel,
            "virtualised": self.virtualised,
            "load": self.load,
        })
    }
}
