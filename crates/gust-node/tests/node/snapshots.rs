//! What only micro-VMs have: snapshots on disk, layouts, armed instances, memory that is given back.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gust_node::{InvokeError, Isolation, MemoryMode, NodeConfig, PageSharing, StartKind, VersionSpec};
use libtest_mimic::Failed;

use crate::world::{IMAGES, World, device, equal, response, spec, until};

/// A node over the directory of one that has been stopped, with the version made known.
async fn restarted(world: World, spec: &VersionSpec) -> Result<World, Failed> {
    let (isolation, dir) = (world.isolation, Arc::clone(&world.dir));
    world.stop().await;
    let world = World::in_dir(isolation, dir, |_| {}).await?;
    world.node.register(spec.clone());
    Ok(world)
}

pub async fn snapshots_outlive_the_node(isolation: Isolation) -> Result<(), Failed> {
    for root in [&IMAGES.device, &IMAGES.api] {
        let world = World::new(isolation, |_| {}).await?;
        let spec = spec(root, "echo");
        let id = world.deploy(spec.clone()).await?;
        equal(world.snapshot_files("snapshot").is_empty(), false)?;
        let world = restarted(world, &spec).await?;
        let outcome = world.call(&id, "1").await?.outcome;
        equal((outcome.start, outcome.timings.boot_ns), (StartKind::Restored, 0))?;
        // Deployed once more, it is not booted again either.
        let world = restarted(world, &spec).await?;
        let deployed = world.node.deploy(spec.clone()).await?;
        equal(
            (deployed.init, deployed.snapshot_bytes > 0),
            (Duration::ZERO, true),
        )?;
        world.stop().await;
    }
    Ok(())
}

/// Alters the file at a path.
type Damage = fn(&Path) -> std::io::Result<()>;

fn flip(path: &Path, part: fn(usize) -> usize) -> std::io::Result<()> {
    let mut bytes = fs::read(path)?;
    let at = part(bytes.len());
    bytes[at] ^= 1;
    fs::write(path, bytes)
}

fn cut_short(path: &Path) -> std::io::Result<()> {
    let file = fs::File::options().write(true).open(path)?;
    file.set_len(file.metadata()?.len() / 2)
}

/// Which of the two files of a snapshot or layout is altered, and how.
const DAMAGES: [(&str, &str, Damage); 9] = [
    ("it is empty", "", |path| fs::write(path, "")),
    ("it is another file", "", |path| fs::write(path, [0x5a; 100_000])),
    ("it is cut short", "", cut_short),
    ("its description is altered", "", |path| flip(path, |_| 60)),
    ("it is gone", "", |path| fs::remove_file(path)),
    ("its data are empty", "-data", |path| fs::write(path, "")),
    ("its data are cut short", "-data", cut_short),
    ("its data are altered", "-data", |path| {
        flip(path, |length| length / 2)
    }),
    ("its data are gone", "-data", |path| fs::remove_file(path)),
];

pub async fn damaged_files_are_made_anew(isolation: Isolation) -> Result<(), Failed> {
    let spec = device("echo");
    let mut world = World::new(isolation, |_| {}).await?;
    let id = world.ready(spec.clone()).await?;
    for (name, part, damage) in DAMAGES {
        let named = |failed: Failed| Failed::from(format!("{name}: {failed:?}"));
        // Every snapshot, the runtime's too.
        let files = world.snapshot_files(&format!("snapshot{part}"));
        equal(files.len(), 2)?;
        for file in &files {
            damage(file)?;
        }
        world = restarted(world, &spec).await?;
        let called = world.call(&id, "1").await?;
        equal(
            (response(&called)?, called.outcome.start),
            ("1".to_owned(), StartKind::Booted),
        )
        .map_err(named)?;
        equal(
            called
                .outcome
                .start_duration
                .is_some_and(|took| took > Duration::ZERO),
            true,
        )?;
        world.settled().await?;
        world = restarted(world, &spec).await?;
        equal(world.call(&id, "2").await?.outcome.start, StartKind::Restored).map_err(named)?;
        world.settled().await?;
        world.learned(&id).await?;

        let layouts = world.snapshot_files(&format!("layout{part}"));
        equal(layouts.is_empty(), false).map_err(named)?;
        // The runtime's too, if it has one by now.
        for layout in &layouts {
            damage(layout)?;
        }
        world = restarted(world, &spec).await?;
        let called = world.call(&id, "3").await?;
        equal(
            (response(&called)?, called.outcome.start),
            ("3".to_owned(), StartKind::Restored),
        )
        .map_err(named)?;
        world.settled().await?;
        world.learned(&id).await?;
        equal(world.snapshot_files("layout").is_empty(), false).map_err(named)?;
    }
    world.stop().await;
    Ok(())
}

/// The file as it would be if this machine's processor had other features.
fn with_other_processor(path: &PathBuf) -> Result<(), Failed> {
    const DESCRIPTION_AT: usize = 48;
    let mut bytes = fs::read(path)?;
    let length = u32::from_le_bytes(bytes[12..16].try_into()?) as usize;
    let description = &mut bytes[DESCRIPTION_AT..DESCRIPTION_AT + length];
    let is_hex = |window: &[u8]| window.iter().all(u8::is_ascii_hexdigit);
    // The fingerprint follows the name and its own length.
    let at = description
        .windows(64)
        .rposition(is_hex)
        .ok_or("there is no fingerprint")?;
    description[at] = if description[at] == b'0' { b'1' } else { b'0' };
    let checksum = blake3::hash(description);
    bytes[16..48].copy_from_slice(checksum.as_bytes());
    Ok(fs::write(path, bytes)?)
}

pub async fn a_snapshot_of_another_processor_is_made_anew(isolation: Isolation) -> Result<(), Failed> {
    let spec = device("echo");
    let world = World::new(isolation, |_| {}).await?;
    let id = world.ready(spec.clone()).await?;
    for file in world.snapshot_files("snapshot") {
        with_other_processor(&file)?;
    }
    let world = restarted(world, &spec).await?;
    equal(world.call(&id, "1").await?.outcome.start, StartKind::Booted)?;
    world.settled().await?;
    let world = restarted(world, &spec).await?;
    equal(world.call(&id, "2").await?.outcome.start, StartKind::Restored)?;
    world.stop().await;
    Ok(())
}

pub async fn what_has_no_room_in_memory_is_used_on_disk(isolation: Isolation) -> Result<(), Failed> {
    // Less than one snapshot has; the last used has its room all the same. No base is laid out, which would be used, too.
    let change = |config: &mut NodeConfig| (config.snapshot_memory_bytes, config.pool_size) = (1, 0);
    let world = World::new(isolation, change).await?;
    let specs = [device("echo"), spec(&IMAGES.api, "echo")];
    for spec in &specs {
        world.ready(spec.clone()).await?;
        world.node.evict(&spec.id, false).await;
    }
    let on_disk = || world.node.stats().snapshots_on_disk;
    for spec in &specs {
        // The first was evicted for the second, and that for the first's state.
        let id = &spec.id;
        let called = world.call(id, "count").await?;
        equal(
            (response(&called)?, called.outcome.start),
            ("1".to_owned(), StartKind::Restored),
        )?;
        world.settled().await?;
        equal(on_disk() > 0, true).map_err(|error| format!("{id}: {error:?}"))?;
        equal(response(&world.call(id, "count").await?)?, "2".to_owned())?;
        world.settled().await?;
        world.node.evict(id, false).await;
    }
    // Used again, it is taken into memory.
    let (id, before) = (&specs[0].id, on_disk());
    equal(response(&world.call(id, "count").await?)?, "1".to_owned())?;
    world.settled().await?;
    world.node.evict(id, false).await;
    until(|| async { on_disk() < before }).await?;
    equal(response(&world.call(id, "count").await?)?, "1".to_owned())?;
    world.stop().await;
    Ok(())
}

pub async fn idle_instances_are_frozen_and_go_on(isolation: Isolation) -> Result<(), Failed> {
    let soon = |config: &mut NodeConfig| config.freeze_after = Some(Duration::from_millis(1));
    for root in [&IMAGES.device, &IMAGES.api] {
        let world = World::new(isolation, soon).await?;
        let id = world.ready(spec(root, "echo")).await?;
        world.node.evict(&id, false).await;
        let first = world.call(&id, "count").await?;
        let (instance, mut count) = (first.outcome.instance_id.clone(), 1);
        equal(response(&first)?, count.to_string())?;
        for _ in 0..4 {
            until(|| async { world.node.stats().frozen == 1 }).await?;
            equal(world.node.stats().idle, 1)?;
            let called = world.call(&id, "count").await?;
            count += 1;
            equal(
                (
                    response(&called)?,
                    called.outcome.start,
                    &called.outcome.instance_id,
                ),
                (count.to_string(), StartKind::Thawed, &instance),
            )?;
            world.settled().await?;
        }
        // A frozen instance is let go of as any other.
        until(|| async { world.node.stats().frozen == 1 }).await?;
        world.node.evict(&id, false).await;
        until(|| async { world.node.stats().idle == 0 }).await?;
        equal(response(&world.call(&id, "count").await?)?, "1".to_owned())?;
        world.stop().await;
    }
    Ok(())
}

pub async fn layouts_are_learned_from_the_first_runs(isolation: Isolation) -> Result<(), Failed> {
    for root in [&IMAGES.device, &IMAGES.api] {
        let world = World::new(isolation, |config| config.pool_size = 0).await?;
        let spec = spec(root, "echo");
        let id = world.deploy(spec.clone()).await?;
        let mut instances = HashSet::new();
        for n in 0..2 {
            let called = world.call(&id, &"x".repeat(1000 * (n + 1))).await?;
            equal(called.outcome.start, StartKind::Restored)?;
            equal(instances.insert(called.outcome.instance_id.clone()), true)?;
            // It goes on with its memory.
            world.settled().await?;
            equal(world.snapshot_files("layout").len(), 1)?;
            let again = world.call(&id, "again").await?.outcome;
            equal(
                (again.start, again.instance_id),
                (StartKind::Warm, called.outcome.instance_id),
            )?;
            world.settled().await?;
            world.node.evict(&id, false).await;
        }
        for (n, expected) in [StartKind::Restored, StartKind::Warm, StartKind::Warm]
            .into_iter()
            .enumerate()
        {
            let called = world.call(&id, &n.to_string()).await?;
            equal(
                (response(&called)?, called.outcome.start),
                (n.to_string(), expected),
            )?;
            world.settled().await?;
        }
        // What was learned is still there after a restart.
        let world = restarted(world, &spec).await?;
        equal(world.snapshot_files("layout").len(), 1)?;
        equal(world.call(&id, "1").await?.outcome.start, StartKind::Restored)?;
        world.stop().await;
    }
    Ok(())
}

pub async fn instances_are_armed_ahead(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |config| config.armed_per_version = 2).await?;
    let id = world.deploy(device("echo")).await?;
    // One records, and what is armed then would know less than it could.
    for _ in 0..2 {
        until(|| async { world.node.stats().armed == 1 && world.node.stats().busy == 0 }).await?;
        let called = world.call(&id, "1").await?;
        equal(
            (response(&called)?, called.outcome.start),
            ("1".to_owned(), StartKind::Armed),
        )?;
        world.settled().await?;
        world.node.evict(&id, true).await;
    }
    until(|| async { world.node.stats().armed == 2 }).await?;
    for _ in 0..5 {
        let called = world.call(&id, "2").await?;
        equal(called.outcome.start, StartKind::Armed)?;
        equal(called.outcome.start_duration, None)?;
        world.settled().await?;
        equal(world.call(&id, "3").await?.outcome.start, StartKind::Warm)?;
        world.settled().await?;
        world.node.evict(&id, true).await;
        until(|| async { world.node.stats().armed == 2 }).await?;
    }
    world.node.evict(&id, false).await;
    equal(world.node.stats().armed, 0)?;
    equal(world.call(&id, "4").await?.outcome.start, StartKind::Restored)?;
    world.stop().await;
    Ok(())
}

/// Prepared workers have a runtime's base in them, on which its functions are laid out.
pub async fn functions_are_laid_out_on_their_base(isolation: Isolation) -> Result<(), Failed> {
    let mut world = World::new(isolation, |_| {}).await?;
    let shaped = |world: &World, count| world.node.stats().shaped == count;
    let specs = [device("echo"), device("echo"), spec(&IMAGES.api, "echo")];
    for spec in &specs {
        let id = world.ready(spec.clone()).await?;
        until(|| async { shaped(&world, 1) }).await?;
        for n in 0..5 {
            let prepared = world.workers();
            world.node.evict(&id, false).await;
            until(|| async { world.workers().len() == 2 && shaped(&world, 1) }).await?;
            let called = world.call(&id, "count").await?;
            equal(
                (response(&called)?, called.outcome.start),
                ("1".to_owned(), StartKind::Restored),
            )
            .map_err(|error| format!("{id}, call {n} of {prepared:?}: {error:?}"))?;
            world.settled().await?;
            equal(response(&world.call(&id, "count").await?)?, "2".to_owned())?;
            world.settled().await?;
            until(|| async { shaped(&world, 1) }).await?;
        }
        world.node.evict(&id, false).await;
    }
    // After a restart, and without the base.
    for is_lost in [false, true] {
        if is_lost {
            for file in world.snapshot_files("snapshot") {
                fs::remove_file(file)?;
            }
        }
        world = restarted(world, &specs[0]).await?;
        world.node.register(specs[1].clone());
        for spec in &specs[..2] {
            for _ in 0..6 {
                let called = world.call(&spec.id, "count").await?;
                equal(response(&called)?, "1".to_owned())?;
                world.settled().await?;
                world.node.evict(&spec.id, false).await;
            }
            until(|| async { shaped(&world, 1) }).await?;
        }
    }
    world.stop().await;
    Ok(())
}

/// Nothing of one version is mapped in workers of another: no base is made, and none is laid out ahead.
pub async fn pages_can_be_kept_to_one_version(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |config| config.page_sharing = PageSharing::Version).await?;
    let specs = [device("echo"), device("echo"), spec(&IMAGES.api, "echo")];
    for spec in &specs {
        let id = world.ready(spec.clone()).await?;
        for _ in 0..4 {
            world.node.evict(&id, false).await;
            let called = world.call(&id, "count").await?;
            equal(
                (response(&called)?, called.outcome.start),
                ("1".to_owned(), StartKind::Restored),
            )?;
            world.settled().await?;
        }
        equal(world.node.stats().shaped, 0)?;
    }
    // A version each, and no runtime's own.
    equal(world.snapshot_files("snapshot").len(), specs.len())?;
    world.stop().await;
    Ok(())
}

pub async fn memory_is_given_back_after_every_call(isolation: Isolation) -> Result<(), Failed> {
    for armed in [0, 1] {
        let world = World::new(isolation, |config| config.armed_per_version = armed).await?;
        let mut spec = device("echo");
        spec.memory_mode = MemoryMode::Fresh;
        let id = world.deploy(spec).await?;
        let mut starts = Vec::new();
        for _ in 0..8 {
            let called = world.call(&id, "count").await?;
            equal(response(&called)?, "1".to_owned())?;
            starts.push(called.outcome.start);
            equal(response(&world.call(&id, "litter").await?)?, "clean".to_owned())?;
            world.settled().await?;
        }
        // Once its layout is known, an instance goes back to its snapshot and serves again.
        equal(starts.last(), Some(&StartKind::Armed)).map_err(|_| format!("{starts:?}"))?;
        equal(starts.contains(&StartKind::Warm), false)?;
        world.stop().await;
    }
    Ok(())
}

/// While one call records, others run in instances without a layout, which cannot go back to their snapshots.
pub async fn memory_that_cannot_be_given_back_is_not_used_again(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(World::new(isolation, |_| {}).await?);
    let mut spec = device("echo");
    spec.memory_mode = MemoryMode::Fresh;
    let id = world.deploy(spec).await?;
    let recording = {
        let (world, id) = (Arc::clone(&world), id.clone());
        tokio::spawn(async move { world.call(&id, "wait 1000").await })
    };
    until(|| async { world.node.stats().busy == 1 }).await?;
    for _ in 0..3 {
        let called = world.call(&id, "count").await?;
        equal(
            (response(&called)?, called.outcome.start),
            ("1".to_owned(), StartKind::Restored),
        )?;
    }
    equal(response(&recording.await??)?, "wait 1000".to_owned())?;
    world.node.stop(Duration::from_secs(10)).await;
    Ok(())
}

pub async fn no_two_instances_are_alike(isolation: Isolation) -> Result<(), Failed> {
    let world = World::new(isolation, |config| config.armed_per_version = 1).await?;
    let id = world.ready(device("echo")).await?;
    let mut seen = HashSet::new();
    for keep_armed in [true, false].repeat(5) {
        world.node.evict(&id, keep_armed).await;
        let called = world.call(&id, "random").await?;
        equal(seen.insert(response(&called)?), true)?;
        equal(seen.insert(called.outcome.instance_id), true)?;
        world.settled().await?;
    }
    world.stop().await;
    Ok(())
}

pub async fn a_version_that_is_removed_leaves_nothing(isolation: Isolation) -> Result<(), Failed> {
    let world = Arc::new(World::new(isolation, |config| config.armed_per_version = 1).await?);
    let base = {
        let id = world.ready(device("echo")).await?;
        world.node.remove(&id).await;
        world.snapshot_files("snapshot")
    };
    equal(base.len(), 1)?;
    // Removed while its runs are learned from, and while it is deployed.
    for wait in [true, false] {
        let spec = device("echo");
        let id = spec.id.clone();
        let deploying = {
            let (world, spec) = (Arc::clone(&world), spec.clone());
            tokio::spawn(async move { world.node.deploy(spec).await.is_ok() })
        };
        if wait {
            equal(deploying.await?, true)?;
            world.call(&id, "1").await?;
            world.node.remove(&id).await;
        } else {
            until(|| async { !matches!(world.call(&id, "1").await, Err(InvokeError::UnknownVersion(_))) })
                .await?;
            world.node.remove(&id).await;
            deploying.await?;
        }
        world.settled().await?;
        until(|| async {
            // The runtime's own stay.
            let mut layouts = world.snapshot_files("layout").into_iter();
            world.snapshot_files("snapshot") == base
                && layouts.all(|layout| base.contains(&layout.with_extension("snapshot")))
        })
        .await?;
    }
    world.node.stop(Duration::from_secs(10)).await;
    Ok(())
}
