//! Which system calls a process may make, as data: it becomes a filter for the kernel and a table for people.

use std::{collections::BTreeMap, fmt::Write};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::JailError;

/// What the kernel does with a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Carries it out.
    Allow,
    /// Kills the process.
    Kill,
    /// Gives this error number instead.
    Fail(u32),
}

/// For which arguments a rule holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// For all.
    Always,
    /// The argument at this position (from 0), taken as 32 bits, is one of these.
    IsOneOf(u8, &'static [u32]),
    /// The argument at this position, taken as 32 bits, is none of these.
    IsNoneOf(u8, &'static [u32]),
    /// The argument at this position has none of these bits.
    HasNoBitOf(u8, u64),
    /// The argument at this position has one of these bits.
    HasBitOf(u8, u64),
}

/// One system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: libc::c_long,
    /// For which arguments the rule holds.
    pub when: When,
    /// Why the rule is there, for the reader of the table.
    pub why: &'static str,
}

impl Rule {
    /// A rule for the system call `number`.
    pub const fn new(name: &'static str, number: libc::c_long, when: When, why: &'static str) -> Self {
        Self {
            name,
            number,
            when,
            why,
        }
    }
}

/// A list of system calls, what happens to those on it, and what to all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Name for errors and tables.
    pub name: &'static str,
    /// The list. A call may be on it several times; one rule that holds is enough.
    pub rules: Vec<Rule>,
    /// What happens to a call of which a rule holds.
    pub listed: Action,
    /// What happens to every other call.
    pub others: Action,
}

impl Policy {
    /// This policy with more rules, under another name.
    #[must_use]
    pub fn with(&self, name: &'static str, rules: &[Rule]) -> Self {
        let rules = self.rules.iter().chain(rules).copied().collect();
        Self { name, rules, ..*self }
    }

    /// A filter that refuses the calls of the x32 interface, whose numbers would pass every list by. Other filters kill a
    /// process that calls by the numbers of another machine, but these count as this machine's.
    pub fn native_only() -> BpfProgram {
        /// `BPF_LD | BPF_W | BPF_ABS`, of the system call's number at offset 0.
        const LOAD_NUMBER: (u16, u32) = (0x20, 0);
        /// `BPF_JMP | BPF_JGE | BPF_K`, with the first number of that interface.
        const IS_X32: (u16, u32) = (0x35, 0x4000_0000);
        /// `BPF_RET | BPF_K`.
        const RETURN: u16 = 0x06;
        let instruction = |(code, k), jt, jf| seccompiler::sock_filter { code, jt, jf, k };
        vec![
            instruction(LOAD_NUMBER, 0, 0),
            instruction(IS_X32, 0, 1),
            instruction((RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32), 0, 0),
            instruction((RETURN, libc::SECCOMP_RET_ALLOW), 0, 0),
        ]
    }

    /// The filter for the kernel. Calls of another machine's interface kill the process.
    ///
    /// # Errors
    /// When the policy contradicts itself.
    pub fn compile(&self) -> Result<BpfProgram, JailError> {
        let failed = |source: seccompiler::BackendError| JailError::Policy {
            name: self.name,
            source: source.into(),
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for rule in &self.rules {
            rules
                .entry(rule.number)
                .or_default()
                .extend(conditions(rule.when).map_err(failed)?);
        }
        // A call that is listed without a condition is listed, whatever else is said of it.
        for rule in self.rules.iter().filter(|rule| rule.when == When::Always) {
            rules.insert(rule.number, Vec::new());
        }
        let filter = SeccompFilter::new(rules, self.others.into(), self.listed.into(), TargetArch::x86_64);
        filter.and_then(TryInto::try_into).map_err(failed)
    }

    /// The policy as a Markdown table.
    pub fn table(&self) -> String {
        let mut out = "| system call | when | what for |\n|---|---|---|\n".to_owned();
        for rule in &self.rules {
            let when = match rule.when {
                When::Always => "always".to_owned(),
                When::IsOneOf(argument, values) => format!("argument {argument} is one of {}", list(values)),
                When::IsNoneOf(argument, values) => {
                    format!("argument {argument} is none of {}", list(values))
                }
                When::HasNoBitOf(argument, bits) => format!("argument {argument} has no bit of {bits:#x}"),
                When::HasBitOf(argument, bits) => format!("argument {argument} has a bit of {bits:#x}"),
            };
            let _ = writeln!(out, "| `{}` | {when} | {} |", rule.name, rule.why);
        }
        out
    }
}

impl From<Action> for SeccompAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Kill => Self::KillProcess,
            Action::Fail(error) => Self::Errno(error),
        }
    }
}

/// The alternatives, each a set of conditions that must all hold, under which a rule holds.
fn conditions(when: When) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let condition =
        |argument, length, operator, value| SeccompCondition::new(argument, length, operator, value);
    let equal = |argument, value: u32, operator| {
        condition(argument, SeccompCmpArgLen::Dword, operator, u64::from(value))
    };
    match when {
        When::Always => Ok(Vec::new()),
        When::IsOneOf(argument, values) => values
            .iter()
            .map(|&value| SeccompRule::new(vec![equal(argument, value, SeccompCmpOp::Eq)?]))
            .collect(),
        When::IsNoneOf(argument, values) => {
            let all: Result<_, _> = values
                .iter()
                .map(|&value| equal(argument, value, SeccompCmpOp::Ne))
                .collect();
            Ok(vec![SeccompRule::new(all?)?])
        }
        When::HasNoBitOf(argument, bits) => {
            let none = condition(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), 0)?;
            Ok(vec![SeccompRule::new(vec![none])?])
        }
        When::HasBitOf(argument, bits) => (0..64)
            .map(|shift| 1 << shift)
            .filter(|bit| bits & bit != 0)
            .map(|bit| {
                let one = condition(
                    argument,
                    SeccompCmpArgLen::Qword,
                    SeccompCmpOp::MaskedEq(bit),
                    bit,
                )?;
                SeccompRule::new(vec![one])
            })
            .collect(),
    }
}

fn list(values: &[u32]) -> String {
    values
        .iter()
        .map(|value| format!("{value:#x}"))
        .collect::<Vec<_>>()
        .join(", ")
}
