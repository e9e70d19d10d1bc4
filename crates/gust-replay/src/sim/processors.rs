//! The processors of a simulated node: shared fairly by what runs on them.
//!
//! With no more jobs than processors each job has one; with more, all get the same part. Jobs that stand back share what the
//! others leave. Processors that are all busy may be slower than one of them alone: they share caches, memory and what the machine
//! beneath has for them. Each of the two groups has a clock of its own that tells how much work a job that was always there would have got
//! done; a job ends when that clock has gone on by its work. So a change costs the logarithm of the jobs, and not their number.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use gust_policy::NodeLoad;

/// Who gets the processors first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Someone waits for it.
    Urgent,
    /// Preparation: it stands back for whatever is urgent.
    StandsBack,
}

/// Jobs that share processors. `J` names a job.
#[derive(Debug)]
pub(super) struct Processors<J> {
    count: f64,
    /// Work that each does in a nanosecond while all are busy.
    busy_speed: f64,
    /// When the clocks were reckoned, in nanoseconds.
    at_ns: u64,
    urgent: Group<J>,
    standing_back: Group<J>,
    order: u64,
}

/// Jobs of one urgency.
#[derive(Debug)]
struct Group<J> {
    /// Work that a job that was always there would have got done, in nanoseconds.
    served: f64,
    jobs: BinaryHeap<Reverse<Job<J>>>,
}

#[derive(Debug)]
struct Job<J> {
    /// What `served` is when it ends.
    ends: f64,
    /// Those that end together end in the order in which they began.
    order: u64,
    name: J,
}

impl<J> Processors<J> {
    /// So many, which take `busy_permille` thousandths of the time for the same work while all are busy.
    pub(super) fn new(count: u32, busy_permille: u32) -> Self {
        Self {
            count: f64::from(count.max(1)),
            busy_speed: 1000.0 / f64::from(busy_permille.max(1)),
            at_ns: 0,
            urgent: Group::new(),
            standing_back: Group::new(),
            order: 0,
        }
    }

    /// Begins a job with this much work, in nanoseconds.
    pub(super) fn begin(&mut self, now_ns: u64, work_ns: u64, urgency: Urgency, name: J) {
        self.go_on(now_ns);
        self.order += 1;
        let order = self.order;
        let group = match urgency {
            Urgency::Urgent => &mut self.urgent,
            Urgency::StandsBack => &mut self.standing_back,
        };
        group.jobs.push(Reverse(Job {
            ends: group.served + work_ns as f64,
            order,
            name,
        }));
    }

    /// The jobs that there are, as a node tells of them.
    pub(super) fn load(&self) -> NodeLoad {
        NodeLoad {
            runnable: u32::try_from(self.jobs()).unwrap_or(u32::MAX),
            cpus: self.count as u32,
        }
    }

    /// When the next job ends if none begins before.
    pub(super) fn next_end(&self) -> Option<u64> {
        let speed = self.speed();
        let urgent = self.urgent.next_end(self.count, speed);
        let standing_back = self.standing_back.next_end(self.left(), speed);
        let after = match (urgent, standing_back) {
            (Some(one), Some(other)) => one.min(other),
            (one, other) => one.or(other)?,
        };
        Some(self.at_ns + after.ceil() as u64)
    }

    /// A job that has ended by now.
    pub(super) fn ended(&mut self, now_ns: u64) -> Option<J> {
        self.go_on(now_ns);
        self.urgent.ended().or_else(|| self.standing_back.ended())
    }

    fn jobs(&self) -> usize {
        self.urgent.jobs.len() + self.standing_back.jobs.len()
    }

    /// Processors that urgent jobs leave.
    fn left(&self) -> f64 {
        (self.count - self.urgent.jobs.len() as f64).max(0.0)
    }

    /// Work that a processor does in a nanosecond.
    fn speed(&self) -> f64 {
        if self.jobs() as f64 >= self.count {
            self.busy_speed
        } else {
            1.0
        }
    }

    fn go_on(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.at_ns) as f64 * self.speed();
        self.at_ns = self.at_ns.max(now_ns);
        let left = self.left();
        self.urgent.go_on(passed, self.count);
        self.standing_back.go_on(passed, left);
    }
}

impl<J> Group<J> {
    fn new() -> Self {
        Self {
            served: 0.0,
            jobs: BinaryHeap::new(),
        }
    }

    /// Work that is done for each job in a nanosecond.
    fn rate(&self, processors: f64) -> f64 {
        (processors / self.jobs.len() as f64).min(1.0)
    }

    /// How long the next job still takes on processors of this speed; `None` for never.
    fn next_end(&self, processors: f64, speed: f64) -> Option<f64> {
        let Reverse(job) = self.jobs.peek()?;
        (processors > 0.0).then(|| (job.ends - self.served).max(0.0) / (self.rate(processors) * speed))
    }

    fn ended(&mut self) -> Option<J> {
        // The end was rounded up to a nanosecond, so it may lie a little behind.
        let Reverse(job) = self.jobs.peek()?;
        if job.ends > self.served + 0.5 {
            return None;
        }
        self.jobs.pop().map(|Reverse(job)| job.name)
    }

    fn go_on(&mut self, passed_ns: f64, processors: f64) {
        match self.jobs.is_empty() {
            // Small again, so that it stays exact.
            true => self.served = 0.0,
            false => self.served += passed_ns * self.rate(processors),
        }
    }
}

impl<J> Ord for Job<J> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.ends
            .total_cmp(&other.ends)
            .then(self.order.cmp(&other.order))
    }
}

impl<J> PartialOrd for Job<J> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<J> PartialEq for Job<J> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<J> Eq for Job<J> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs jobs, each `(begin, work)`, to their ends.
    fn ends(count: u32, jobs: &[(u64, u64)]) -> Vec<(usize, u64)> {
        let jobs: Vec<_> = jobs
            .iter()
            .map(|(at, work)| (*at, *work, Urgency::Urgent))
            .collect();
        ends_of(count, &jobs)
    }

    fn ends_of(count: u32, jobs: &[(u64, u64, Urgency)]) -> Vec<(usize, u64)> {
        run(Processors::new(count, 1000), jobs)
    }

    fn run(mut processors: Processors<usize>, jobs: &[(u64, u64, Urgency)]) -> Vec<(usize, u64)> {
        let (mut ends, mut next) = (Vec::new(), 0);
        loop {
            let begins = jobs.get(next).map(|job| job.0);
            match (begins, processors.next_end()) {
                (Some(begin), end) if end.is_none_or(|end| begin < end) => {
                    processors.begin(begin, jobs[next].1, jobs[next].2, next);
                    next += 1;
                }
                (_, Some(end)) => {
                    while let Some(job) = processors.ended(end) {
                        ends.push((job, end));
                    }
                }
                (_, None) => return ends,
            }
        }
    }

    #[test]
    fn jobs_share_what_there_is() {
        // Alone, each has a processor.
        assert_eq!(ends(2, &[(0, 100), (0, 50)]), [(1, 50), (0, 100)]);
        // Three on two: two thirds each, until one has ended.
        assert_eq!(
            ends(2, &[(0, 100), (0, 100), (0, 40)]),
            [(2, 60), (0, 120), (1, 120)]
        );
        // One that comes later slows the other down from then on.
        assert_eq!(ends(1, &[(0, 100), (50, 25)]), [(1, 100), (0, 125)]);
        assert_eq!(ends(1, &[(5, 0)]), [(0, 5)]);
    }

    #[test]
    fn processors_that_are_all_busy_are_slower() {
        use Urgency::{StandsBack, Urgent};
        // Half as fast until the second has ended.
        let jobs = [(0, 200, Urgent), (0, 50, StandsBack)];
        assert_eq!(run(Processors::new(2, 2000), &jobs), [(1, 100), (0, 250)]);
        // There is never another for one alone.
        assert_eq!(run(Processors::new(1, 1250), &jobs[..1]), [(0, 250)]);
    }

    #[test]
    fn what_stands_back_gets_what_is_left() {
        use Urgency::{StandsBack, Urgent};
        // One of two processors is left, then none, then two for one.
        let jobs = [(0, 300, StandsBack), (0, 150, Urgent), (100, 100, Urgent)];
        assert_eq!(ends_of(2, &jobs), [(1, 150), (2, 200), (0, 350)]);
        // Two that stand back share what is left.
        let jobs = [(0, 100, StandsBack), (0, 100, StandsBack), (0, 300, Urgent)];
        assert_eq!(ends_of(2, &jobs), [(0, 200), (1, 200), (2, 300)]);
    }
}
