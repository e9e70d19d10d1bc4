//! Huawei's cold-start records (Joosen et al., "Serverless Cold Starts and Where to Find Them", EuroSys'25): where the time of each
//! cold start went.

use std::io::Read;

use super::{TraceError, table::Table};

/// Most records that are read.
const RECORDS_MAX: usize = 30_000_000;

/// One cold start; times in the unit of the record, which is seconds in what was published.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ColdStart {
    /// All of it.
    pub total: f64,
    /// Finding or making a pod.
    pub allocation: f64,
    /// Getting the code.
    pub code: f64,
    /// Getting its dependencies.
    pub dependencies: f64,
    /// Placing it.
    pub scheduling: f64,
}

/// The column of the whole time, by which such a file is known.
const TOTAL: &[&str] = &["totalCost_cold_start", "totalCost"];

/// Whether a table has such records.
pub(super) fn is_it<R: Read>(table: &Table<R>) -> bool {
    table.column_if_any(TOTAL).is_some()
}

/// Reads a table of records.
pub(super) fn parse<R: Read>(mut table: Table<R>) -> Result<Vec<ColdStart>, TraceError> {
    let total = table.column(TOTAL)?;
    let allocation = table.column(&["podAllocationCost"])?;
    let code = table.column(&["deployCodeCost"])?;
    let dependencies = table.column(&["deployDependencyCost"])?;
    let scheduling = table.column(&["schedulingCost"])?;
    let mut found = Vec::new();
    while let Some(row) = table.next()? {
        if found.len() == RECORDS_MAX {
            return Err(row.wrong(total, format!("there are more than {RECORDS_MAX} records")));
        }
        found.push(ColdStart {
            total: row.amount(total)?,
            allocation: row.amount(allocation)?,
            code: row.amount(code)?,
            dependencies: row.amount(dependencies)?,
            scheduling: row.amount(scheduling)?,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const HEAD: &str = "day,time,clusterName,funcName,userID,requestID,totalCost_cold_start,podAllocationCost,deployCodeCost,\
        deployDependencyCost,schedulingCost,podID\n";

    #[test]
    fn records_are_read() {
        let text = format!("{HEAD}1,2.5,c,f,u,r,3.5,1,0.5,0,2,p\n");
        let found = parse(Table::new(Path::new("h.csv"), text.as_bytes()).unwrap()).unwrap();
        let wanted = ColdStart {
            total: 3.5,
            allocation: 1.0,
            code: 0.5,
            dependencies: 0.0,
            scheduling: 2.0,
        };
        assert_eq!(found, [wanted]);
        let text = format!("{HEAD}1,2.5,c,f,u,r,3.5,1,,0,2,p\n");
        let error = parse(Table::new(Path::new("h.csv"), text.as_bytes()).unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "read h.csv, line 2, column deployCodeCost: \"\" is no amount"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [HEAD.as_bytes(), &text].concat();
            if let Ok(table) = Table::new(Path::new("h.csv"), &bytes[..]) {
                let _either = parse(table);
            }
        }
    }
}
