//! The policies: that they become filters, that the filters do what the lists say, and that the document shows them.

use std::{fs, path::Path};

use gust_worker::jail::{Action, Policy, Rule, When, install, lists};

fn policies() -> [Policy; 5] {
    [
        lists::worker_base(),
        lists::micro_vm(),
        lists::supervisor(),
        lists::guest_clone3(),
        lists::guest(),
    ]
}

/// Calls `number` on a thread of its own, behind a filter; the error number, or 0.
fn call_behind(policy: &Policy, number: libc::c_long, arguments: [usize; 3]) -> i32 {
    let policy = policy.clone();
    std::thread::spawn(move || {
        assert!(install(&policy).unwrap());
        let [a, b, c] = arguments;
        // SAFETY: the calls that these tests make get no pointers, or null ones.
        let result = unsafe { libc::syscall(number, a, b, c) };
        if result == -1 {
            std::io::Error::last_os_error().raw_os_error().unwrap()
        } else {
            0
        }
    })
    .join()
    .unwrap()
}

/// A policy that fails what is not listed, so that a test can see it.
fn policy(rules: &[Rule]) -> Policy {
    Policy {
        name: "test",
        rules: rules.to_vec(),
        listed: Action::Fail(7),
        others: Action::Allow,
    }
}

#[test]
fn every_policy_becomes_a_filter() {
    for policy in policies() {
        let program = policy.compile().unwrap();
        // What the kernel takes at most (`BPF_MAXINSNS`).
        assert!(program.len() < 4096, "{}: {}", policy.name, program.len());
        for rule in &policy.rules {
            assert!(!rule.why.is_empty() && !rule.name.is_empty());
        }
        let mut names: Vec<_> = policy.rules.iter().map(|rule| rule.name).collect();
        names.dedup();
        assert_eq!(
            names.len(),
            policy.rules.len(),
            "{} lists a call twice",
            policy.name
        );
    }
}

#[test]
fn conditions_hold_for_the_arguments_that_they_name() {
    let check = |when: When, arguments: [usize; 3], listed: bool| {
        let policy = policy(&[Rule::new("getpgid", libc::SYS_getpgid, when, "test")]);
        let expected = if listed { 7 } else { 0 };
        assert_eq!(
            call_behind(&policy, libc::SYS_getpgid, arguments),
            expected,
            "{when:?} {arguments:?}"
        );
    };
    check(When::Always, [0; 3], true);
    check(When::IsOneOf(1, &[5, 6]), [0, 6, 0], true);
    check(When::IsOneOf(1, &[5, 6]), [0, 7, 0], false);
    // The kernel takes 32 bits; what stands above them must not hide the value.
    check(When::IsOneOf(1, &[5, 6]), [0, 6 | 1 << 40, 0], true);
    check(When::IsNoneOf(1, &[5, 6]), [0, 7, 0], true);
    check(When::IsNoneOf(1, &[5, 6]), [0, 5, 0], false);
    check(When::HasBitOf(2, 0b101), [0, 0, 0b100], true);
    check(When::HasBitOf(2, 0b101), [0, 0, 0b010], false);
    check(When::HasNoBitOf(2, 0b101), [0, 0, 0b010], true);
    check(When::HasNoBitOf(2, 0b101), [0, 0, 0b001], false);
}

#[test]
fn a_call_that_is_listed_without_a_condition_is_listed() {
    let rules = [
        Rule::new("getpgid", libc::SYS_getpgid, When::IsOneOf(1, &[5]), "test"),
        Rule::new("getpgid", libc::SYS_getpgid, When::Always, "test"),
    ];
    assert_eq!(call_behind(&policy(&rules), libc::SYS_getpgid, [0; 3]), 7);
    assert_eq!(
        call_behind(&policy(&[]).with("more", &rules), libc::SYS_getpgid, [0; 3]),
        7
    );
    assert_eq!(call_behind(&policy(&rules), libc::SYS_getppid, [0; 3]), 0);
}

/// What a guest that has taken over its vCPU thread could ask of the host's kernel. A longer list needs a better reason.
#[test]
fn the_list_of_a_micro_vm_is_short() {
    assert!(lists::micro_vm().rules.len() <= 30);
}

#[test]
fn the_document_shows_the_lists() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/worker-jail.md");
    let document = fs::read_to_string(&path).unwrap();
    let mut lists = String::new();
    for policy in policies() {
        let meaning = match policy.others {
            Action::Allow => "The guest is refused these calls, and no others.",
            Action::Kill | Action::Fail(_) => "These calls are carried out; any other kills the worker.",
        };
        lists.push_str(&format!(
            "## `{}`\n\n{meaning}\n\n{}\n",
            policy.name,
            policy.table()
        ));
    }
    let text = document.split("## ").next().unwrap();
    let expected = format!("{}\n\n{}\n", text.trim_end(), lists.trim_end());
    if std::env::var_os("GUST_WRITE_DOCS").is_some() {
        fs::write(&path, &expected).unwrap();
        return;
    }
    assert!(
        document == expected,
        "docs/worker-jail.md shows other lists; GUST_WRITE_DOCS=1 writes them anew"
    );
}
