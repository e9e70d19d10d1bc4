//! The records of a run in the columns of InVitro's experiments (its `duration.csv`), so that scripts made for it can read them.
//!
//! Times are in microseconds, but those whose names say milliseconds. `startTime` counts from the run's begin. There is no
//! connection to establish (a connection is kept), and what InVitro knows and we do not is zero.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::figures::{response_ns, scheduling_ns};
use crate::{Ending, Run};

/// InVitro's phase of an experiment after its warm-up.
const PHASE_EXECUTION: &str = "2";

const COLUMNS: [&str; 15] = [
    "phase",
    "instance",
    "invocationID",
    "startTime",
    "requestedDuration",
    "grpcConnEstablish",
    "responseTime",
    "actualDuration",
    "connectionTimeout",
    "functionTimeout",
    "actualMemoryUsage",
    "memoryAllocationTimeout",
    "timeToSubmitMs",
    "userCodeExecutionMs",
    "timeToGetResponseMs",
];

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write {path}")]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Writes the records of a run.
///
/// # Errors
/// When the file cannot be written.
pub fn write(run: &Run, path: &Path) -> Result<(), WriteError> {
    let file = File::create(path).and_then(|file| lines(run, BufWriter::new(file)));
    file.map_err(|source| WriteError {
        path: path.to_owned(),
        source,
    })
}

fn lines(run: &Run, out: impl Write) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(COLUMNS)?;
    for (number, record) in run.records.iter().enumerate() {
        let function = &run.functions[record.function as usize];
        let answered = record.ending == Ending::Answered;
        let handler_ns = response_ns(record) - scheduling_ns(record).min(response_ns(record));
        let memory_kib = if answered {
            u64::from(function.memory_mib) << 10
        } else {
            0
        };
        writer.write_record([
            PHASE_EXECUTION.to_owned(),
            function.name.clone(),
            format!("run{number}"),
            (record.arrived_ns / 1000).to_string(),
            (record.requested_ns / 1000).to_string(),
            "0".to_owned(),
            (response_ns(record) / 1000).to_string(),
            if answered { handler_ns / 1000 } else { 0 }.to_string(),
            (record.ending == Ending::Refused || record.ending == Ending::Lost).to_string(),
            (record.ending == Ending::Failed).to_string(),
            memory_kib.to_string(),
            false.to_string(),
            "0".to_owned(),
            if answered { handler_ns / 1_000_000 } else { 0 }.to_string(),
            (response_ns(record) / 1_000_000).to_string(),
        ])?;
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::run;

    #[test]
    fn columns_hold_what_their_names_say() {
        let mut text = Vec::new();
        lines(&run(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + run().records.len());
        assert_eq!(lines[0].split(',').count(), COLUMNS.len());
        assert_eq!(
            lines[1],
            "2,a,run0,0,10000,0,20000,10000,false,false,65536,false,0,10,20"
        );
        assert_eq!(
            lines[5],
            "2,b,run4,4000000,5000,0,1000,0,true,false,0,false,0,0,1"
        );
    }
}
