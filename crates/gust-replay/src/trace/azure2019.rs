//! Azure's trace of 2019 (Shahrad et al., "Serverless in the Wild", ATC'20) in InVitro's layout: `invocations.csv`,
//! `durations.csv` and `memory.csv` in one directory, one line a function in each.

use std::{
    collections::HashMap,
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    FUNCTIONS_MAX, Quantiles, Trace, TraceError, TraceFunction,
    table::{self, Row, Table},
};

/// Most minutes: the two weeks of the whole trace.
const MINUTES_MAX: usize = 14 * 24 * 60;

/// The identifying columns, which come in another order in each file.
const OWNER: &[&str] = &["HashOwner"];
const APP: &[&str] = &["HashApp"];
const FUNCTION: &[&str] = &["HashFunction"];

/// Percentiles of durations, in milliseconds.
const DURATIONS: &[(&str, f64)] = &[
    ("percentile_Average_0", 0.0),
    ("percentile_Average_1", 0.01),
    ("percentile_Average_25", 0.25),
    ("percentile_Average_50", 0.5),
    ("percentile_Average_75", 0.75),
    ("percentile_Average_99", 0.99),
    ("percentile_Average_100", 1.0),
];

/// Percentiles of memory, in MiB.
const MEMORY: &[(&str, f64)] = &[
    ("AverageAllocatedMb_pct1", 0.01),
    ("AverageAllocatedMb_pct5", 0.05),
    ("AverageAllocatedMb_pct25", 0.25),
    ("AverageAllocatedMb_pct50", 0.5),
    ("AverageAllocatedMb_pct75", 0.75),
    ("AverageAllocatedMb_pct95", 0.95),
    ("AverageAllocatedMb_pct99", 0.99),
    ("AverageAllocatedMb_pct100", 1.0),
];

/// Owner, application and function: one function name may be used in several applications.
type Key = [String; 3];

/// Reads a directory.
pub(super) fn read(dir: &Path) -> Result<Trace, TraceError> {
    join(
        table::open(&dir.join("invocations.csv"))?,
        table::open(&dir.join("durations.csv"))?,
        table::open(&dir.join("memory.csv"))?,
    )
}

fn join<R: Read>(
    mut invocations: Table<R>,
    durations: Table<R>,
    memory: Table<R>,
) -> Result<Trace, TraceError> {
    let (durations_path, memory_path) = (durations.path().to_owned(), memory.path().to_owned());
    let mut durations = distributions(durations, DURATIONS)?;
    let mut memory = distributions(memory, MEMORY)?;
    let keys = keys(&invocations)?;
    let trigger = invocations.column(&["Trigger"])?;
    let minutes = minutes(&invocations)?;
    let mut tenants = HashMap::new();
    let mut names = HashMap::new();
    let mut functions = Vec::new();
    while let Some(row) = invocations.next()? {
        if functions.len() == FUNCTIONS_MAX {
            return Err(row.wrong(keys[2], format!("there are more than {FUNCTIONS_MAX} functions")));
        }
        let key = keys.map(|column| row.text(column).to_owned());
        let missing = |path: &PathBuf| {
            let problem = format!("the function has no line in {}, or two here", path.display());
            row.wrong(keys[2], problem)
        };
        let next = u32::try_from(tenants.len()).unwrap_or(u32::MAX);
        let same_name = names.entry(key[2].clone()).or_insert(0_u32);
        *same_name += 1;
        functions.push(TraceFunction {
            name: match *same_name {
                1 => key[2].clone(),
                number => format!("{}-{number}", key[2]),
            },
            tenant: *tenants.entry(key[0].clone()).or_insert(next),
            trigger: row.text(trigger).to_owned(),
            per_minute: minutes
                .iter()
                .map(|column| row.count(*column))
                .collect::<Result<_, _>>()?,
            duration_ms: durations.remove(&key).ok_or_else(|| missing(&durations_path))?,
            memory_mib: memory.remove(&key).ok_or_else(|| missing(&memory_path))?,
        });
    }
    Ok(Trace {
        functions,
        minutes: minutes.len(),
    })
}

fn keys<R: Read>(table: &Table<R>) -> Result<[usize; 3], TraceError> {
    Ok([table.column(OWNER)?, table.column(APP)?, table.column(FUNCTION)?])
}

/// The columns whose names are numbers.
fn minutes<R: Read>(table: &Table<R>) -> Result<Vec<usize>, TraceError> {
    let columns: Vec<usize> = table
        .head()
        .iter()
        .enumerate()
        .filter(|(_, name)| name.parse::<u32>().is_ok())
        .map(|(column, _)| column)
        .collect();
    let problem = if columns.is_empty() {
        "no column is a minute".to_owned()
    } else if columns.len() > MINUTES_MAX {
        format!("there are more than {MINUTES_MAX} minutes")
    } else {
        return Ok(columns);
    };
    Err(TraceError::Content {
        path: table.path().to_owned(),
        problem,
    })
}

fn distributions<R: Read>(
    mut table: Table<R>,
    percentiles: &[(&str, f64)],
) -> Result<HashMap<Key, Quantiles>, TraceError> {
    let keys = keys(&table)?;
    let columns = percentiles
        .iter()
        .map(|(name, at)| Ok((table.column(&[name])?, *at)))
        .collect::<Result<Vec<_>, TraceError>>()?;
    let mut found = HashMap::new();
    while let Some(row) = table.next()? {
        if found.len() == FUNCTIONS_MAX {
            return Err(row.wrong(keys[2], format!("there are more than {FUNCTIONS_MAX} functions")));
        }
        let quantiles = quantiles(row, &columns)?;
        let key = keys.map(|column| row.text(column).to_owned());
        if found.insert(key, quantiles).is_some() {
            return Err(row.wrong(keys[2], "the function has a line already"));
        }
    }
    Ok(found)
}

fn quantiles(row: Row<'_>, columns: &[(usize, f64)]) -> Result<Quantiles, TraceError> {
    let points = columns
        .iter()
        .map(|(column, at)| Ok((*at, row.amount(*column)?)))
        .collect::<Result<Vec<_>, TraceError>>()?;
    let falls = points
        .windows(2)
        .position(|pair| pair[1].1 < pair[0].1)
        .map_or(0, |at| at + 1);
    let problem = "the percentile is smaller than the one before it";
    Quantiles::new(points).ok_or_else(|| row.wrong(columns[falls].0, problem))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DURATIONS_HEAD: &str = "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,percentile_Average_0,\
        percentile_Average_1,percentile_Average_25,percentile_Average_50,percentile_Average_75,percentile_Average_99,\
        percentile_Average_100";
    const MEMORY_HEAD: &str = "HashFunction,HashOwner,HashApp,SampleCount,AverageAllocatedMb,AverageAllocatedMb_pct1,\
        AverageAllocatedMb_pct5,AverageAllocatedMb_pct25,AverageAllocatedMb_pct50,AverageAllocatedMb_pct75,\
        AverageAllocatedMb_pct95,AverageAllocatedMb_pct99,AverageAllocatedMb_pct100";

    fn parse(invocations: &str, durations: &str, memory: &str) -> Result<Trace, TraceError> {
        let table =
            |name: &str, text: String| Table::new(Path::new(name), std::io::Cursor::new(text.into_bytes()));
        join(
            table(
                "invocations.csv",
                format!("HashOwner,HashApp,HashFunction,Trigger,480,481\n{invocations}"),
            )?,
            table("durations.csv", format!("{DURATIONS_HEAD}\n{durations}"))?,
            table("memory.csv", format!("{MEMORY_HEAD}\n{memory}"))?,
        )
    }

    #[test]
    fn lines_are_joined_by_their_three_names() {
        let trace = parse(
            "o1,a1,f,http,3,0\no2,a2,f,timer,0,7\n",
            "o2,a2,f,5,1,0,9,0,1,2,3,4,5,6\no1,a1,f,50,1,0,90,10,20,30,40,50,60,70\n",
            "f,o1,a1,1,1,1,2,3,4,5,6,7,8\nf,o2,a2,1,1,10,20,30,40,50,60,70,80\n",
        )
        .unwrap();
        assert_eq!(trace.minutes, 2);
        let [first, second] = &trace.functions[..] else {
            panic!("two functions")
        };
        assert_eq!((first.name.as_str(), second.name.as_str()), ("f", "f-2"));
        assert_eq!((first.tenant, second.tenant), (0, 1));
        assert_eq!(
            (&first.per_minute, &second.per_minute),
            (&vec![3, 0], &vec![0, 7])
        );
        assert_eq!(
            (first.duration_ms.at(0.5), second.duration_ms.at(0.5)),
            (40.0, 3.0)
        );
        assert_eq!((first.memory_mib.at(0.5), second.memory_mib.at(1.0)), (4.0, 80.0));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let (durations, memory) = ("o,a,f,5,1,0,9,0,1,2,3,4,5,6\n", "f,o,a,1,1,1,2,3,4,5,6,7,8\n");
        for (invocations, durations, memory, said) in [
            (
                "o,a,f,http,3,x\n",
                durations,
                memory,
                "read invocations.csv, line 2, column 481: \"x\" is no count",
            ),
            (
                "o,a,f,http,3,1\n",
                "o,a,f,5,1,0,9,0,1,2,3,2,5,6\n",
                memory,
                "read durations.csv, line 2, column percentile_Average_75: the percentile is smaller than the one before it",
            ),
            (
                "o,a,g,http,3,1\n",
                durations,
                memory,
                "read invocations.csv, line 2, column HashFunction: the function has no line in durations.csv, or two here",
            ),
            (
                "o,a,f,http,3,1\n",
                durations,
                "f,o,a,1,1,1,2,3,4,5,6,7,8\nf,o,a,1,1,1,2,3,4,5,6,7,8\n",
                "read memory.csv, line 3, column HashFunction: the function has a line already",
            ),
        ] {
            assert_eq!(
                parse(invocations, durations, memory).unwrap_err().to_string(),
                said
            );
        }
    }

    #[test]
    fn the_sample_in_the_repository_is_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/azure2019-100");
        let trace = read(&dir).unwrap();
        assert_eq!((trace.functions.len(), trace.minutes), (100, 480));
        let total: u64 = trace.functions.iter().map(TraceFunction::invocations).sum();
        assert_eq!(total, 339_657);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            invocations in proptest::collection::vec(any::<u8>(), 0..400),
            head in any::<bool>(),
            durations in "[of0-9a,.\\-\n\"e]{0,200}",
            memory in "[of0-9a,.\\-\n\"e]{0,200}",
        ) {
            let table = |name: &str, head: &str, text: &[u8]| {
                let bytes = [head.as_bytes(), b"\n", text].concat();
                Table::new(Path::new(name), std::io::Cursor::new(bytes))
            };
            let invocations_head = if head { "HashOwner,HashApp,HashFunction,Trigger,1" } else { "" };
            if let (Ok(a), Ok(b), Ok(c)) = (
                table("i", invocations_head, &invocations),
                table("d", DURATIONS_HEAD, durations.as_bytes()),
                table("m", MEMORY_HEAD, memory.as_bytes()),
            ) {
                let _either = join(a, b, c);
            }
        }
    }
}
