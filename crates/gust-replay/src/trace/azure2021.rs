//! Azure's trace of 2021 (Zhang et al., "Faster and Cheaper Serverless Computing on Harvested Resources", SOSP'21): one line
//! an invocation, `app,func,end_timestamp,duration`, both in seconds. A column `memory_mib` may follow; workloads that are made
//! here have it.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::Path,
};

use super::{FUNCTIONS_MAX, INVOCATIONS_MAX, TraceError, table::Table};
use crate::{Arrival, Function, Workload};

/// Memory of a function where the trace does not say, in MiB: as InVitro assumes for this trace.
const MEMORY_MIB_DEFAULT: u32 = 200;

/// Most memory of a function, in MiB: AWS Lambda's.
const MEMORY_MIB_MAX: f64 = 10_240.0;

/// Latest end of an invocation, in seconds: a hundred days.
const SECONDS_MAX: f64 = 8_640_000.0;

const NS_PER_S: f64 = 1e9;

/// Reads a table of invocations.
pub(super) fn parse<R: Read>(mut table: Table<R>) -> Result<Workload, TraceError> {
    let app = table.column(&["app"])?;
    let func = table.column(&["func"])?;
    let end = table.column(&["end_timestamp"])?;
    let duration = table.column(&["duration"])?;
    let memory = table.column_if_any(&["memory_mib"]);
    let mut functions: Vec<Function> = Vec::new();
    let mut numbers: HashMap<(String, String), u32> = HashMap::new();
    let mut tenants: HashMap<String, u32> = HashMap::new();
    // Begin in signed nanoseconds: an invocation may have begun before the trace did.
    let mut invocations: Vec<(i64, u32, u64)> = Vec::new();
    while let Some(row) = table.next()? {
        if invocations.len() == INVOCATIONS_MAX {
            return Err(row.wrong(func, format!("there are more than {INVOCATIONS_MAX} invocations")));
        }
        let memory_mib = match memory {
            None => MEMORY_MIB_DEFAULT,
            Some(column) => row.amount(column)?.clamp(1.0, MEMORY_MIB_MAX).ceil() as u32,
        };
        let key = (row.text(app).to_owned(), row.text(func).to_owned());
        let number = match numbers.get(&key) {
            Some(number) => *number,
            None if functions.len() == FUNCTIONS_MAX => {
                return Err(row.wrong(func, format!("there are more than {FUNCTIONS_MAX} functions")));
            }
            None => {
                let next = u32::try_from(tenants.len()).unwrap_or(u32::MAX);
                functions.push(Function {
                    name: format!("{}/{}", key.0, key.1),
                    tenant: *tenants.entry(key.0.clone()).or_insert(next),
                    memory_mib,
                });
                let number = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
                numbers.insert(key, number);
                number
            }
        };
        let (end_s, duration_s) = (row.amount(end)?, row.amount(duration)?);
        for (column, seconds) in [(end, end_s), (duration, duration_s)] {
            if seconds > SECONDS_MAX {
                return Err(row.wrong(column, format!("is more than {SECONDS_MAX} seconds")));
            }
        }
        let (end_ns, duration_ns) = ((end_s * NS_PER_S) as i64, (duration_s * NS_PER_S) as i64);
        invocations.push((end_ns - duration_ns, number, duration_ns.unsigned_abs()));
    }
    Ok(workload(functions, invocations))
}

fn workload(functions: Vec<Function>, mut invocations: Vec<(i64, u32, u64)>) -> Workload {
    invocations.sort_unstable();
    let first = invocations.first().map_or(0, |(at, ..)| (*at).min(0));
    let arrivals: Vec<Arrival> = invocations
        .into_iter()
        .map(|(at, function, duration_ns)| Arrival {
            at_ns: (at - first).unsigned_abs(),
            function,
            duration_ns,
        })
        .collect();
    let length_ns = arrivals.last().map_or(0, |last| last.at_ns + 1);
    Workload {
        functions,
        arrivals,
        length_ns,
    }
}

/// Writes a workload in this layout, gzip where the name ends in `.gz`. The tenant is the application; names of functions stay
/// what they are.
///
/// # Errors
/// When the file cannot be written; nothing is left behind under its name.
pub fn write(workload: &Workload, path: &Path) -> Result<(), TraceError> {
    let failed = |source: io::Error| TraceError::Write {
        path: path.to_owned(),
        source,
    };
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let written = write_part(workload, part, path.extension().is_some_and(|e| e == "gz"))
        .and_then(|()| std::fs::rename(part, path));
    written.map_err(|source| {
        // It is what could not be written that is told; the rest of it may not even be there.
        let _gone = std::fs::remove_file(part);
        failed(source)
    })
}

fn write_part(workload: &Workload, part: &Path, packed: bool) -> io::Result<()> {
    let file = BufWriter::new(File::create(part)?);
    if packed {
        let encoder = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        write_lines(workload, encoder)?.finish()?.flush()
    } else {
        write_lines(workload, file)?.flush()
    }
}

fn write_lines<W: Write>(workload: &Workload, out: W) -> io::Result<W> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(["app", "func", "end_timestamp", "duration", "memory_mib"])?;
    // Lines of the same function share their texts.
    let mut texts: BTreeMap<u32, [String; 3]> = BTreeMap::new();
    for arrival in &workload.arrivals {
        let function = &workload.functions[arrival.function as usize];
        let [app, name, memory] = texts.entry(arrival.function).or_insert_with(|| {
            // A name that came from this layout has its application in front.
            let prefix = format!("tenant-{}", function.tenant);
            let name = function
                .name
                .split_once('/')
                .map_or(&*function.name, |(_, name)| name);
            [prefix, name.to_owned(), function.memory_mib.to_string()]
        });
        let end_s = (arrival.at_ns + arrival.duration_ns) as f64 / NS_PER_S;
        let duration_s = arrival.duration_ns as f64 / NS_PER_S;
        writer.write_record([
            app.as_str(),
            name,
            &format!("{end_s:.9}"),
            &format!("{duration_s:.9}"),
            memory,
        ])?;
    }
    writer.into_inner().map_err(|error| error.into_error())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::table;

    fn read_text(text: &[u8]) -> Result<Workload, TraceError> {
        parse(Table::new(Path::new("t.csv"), text)?)
    }

    #[test]
    fn invocations_begin_before_they_end() {
        let text = b"app,func,end_timestamp,duration\na,f,0.5,2\nb,g,3,1.5\na,f,4,0.25\n";
        let workload = read_text(text).unwrap();
        let arrival = |at_ns, function, duration_ns| Arrival {
            at_ns,
            function,
            duration_ns,
        };
        assert_eq!(
            workload.arrivals,
            [
                arrival(0, 0, 2_000_000_000),
                arrival(3_000_000_000, 1, 1_500_000_000),
                arrival(5_250_000_000, 0, 250_000_000),
            ]
        );
        assert_eq!(workload.functions[1].name, "b/g");
        assert_eq!(
            (workload.functions[0].tenant, workload.functions[1].tenant),
            (0, 1)
        );
        assert_eq!(workload.functions[0].memory_mib, MEMORY_MIB_DEFAULT);
        let error = read_text(b"app,func,end_timestamp,duration\na,f,1,x\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "read t.csv, line 2, column duration: \"x\" is no amount"
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let workload = read_text(
            b"app,func,end_timestamp,duration,memory_mib\na,f,2.5,0.5,64\nb,g,3,1,300\na,f,4,0.25,64\n",
        )
        .unwrap();
        for name in ["w.csv", "w.csv.gz"] {
            let path = dir.path().join(name);
            write(&workload, &path).unwrap();
            let again = parse(table::open(&path).unwrap()).unwrap();
            assert_eq!(again.arrivals, workload.arrivals, "{name}");
            assert_eq!(again.functions[1].memory_mib, 300);
            assert_eq!(again.functions[0].name, "tenant-0/f");
        }
        let error = write(&workload, &dir.path().join("none/w.csv")).unwrap_err();
        assert!(error.to_string().starts_with("write "), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..300), head in any::<bool>()) {
            let head: &[u8] = if head { b"app,func,end_timestamp,duration\n" } else { b"" };
            let _either = read_text(&[head, &text].concat());
        }

        #[test]
        fn lines_of_numbers_are_read_or_refused(text in "([ab],[fg],[0-9e.]{1,6},[0-9e.]{1,6}\n){0,20}") {
            if let Ok(workload) = read_text(format!("app,func,end_timestamp,duration\n{text}").as_bytes()) {
                prop_assert!(workload.arrivals.is_sorted_by_key(|arrival| arrival.at_ns));
                prop_assert!(workload.arrivals.iter().all(|arrival| arrival.at_ns < workload.length_ns));
                prop_assert_eq!(workload.arrivals.len(), text.lines().count());
            }
        }
    }
}
